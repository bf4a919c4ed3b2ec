from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from example_runs import PERFECT, SCORES, build_run, change_record

from peft_mrpc.methods.registry import METHODS
from peft_mrpc.report.build import build_report
from peft_mrpc.report.summary import METHOD_DESCRIPTIONS, Summary, build_summary
from peft_mrpc.runs.run import Run


def summarize(*runs: Run) -> Summary:
    report = build_report(runs)
    return build_summary(report.comparison, report.analysis)


def change_train(**values: Any) -> Callable[[Any], None]:
    return lambda record: record["data"]["splits"]["train"].update(values)


def test_the_summary_names_the_best_run_its_lead_and_a_cheaper_run(tmp_path: Path) -> None:
    best = build_run(tmp_path / "a", PERFECT, "full", train_seconds=600)
    cheap = build_run(tmp_path / "b", SCORES["a"], "lora", train_seconds=60)
    summary = summarize(best, cheap)
    assert summary.headline == (
        "full · model-x is the most accurate of 2 strategies: 100.0% on 5 examples."
    )
    for sentence in (
        "Always predicting “equivalent” has an accuracy of 60.0%",
        "full · model-x leads lora · model-x by 20.0 points, with a 95% interval of +0.0 to "
        "+60.0; the difference is not significant (p = 1.000).",
        "lora · model-x costs less (60 s of training, compared with 10 min of training), and its "
        "accuracy of 80.0% is not significantly lower.",
        "full · model-x and lora · model-x were trained with one seed; another seed may change",
    ):
        assert sentence in summary.text
    assert [tile.value for tile in summary.tiles] == [
        "100.0%",
        "+20.0 points",
        "+40.0 points",
        "10 min of training",
        "80.0%",
    ]


def test_a_significant_lead_is_called_significant(tmp_path: Path) -> None:
    truth = [0, 1] * 20
    scores = [0.9 if label else 0.1 for label in truth]
    worse = [1 - p if n < 15 else p for n, p in enumerate(scores)]
    runs = [
        build_run(tmp_path / method, values, method, truth=truth)
        for method, values in (("full", scores), ("lora", worse))
    ]
    text = summarize(*runs).text
    assert "by 37.5 points, with a 95% interval of +" in text
    assert "the difference is significant (p < 0.001)." in text


def test_equal_accuracies_have_no_leader(tmp_path: Path) -> None:
    summary = summarize(*(build_run(tmp_path / m, SCORES["a"], m) for m in ("full", "lora")))
    assert summary.headline == (
        "full · model-x and lora · model-x are equally accurate: 80.0% on 5 examples."
    )
    assert "leads" not in summary.text


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        # "equivalent" is correct for 60% of the examples; these predictions for 4 and 3 of 5.
        (SCORES["a"], "accuracy of 60.0%; the 95% interval of the best Run includes it."),
        ([0.9, 0.8, 0.7, 0.7, 0.6], "accuracy of 60.0%; no Run is better."),
    ],
)
def test_a_run_near_the_baseline_is_marked(
    tmp_path: Path, scores: list[float], sentence: str
) -> None:
    assert sentence in summarize(build_run(tmp_path / "a", scores)).text


def test_different_training_examples_are_mentioned(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / m, SCORES["a"], m) for m in ("full", "lora", "ia3")]
    assert "different" not in summarize(*runs).text
    runs[1] = change_record(runs[1], change_train(fingerprint="0" * 64))
    assert "trained on equally many, but different examples." in summarize(*runs).text
    runs[1] = change_record(runs[1], change_train(num_examples=3))
    assert (
        "The Runs were trained on different examples: lora · model-x on 3, full · model-x and "
        "ia3 · model-x on 5." in summarize(*runs).text
    )


def test_leaked_examples_are_mentioned(tmp_path: Path) -> None:
    runs = [
        build_run(tmp_path / name, SCORES[name], name, num_leaked=2 * (name == "a"))
        for name in ("a", "b")
    ]
    text = summarize(*runs).text
    assert "a · model-x: 2 of these examples also occur in its training set" in text
    assert text.count("also occur") == 1


def test_only_methods_have_descriptions() -> None:
    assert set(METHOD_DESCRIPTIONS) <= {*METHODS, "hard_prompt"}
