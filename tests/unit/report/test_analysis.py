from pathlib import Path

import pytest
from example_runs import PERFECT, SCORES, build_run, build_three_label_run

from peft_mrpc.report.analysis import analyze, is_equivalent, is_significant
from peft_mrpc.report.comparison import build_comparison


def test_an_example_of_several_seeds_is_correct_by_their_share(tmp_path: Path) -> None:
    # Labels 1 1 1 0 0. Correct by seed: 1 1 1 0 1, 1 0 1 1 1, 1 1 1 1 1; the other Run 1 1 1 0 1.
    seeds = [
        build_run(tmp_path / f"s{seed}", scores, "lora", seed=seed)
        for seed, scores in enumerate((SCORES["a"], SCORES["b"], PERFECT), start=1)
    ]
    other = build_run(tmp_path / "o", SCORES["a"], "full")
    analysis = analyze(build_comparison([*seeds, other]))
    (difference,) = analysis["differences"]
    assert difference["accuracy"] == pytest.approx(13 / 15 - 4 / 5)
    assert difference["test"] == "permutation"
    # The differences are -1/3 and 2/3 on two examples: of the four signs the sums are +-1/3 and
    # +-1, none smaller.
    assert difference["p"] == 1.0
    assert (difference["only_first_correct"], difference["only_second_correct"]) == (0, 0)
    low, high = analysis["intervals"][0]["accuracy"]
    assert low < 13 / 15 < high


def test_every_metric_has_a_difference_with_an_interval(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / name, SCORES[name], name) for name in ("a", "b")]
    comparison = build_comparison(runs)
    (difference,) = analyze(comparison)["differences"]
    metrics = dict(zip(comparison.names, comparison.metrics, strict=True))
    ours, theirs = (metrics[difference[side]] for side in ("first", "second"))
    for name in ("macro_f1", "mcc", "roc_auc", "average_precision", "brier"):
        entry = difference["other_metrics"][name]
        assert entry["difference"] == pytest.approx(ours[name] - theirs[name])
        assert entry["interval"][0] <= entry["difference"] <= entry["interval"][1]
    for label in ("not_equivalent", "equivalent"):
        entry = difference["other_metrics"]["f1"][label]
        assert entry["difference"] == pytest.approx(ours["f1"][label] - theirs["f1"][label])
    low, high = difference["interval"]
    assert low <= difference["accuracy"] == 0 <= high
    assert difference["only_first_correct"] == difference["only_second_correct"] == 1


def test_a_single_label_has_no_areas(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / name, SCORES[name], name, truth=[1] * 5) for name in ("a", "b")]
    (difference,) = analyze(build_comparison(runs))["differences"]
    assert "roc_auc" not in difference["other_metrics"]
    assert "macro_f1" in difference["other_metrics"]


def test_three_labels_have_all_intervals(tmp_path: Path) -> None:
    runs = [
        build_three_label_run(tmp_path / method, method, weight)
        for method, weight in (("full", 0.5), ("lora", 0.2))
    ]
    analysis = analyze(build_comparison(runs))
    for run, intervals in zip(runs, analysis["intervals"], strict=True):
        for name in ("roc_auc", "average_precision", "brier", "macro_f1"):
            low, high = intervals[name]
            assert low - 1e-9 <= run.metrics["test"][name] <= high + 1e-9
    assert set(analysis["differences"][0]["other_metrics"]["f1"]) == {
        "contradiction",
        "entailment",
        "neutral",
    }


def test_significance_and_equivalence(tmp_path: Path) -> None:
    truth = [0, 1] * 20
    scores = [0.9 if label else 0.1 for label in truth]
    # Of 40 examples 15 incorrect: McNemar 15 to 0, p 6e-5; of 2 incorrect: p 0.5.
    for errors, expected in ((15, True), (2, False)):
        worse = [1 - p if n < errors else p for n, p in enumerate(scores)]
        runs = [
            build_run(tmp_path / f"{errors}{method}", values, method, truth=truth)
            for method, values in (("full", scores), ("lora", worse))
        ]
        (difference,) = analyze(build_comparison(runs))["differences"]
        assert is_significant(difference) is expected
    same = [build_run(tmp_path / m, scores, m, truth=truth) for m in ("full", "lora")]
    (difference,) = analyze(build_comparison(same))["differences"]
    assert is_equivalent(difference) and not is_significant(difference)
