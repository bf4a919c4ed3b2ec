import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from peft_mrpc.data.examples import Example
from peft_mrpc.errors import UserError
from peft_mrpc.runs.run import load_run, write_predictions
from peft_mrpc.runs.staging import check_output_dir, staged_directory
from peft_mrpc.serialization import read_json_lines


def fake_run(path: Path, content: str = "old") -> Path:
    path.mkdir()
    (path / "run.json").write_text(content)
    return path


def test_sentences_may_hold_what_ends_a_line_elsewhere(tmp_path: Path) -> None:
    pairs = [Example(0, "one\u2028two\x85three\x0b", "four\u2029\x1c", 1), Example(1, "a", "b", 0)]
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4]])
    path = tmp_path / "predictions" / "test.jsonl"
    write_predictions(path, pairs, np.array([1, 0]), probabilities, ["no", "yes"])
    rows = read_json_lines(path)
    assert [row["sentence1"] for row in rows] == [pair.sentence1 for pair in pairs]
    assert [row["prediction"] for row in rows] == ["yes", "no"]


def test_a_run_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with pytest.raises(RuntimeError), staged_directory(target) as staging:
        (staging / "run.json").write_text("half")
        raise RuntimeError("the power went")
    assert list(tmp_path.iterdir()) == []
    with staged_directory(target) as staging:
        (staging / "run.json").write_text("whole")
        assert not target.exists()
    assert (target / "run.json").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_old_run_goes_only_when_the_new_one_is_there(tmp_path: Path) -> None:
    target = fake_run(tmp_path / "run")
    with pytest.raises(RuntimeError), staged_directory(target):
        raise RuntimeError
    assert (target / "run.json").read_text() == "old"
    with staged_directory(target) as staging:
        (staging / "run.json").write_text("new")
    assert (target / "run.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_checkpoints_outlive_a_failure_and_are_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught, staged_directory(tmp_path / "run") as staging:
        (staging / "checkpoints" / "checkpoint-5").mkdir(parents=True)
        raise RuntimeError
    assert (staging / "checkpoints" / "checkpoint-5").is_dir()
    assert str(staging) in caught.value.__notes__[0]


def test_nothing_is_overwritten_unasked_and_no_strangers_files_ever(tmp_path: Path) -> None:
    check_output_dir(tmp_path / "new", overwrite=False)
    run = fake_run(tmp_path / "run")
    with pytest.raises(UserError, match="already holds a Run"):
        check_output_dir(run, overwrite=False)
    check_output_dir(run, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    (tmp_path / "other" / "run.json").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds what is no Run's \(thesis\.txt\)"):
            check_output_dir(tmp_path / "other", overwrite)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in"):
        check_output_dir(tmp_path / "file" / "run", overwrite=False)
    with pytest.raises(UserError, match="a file; expected a directory"):
        check_output_dir(tmp_path / "file", overwrite=False)


def test_what_was_trained_outlives_a_later_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught, staged_directory(tmp_path / "run") as staging:
        (staging / "model").mkdir()
        raise RuntimeError("no space left for the plots")
    assert (staging / "model").is_dir()
    assert str(staging / "model") in caught.value.__notes__[0]


def test_damaged_predictions_are_refused(trained_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained_run, copy)
    path = copy / "predictions" / "validation.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for damaged in (lines[:4], lines[::-1], []):
        path.write_text("".join(damaged))
        with pytest.raises(UserError, match="damaged"):
            load_run(copy).predictions("validation")


def test_predictions_keep_order_and_leave_unknown_labels_out(tmp_path: Path) -> None:
    pairs = [Example(0, "a", "b", 1), Example(1, "c", "d")]
    path = tmp_path / "predictions" / "test.jsonl"
    scores = np.array([[0.25, 0.75], [0.5, 0.5]])
    write_predictions(path, pairs, np.array([1, 0]), scores, ["no", "yes"])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {
            **{"idx": 0, "sentence1": "a", "sentence2": "b", "label": "yes", "prediction": "yes"},
            "probabilities": {"no": 0.25, "yes": 0.75},
        },
        {
            **{"idx": 1, "sentence1": "c", "sentence2": "d", "prediction": "no"},
            "probabilities": {"no": 0.5, "yes": 0.5},
        },
    ]


def test_what_is_no_run_is_refused_with_the_reason(tmp_path: Path, trained_run: Path) -> None:
    with pytest.raises(UserError, match="is no directory.*Did you mean 'layer_freeze'"):
        load_run(trained_run.parent / "layer_freez")
    with pytest.raises(UserError, match=r"holds no run\.json"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format_version": 99}')
    with pytest.raises(UserError, match="got format 99"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("{oops")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_run(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux's figure")
def test_peak_memory_is_not_that_of_the_process_which_started_this_one() -> None:
    held = bytearray(b"1") * (1 << 30)
    code = "from peft_mrpc.environment import peak_memory; print(peak_memory()['resident_bytes'])"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(said.stdout) < len(held)
