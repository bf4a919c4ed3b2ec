from peft_mrpc.data.examples import Example
from peft_mrpc.prompting.demonstrations import sample_demonstrations

LABELS = ["not_equivalent", "equivalent"]


def test_balanced_samples_depend_on_the_seed_and_have_equal_shares() -> None:
    pool = [Example(n, f"a {n}", f"b {n}", int(n % 3 == 0)) for n in range(30)]
    shots = sample_demonstrations(pool, LABELS, 6, "balanced", 1)
    assert sorted(shot.label for shot in shots) == ["equivalent"] * 3 + ["not_equivalent"] * 3
    assert shots == sample_demonstrations(pool, LABELS, 6, "balanced", 1)
    assert shots != sample_demonstrations(pool, LABELS, 6, "balanced", 2)
    assert len(sample_demonstrations(pool, LABELS, 7, "balanced", 1)) == 7
    first = sample_demonstrations(pool, LABELS, 3, "first", 1)
    assert [shot.sentence1 for shot in first] == ["a 0", "a 1", "a 2"]
