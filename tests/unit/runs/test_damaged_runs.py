"""Damaged Runs give one clear line and no comparison."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from example_runs import SCORES, build_run

from peft_mrpc.errors import UserError
from peft_mrpc.report.comparison import build_comparison
from peft_mrpc.runs.run import CONSTRAINTS, load_run, read_artifact_record, schema_faults
from peft_mrpc.serialization import read_asset


def compare_with(other: Path, path: Path) -> str:
    """The error of a comparison."""
    with pytest.raises(UserError) as raised:
        build_comparison([load_run(other), load_run(path)])
    (line,) = raised.value.lines()
    return line


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("run.json", lambda c: c.update(data=None), "data is null; expected object"),
        ("run.json", lambda c: c["data"].pop("splits"), "data lacks splits"),
        (
            "run.json",
            lambda c: c["data"]["splits"]["test"].pop("fingerprint"),
            "data.splits.test lacks fingerprint",
        ),
        (
            "run.json",
            lambda c: c["data"].update(label_names=["not_equivalent", 0]),
            "data.label_names.1 is 0; expected string",
        ),
        (
            "run.json",
            lambda c: c["timing"].update(score_pairs_per_second="fast"),
            'timing.score_pairs_per_second is "fast"; expected number',
        ),
        ("run.json", lambda c: c["data"]["splits"].pop("test"), "run.json has no split 'test'"),
        ("metrics.json", lambda c: c.update(test=None), "test is null; expected object"),
        (
            "metrics.json",
            lambda c: c["test"].update(accuracy=True),
            "test.accuracy is true; expected number",
        ),
        ("metrics.json", lambda c: c["test"]["f1"].pop("equivalent"), "test.f1 lacks equivalent"),
        (
            "metrics.json",
            lambda c: c["test"].update(accuracy=float("nan")),
            "test.accuracy is NaN; expected number",
        ),
        (
            "metrics.json",
            lambda c: c["test"].update(ece=1.5),
            "test.ece is 1.5; expected at most 1",
        ),
        (
            "metrics.json",
            lambda c: c["test"].update(confusion_matrix=[[1]]),
            "test.confusion_matrix has another size than 2 labels",
        ),
        (
            "run.json",
            lambda c: c["data"].update(label_names=["yes", "yes"]),
            'data.label_names is ["yes", "yes"]; expected different values',
        ),
        ("run.json", lambda c: c.update(seed=10**400), "seed is 1000000000"),
        ("run.json", lambda c: c.update(threshold=float("inf")), "threshold is Infinity; expected"),
        ("metrics.json", lambda c: c["test"].update(accuracy=0.9), "metrics.json has 0.9000"),
    ],
)
def test_the_message_names_the_place_of_the_fault(
    tmp_path: Path, file: str, change: Callable[[Any], None], message: str
) -> None:
    other, run = build_run(tmp_path / "a", SCORES["a"]), build_run(tmp_path / "b", SCORES["b"])
    content = json.loads((run.path / file).read_text())
    change(content)
    (run.path / file).write_text(json.dumps(content))
    line = compare_with(other.path, run.path)
    assert message in line and str(tmp_path / "b") in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"probabilities": {"equivalent": float("nan"), "not_equivalent": 0.1}},
            "row 1: probabilities.equivalent is NaN; expected number",
        ),
        (
            {"probabilities": {"equivalent": 0.7, "not_equivalent": 0.7}},
            "1 with sum 1",
        ),
        ({"probabilities": [0.5, 0.5]}, "row 1: probabilities is [0.5, 0.5]; expected object"),
        ({"probabilities": {"equivalent": -0.2, "not_equivalent": 1.2}}, "row 1 has prob"),
        ({"sentence1": None}, "row 1: sentence1 is null; expected string"),
        ({"prediction": "maybe"}, "unknown label 'maybe'"),
        ({"label": "not_equivalent"}, "row 1 has another label in "),
        ({"idx": 7}, "5 rows, expected rows 0 to 4 in order"),
        ({"prediction": "equivalent"}, "its accuracy is 1.0000, metrics.json has 0.8000"),
    ],
)
def test_invalid_predictions_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    other, run = build_run(tmp_path / "a", SCORES["a"]), build_run(tmp_path / "b", SCORES["b"])
    path = run.path / "predictions" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1].update(change)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert message in compare_with(other.path, run.path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"3\n3\n3\n3\n3\n", b'{"idx": 0'])
def test_an_unreadable_predictions_file_gives_one_line(tmp_path: Path, content: bytes) -> None:
    other, run = build_run(tmp_path / "a", SCORES["a"]), build_run(tmp_path / "b", SCORES["b"])
    (run.path / "predictions" / "test.jsonl").write_bytes(content)
    assert "test.jsonl: damaged: " in compare_with(other.path, run.path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    other, run = build_run(tmp_path / "a", SCORES["a"]), build_run(tmp_path / "b", SCORES["b"])
    (run.path / "predictions" / "test.jsonl").unlink()
    assert "has no predictions of split 'test'" in compare_with(other.path, run.path)
    (run.path / "metrics.json").unlink()
    assert "metrics.json: no such file" in compare_with(other.path, run.path)


def test_all_faults_of_a_file_are_listed() -> None:
    content = {"test": {"num_examples": "5", "f1": {"yes": 1.0, "no": None}, "accuracy": 0.5}}
    assert schema_faults(content, "metrics") == [
        "test lacks majority_accuracy, macro_f1, mcc, roc_auc, average_precision, brier, ece, "
        "confusion_matrix",
        "test.f1.no is null; expected number",
        'test.num_examples is "5"; expected integer',
    ]
    assert schema_faults([], "run") == ["the content is []; expected object"]


def test_the_schemas_are_valid_and_describe_the_written_files(tmp_path: Path) -> None:
    run = build_run(tmp_path / "a", SCORES["a"])
    schema = json.loads(read_asset("assets/run.schema.json"))
    for definition in schema["$defs"].values():
        jsonschema.Draft202012Validator.check_schema(definition)
    for name in ("run", "metrics"):
        assert schema_faults(json.loads((run.path / f"{name}.json").read_text()), name) == []


ARTIFACT = {
    **{"format_version": 1, "model": "m", "base_model_id": None, "method": "lora"},
    **{"label_names": ["no", "yes"], "max_length": 128, "threshold": 0.5, "files": ["w.bin"]},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": float("nan")}, "threshold is NaN; expected number"),
        ({"threshold": 2}, "threshold is 2; expected at most 1"),
        ({"label_names": ["yes", "yes"]}, "expected different values"),
        ({"label_names": ["yes"]}, "expected at least 2 values"),
        ({"max_length": 7}, "max_length is 7; expected at least 8"),
        ({"max_length": "128"}, 'max_length is "128"; expected integer'),
        ({"max_length": 10**30}, "max_length is 1000000000"),
        ({"files": ["gone.bin"]}, "gone.bin is missing"),
        *(
            ({"files": [name]}, f'files.0 is "{name}"; expected a file inside of the folder')
            for name in ("../w.bin", "/etc/hostname", ".env", "a/../../b", "a/.env", "")
        ),
        ({"format_version": 2}, "got format 2; this version of peft-mrpc reads formats up to 1"),
    ],
)
def test_a_damaged_description_of_a_model_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(b"")
    file = tmp_path / "peft_mrpc.json"
    file.write_text(json.dumps(ARTIFACT))
    assert read_artifact_record(tmp_path) == ARTIFACT
    file.write_text(json.dumps({**ARTIFACT, **change}))
    with pytest.raises(UserError) as caught:
        read_artifact_record(tmp_path)
    (line,) = caught.value.lines()
    assert message in line and str(tmp_path) in line


SHOT = {"sentence1": "a", "sentence2": "b", "label": "yes"}
CALIBRATION = {
    **{"kind": "batch", "offsets": [[0.1, 0.2]], "bias": [0.0, 0.0]},
    "weights": [[[1.0, 0.0], [0.0, 1.0]]],
}


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("shot", {"label": "maybe"}, "demonstrations has the label 'maybe'; expected one of no"),
        ("shot", {"label": []}, "demonstrations.shown.0.label is []; expected string"),
        ("shot", {"more": 1}, "expected no other keys"),
        ("calibration", {"offsets": [[float("nan"), 0]]}, "calibration.offsets.0.0 is NaN"),
        ("calibration", {"offsets": [[0.1]]}, "calibration.offsets has another size than 1 temp"),
        ("calibration", {"offsets": []}, "calibration.offsets has another size"),
        ("calibration", {"weights": [[[1.0, 0.0]]]}, "calibration.weights has another size"),
        ("calibration", {"bias": "x"}, 'calibration.bias is "x"; expected array'),
        ("calibration", {"bias": [0.0]}, "calibration.bias has another size"),
        ("demonstrations", {"how": "best"}, 'demonstrations.how is "best"; expected one of'),
    ],
)
def test_a_damaged_hard_prompt_is_refused(
    part: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    parts: dict[str, dict[str, Any]] = {"shot": SHOT, "calibration": CALIBRATION}
    parts["demonstrations"] = {"count": 1, "how": "first"}

    def write() -> None:
        content = {**ARTIFACT, "files": [], "templates": [{}], "calibration": parts["calibration"]}
        content["demonstrations"] = {**parts["demonstrations"], "shown": [parts["shot"]]}
        (tmp_path / "peft_mrpc.json").write_text(json.dumps(content))

    write()
    assert read_artifact_record(tmp_path)["calibration"] == CALIBRATION
    parts[part] = {**parts[part], **change}
    write()
    with pytest.raises(UserError) as caught:
        read_artifact_record(tmp_path)
    (line,) = caught.value.lines()
    assert message in line


def test_every_constraint_of_the_schema_has_a_text() -> None:
    texts = {"type", "required", *CONSTRAINTS}
    annotations = {"title", "description", "properties", "items"}

    def check(schema: dict[str, Any]) -> None:
        assert schema.keys() <= {*texts, *annotations}
        parts = [*schema.get("properties", {}).values(), schema.get("items")]
        for part in [*parts, schema.get("additionalProperties")]:
            if isinstance(part, dict):
                check(part)

    for definition in json.loads(read_asset("assets/run.schema.json"))["$defs"].values():
        check(definition)
