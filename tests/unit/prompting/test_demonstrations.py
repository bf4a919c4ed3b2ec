from peft_mrpc.data.examples import Example
from peft_mrpc.prompting.demonstrations import (
    NearestDemonstrations,
    build_selector,
    sample_demonstrations,
)
from peft_mrpc.prompting.templates import Demonstration

LABELS = ["not_equivalent", "equivalent"]
POOL = [
    Demonstration("The cat sat on the mat.", "A cat was sitting on a mat.", "equivalent"),
    Demonstration("The cat sat on a chair.", "The cat stood on a chair.", "not_equivalent"),
    Demonstration("Stocks fell on Monday.", "Shares lost on Monday.", "equivalent"),
    Demonstration("Stocks fell on Friday.", "Stocks rose on Friday.", "not_equivalent"),
]


def test_an_example_is_never_its_own_demonstration() -> None:
    cats, same = NearestDemonstrations(POOL, LABELS, 2).select(
        [
            Example(0, "A cat sat on the mat.", "A cat lay on the mat."),
            Example(1, "A cat was sitting on a mat.", "The cat sat on the mat."),  # swapped
        ]
    )
    assert {shot.label for shot in cats} == set(LABELS) and set(cats) == set(POOL[:2])
    assert POOL[0] not in same and len(same) == 2


def test_an_odd_count_ends_with_the_most_similar_of_any_label() -> None:
    (shots,) = NearestDemonstrations(POOL, LABELS, 1).select(
        [Example(0, "The cat sat.", "A cat sat there.")]
    )
    assert shots[0] in POOL[:2] and len(shots) == 1


def test_balanced_samples_depend_on_the_seed_and_have_equal_shares() -> None:
    pool = [Example(n, f"a {n}", f"b {n}", int(n % 3 == 0)) for n in range(30)]
    shots = sample_demonstrations(pool, LABELS, 6, "balanced", 1)
    assert sorted(shot.label for shot in shots) == ["equivalent"] * 3 + ["not_equivalent"] * 3
    assert shots == sample_demonstrations(pool, LABELS, 6, "balanced", 1)
    assert shots != sample_demonstrations(pool, LABELS, 6, "balanced", 2)
    assert len(sample_demonstrations(pool, LABELS, 7, "balanced", 1)) == 7
    first = sample_demonstrations(pool, LABELS, 3, "first", 1)
    assert [shot.sentence1 for shot in first] == ["a 0", "a 1", "a 2"]


def test_without_demonstrations_every_list_is_empty() -> None:
    assert build_selector("nearest", 0, [], LABELS).select([Example(0, "a", "b")]) == [[]]
