"""Runs that were changed after they were written: one line, and no comparison."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from example_runs import SCORES, build_run

from peft_mrpc.errors import UserError
from peft_mrpc.report.comparison import load_comparison
from peft_mrpc.report.seed_groups import join_seeds
from peft_mrpc.runs.run import load_run
from peft_mrpc.runs.schema import shape_faults


def compare_with(other: Path, path: Path) -> str:
    """Why two Runs are refused."""
    with pytest.raises(UserError) as raised:
        load_comparison([load_run(other), load_run(path)], None, join_seeds)
    (line,) = raised.value.lines()
    return line


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("run.json", lambda c: c.update(data=None), "data is None; expected an object"),
        ("run.json", lambda c: c["data"].pop("splits"), "data lacks splits"),
        (
            "run.json",
            lambda c: c["data"]["splits"]["test"].pop("fingerprint"),
            "data.splits.test lacks fingerprint",
        ),
        (
            "run.json",
            lambda c: c["data"].update(label_names=["not_equivalent", 0]),
            "data.label_names.1 is 0; expected text",
        ),
        (
            "run.json",
            lambda c: c["timing"].update(score_pairs_per_second="fast"),
            "timing.score_pairs_per_second is 'fast'; expected a number",
        ),
        ("run.json", lambda c: c["data"]["splits"].pop("test"), "knows no split 'test'"),
        ("metrics.json", lambda c: c.update(test=None), "test is None; expected an object"),
        (
            "metrics.json",
            lambda c: c["test"].update(accuracy=True),
            "test.accuracy is True; expected a number",
        ),
        ("metrics.json", lambda c: c["test"]["f1"].pop("equivalent"), "test.f1 lacks equivalent"),
        ("metrics.json", lambda c: c["test"].update(accuracy=0.9), "metrics.json has 0.9000"),
    ],
)
def test_what_is_wrong_is_told_by_its_place(
    tmp_path: Path, file: str, change: Callable[[Any], None], said: str
) -> None:
    other, run = build_run(tmp_path / "a", SCORES["a"]), build_run(tmp_path / "b", SCORES["b"])
    content = json.loads((run.path / file).read_text())
    change(content)
    (run.path / file).write_text(json.dumps(content))
    line = compare_with(other.path, run.path)
    assert said in line and str(tmp_path / "b") in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probabilities": {"equivalent": float("nan"), "not_equivalent": 0.1}}, "row 1 has prob"),
        ({"probabilities": {"equivalent": 0.7, "not_equivalent": 0.7}}, "expected 0 to 1, in sum"),
        ({"probabilities": [0.5, 0.5]}, "damaged: "),
        ({"prediction": "maybe"}, "a row lacks or does not know 'maybe'"),
        ({"label": "not_equivalent"}, "row 1 has another label in "),
        ({"idx": 7}, "5 rows, expected rows 0 to 4 in order"),
        ({"prediction": "equivalent"}, "its accuracy is 1.0000, metrics.json has 0.8000"),
    ],
)
def test_answers_that_are_none_are_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    other, run = build_run(tmp_path / "a", SCORES["a"]), build_run(tmp_path / "b", SCORES["b"])
    path = run.path / "predictions" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1].update(change)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert said in compare_with(other.path, run.path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"3\n3\n3\n3\n3\n", b'{"idx": 0'])
def test_a_file_that_is_no_predictions_is_one_line(tmp_path: Path, content: bytes) -> None:
    other, run = build_run(tmp_path / "a", SCORES["a"]), build_run(tmp_path / "b", SCORES["b"])
    (run.path / "predictions" / "test.jsonl").write_bytes(content)
    assert "test.jsonl: damaged: " in compare_with(other.path, run.path)


def test_a_missing_file_says_what_there_is(tmp_path: Path) -> None:
    other, run = build_run(tmp_path / "a", SCORES["a"]), build_run(tmp_path / "b", SCORES["b"])
    (run.path / "predictions" / "test.jsonl").unlink()
    assert "has no predictions of split 'test'" in compare_with(other.path, run.path)
    (run.path / "metrics.json").unlink()
    assert "metrics.json: no such file" in compare_with(other.path, run.path)


def test_shapes_know_optional_parts_and_lists() -> None:
    shape = {"name": str, "seeds?": [int], "parts": {"*": {"size": int}}}
    good = {"name": "a", "seeds": [1, 2], "parts": {"x": {"size": 3, "more": None}}, "else": 1}
    assert shape_faults(good, shape) == []
    assert shape_faults({"name": "a", "seeds": None, "parts": {}}, shape) == []
    assert shape_faults({"seeds": [1, "2"], "parts": {"x": []}}, shape) == [
        "the file lacks name",
        "seeds.1 is '2'; expected a whole number",
        "parts.x is []; expected an object",
    ]
