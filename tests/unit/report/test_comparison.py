import json
from pathlib import Path

import numpy as np
import pytest
from example_runs import SCORES, build_run, change_record

from peft_mrpc.errors import UserError
from peft_mrpc.report.comparison import build_comparison
from peft_mrpc.runs.run import Run, load_run


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Run]:
    return [build_run(tmp_path / name, SCORES[name], name) for name in ("a", "b")]


def error(*args: object) -> str:
    with pytest.raises(UserError) as raised:
        build_comparison(*args)  # type: ignore[arg-type]
    (line,) = raised.value.lines()
    return line


def test_the_rows_are_the_majority_baseline_and_each_run(two_runs: list[Run]) -> None:
    baseline, first, second = build_comparison(two_runs).rows()
    assert baseline["name"] == "always “equivalent”"
    assert baseline["accuracy"] == pytest.approx(0.6)
    assert baseline["f1"] == pytest.approx({"not_equivalent": 0, "equivalent": 2 * 0.6 / 1.6})
    assert (first["accuracy"], second["accuracy"]) == (0.8, 0.8)
    assert first["roc_auc"] == second["roc_auc"] == pytest.approx(5 / 6)
    assert first["trained_parameters"] == 10 and first["trained_share"] == 0.1


def test_another_order_of_the_labels_is_aligned_by_name(tmp_path: Path) -> None:
    first = build_run(tmp_path / "a", SCORES["a"])
    other = build_run(tmp_path / "b", SCORES["a"], names=("equivalent", "not_equivalent"))
    rows = build_comparison([first, other]).predictions
    assert (rows[0].references == rows[1].references).all()
    assert (rows[0].predictions == rows[1].predictions).all()
    assert np.allclose(rows[0].probabilities, rows[1].probabilities)


def test_other_examples_are_refused(two_runs: list[Run]) -> None:
    other = change_record(
        two_runs[1], lambda record: record["data"]["splits"]["test"].update(fingerprint="0" * 64)
    )
    message = error([two_runs[0], other])
    assert "was scored on other examples of 'test'" in message
    assert "(toy, 5 examples; toy, 5 examples)" in message


def test_other_labels_are_refused_with_both(two_runs: list[Run]) -> None:
    first, other = two_runs
    for name in ("metrics.json", "predictions/test.jsonl"):
        text = (other.path / name).read_text()
        (other.path / name).write_text(text.replace('"equivalent"', '"same"'))
    other = change_record(
        other, lambda record: record["data"].update(label_names=["not_equivalent", "same"])
    )
    assert error([first, other]) == (
        f"{other.path}: has the labels not_equivalent, same; expected those of {first.path}, "
        "not_equivalent, equivalent. Compare Runs of one data set."
    )


def test_missing_splits_and_repeated_runs_are_refused(two_runs: list[Run]) -> None:
    run = two_runs[0]
    assert error([run], "dev") == f"{run.path}: has no labelled split 'dev'; it has test."
    assert error([run, run]) == f"RUN: got {run.path} twice; name each Run once."
    metrics = json.loads((two_runs[1].path / "metrics.json").read_text())
    (two_runs[1].path / "metrics.json").write_text(json.dumps({"validation": metrics["test"]}))
    message = error([load_run(run.path) for run in two_runs])
    assert message.startswith("RUN: the Runs have no labelled split in common")


def test_runs_of_one_name_differ_by_their_path(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / seed / "run", SCORES["a"]) for seed in ("s1", "s2")]
    assert build_comparison(runs).names == ["full · model-x (s1/run)", "full · model-x (s2/run)"]


def test_seeds_are_aggregated_unless_disabled(tmp_path: Path) -> None:
    runs = [
        build_run(tmp_path / f"{seed}", SCORES[name], seed=seed)
        for seed, name in ((1, "a"), (2, "b"))
    ]
    comparison = build_comparison(runs)
    assert [len(seeds) for seeds in comparison.seed_predictions] == [2]
    assert comparison.rows()[1]["seeds"] == [1, 2]
    assert len(build_comparison(runs, aggregate_seeds=False).runs) == 2
