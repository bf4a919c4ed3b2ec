from pathlib import Path

import pytest

from peft_mrpc.errors import TrainingDiverged, UserError
from peft_mrpc.runs.staging import check_output_dir, exclusive, staged_directory, staged_file


def fake_run(path: Path, content: str = "old") -> Path:
    path.mkdir()
    (path / "run.json").write_text(content)
    return path


def test_a_directory_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with pytest.raises(RuntimeError), staged_directory(target) as staging:
        (staging / "run.json").write_text("half")
        raise RuntimeError("power failure")
    assert list(tmp_path.iterdir()) == []
    with staged_directory(target) as staging:
        (staging / "run.json").write_text("whole")
        assert not target.exists()
    assert (target / "run.json").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_old_run_is_replaced_only_by_a_complete_one(tmp_path: Path) -> None:
    target = fake_run(tmp_path / "run")
    with pytest.raises(RuntimeError), staged_directory(target):
        raise RuntimeError
    assert (target / "run.json").read_text() == "old"
    with staged_directory(target) as staging:
        (staging / "run.json").write_text("new")
    assert (target / "run.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_checkpoints_survive_a_failure_and_are_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught, staged_directory(tmp_path / "run") as staging:
        (staging / "checkpoints" / "checkpoint-5").mkdir(parents=True)
        raise RuntimeError
    assert (staging / "checkpoints" / "checkpoint-5").is_dir()
    assert str(staging) in caught.value.__notes__[0]


def test_an_attempt_with_the_same_key_uses_the_same_directory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged_directory(tmp_path / "run", "a1") as first:
        (first / "checkpoints" / "checkpoint-5").mkdir(parents=True)
        raise RuntimeError
    with staged_directory(tmp_path / "run", "b2") as other:
        assert other != first
    assert (first / "checkpoints" / "checkpoint-5").is_dir()
    with staged_directory(tmp_path / "run", "a1") as again:
        assert again == first
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-5").is_dir()


def test_checkpoints_of_a_diverged_training_are_removed(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged), staged_directory(tmp_path / "run", "a1") as staging:
        (staging / "checkpoints" / "checkpoint-5").mkdir(parents=True)
        raise TrainingDiverged
    assert list(tmp_path.iterdir()) == []


def test_only_runs_are_overwritten_and_only_with_overwrite(tmp_path: Path) -> None:
    check_output_dir(tmp_path / "new", overwrite=False)
    run = fake_run(tmp_path / "run")
    with pytest.raises(UserError, match="already holds a Run"):
        check_output_dir(run, overwrite=False)
    check_output_dir(run, overwrite=True)
    fake_run(run / "seed_3")
    check_output_dir(run, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    (tmp_path / "other" / "run.json").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"files that do not belong to a Run \(thesis\.txt\)"):
            check_output_dir(tmp_path / "other", overwrite)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in"):
        check_output_dir(tmp_path / "file" / "run", overwrite=False)
    with pytest.raises(UserError, match="a file; expected a directory"):
        check_output_dir(tmp_path / "file", overwrite=False)


def test_a_trained_model_survives_a_later_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught, staged_directory(tmp_path / "run") as staging:
        (staging / "model").mkdir()
        raise RuntimeError("no space left on device")
    assert (staging / "model").is_dir()
    assert str(staging / "model") in caught.value.__notes__[0]


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.csv"
    with staged_file(target) as staging:
        staging.write_text("first")
        assert not target.exists()
    assert target.read_text() == "first"
    with pytest.raises(RuntimeError), staged_file(target) as staging:
        staging.write_text("half")
        raise RuntimeError
    assert target.read_text() == "first" and list(target.parent.iterdir()) == [target]


def test_one_process_at_a_time_writes_a_directory(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "run"),
        pytest.raises(UserError, match="output_dir: got .*another process"),
        exclusive(tmp_path / "run"),
    ):
        pass
    with exclusive(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []
