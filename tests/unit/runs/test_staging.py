import json
import shutil
from pathlib import Path

import pytest
from example_runs import SCORES, build_run

from peft_mrpc.errors import TrainingDiverged, UserError
from peft_mrpc.runs.run import load_run
from peft_mrpc.runs.staging import check_output_dir, exclusive, staged_directory, staged_file


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
    target = build_run(tmp_path / "run", SCORES["a"]).path
    with pytest.raises(RuntimeError), staged_directory(target, overwrite=True):
        raise RuntimeError
    assert load_run(target).metrics["test"]["accuracy"] == 0.8
    with staged_directory(target, overwrite=True) as staging:
        (staging / "run.json").write_text("new")
    assert (target / "run.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_only_whole_checkpoints_are_said_to_be_kept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught, staged_directory(tmp_path / "run") as staging:
        checkpoint = staging / "checkpoints" / "checkpoint-5"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").touch()
        raise RuntimeError
    assert checkpoint.is_dir()
    assert str(staging) in caught.value.__notes__[0]
    with pytest.raises(RuntimeError) as caught, staged_directory(tmp_path / "torn") as staging:
        (staging / "checkpoints" / "checkpoint-5").mkdir(parents=True)
        raise RuntimeError
    assert not staging.exists() and not hasattr(caught.value, "__notes__")


def test_an_attempt_with_the_same_key_uses_the_same_directory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged_directory(tmp_path / "run", key="a1") as first:
        (first / "checkpoints" / "checkpoint-5").mkdir(parents=True)
        (first / "checkpoints" / "checkpoint-5" / "trainer_state.json").touch()
        raise RuntimeError
    with staged_directory(tmp_path / "run", key="b2") as other:
        assert other != first
    assert (first / "checkpoints" / "checkpoint-5").is_dir()
    with staged_directory(tmp_path / "run", key="a1") as again:
        assert again == first
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-5").is_dir()


def test_checkpoints_of_a_diverged_training_are_removed(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged), staged_directory(tmp_path / "run", key="a1") as staging:
        (staging / "checkpoints" / "checkpoint-5").mkdir(parents=True)
        raise TrainingDiverged
    assert list(tmp_path.iterdir()) == []


def test_only_runs_are_overwritten_and_only_with_overwrite(tmp_path: Path) -> None:
    check_output_dir(tmp_path / "new", overwrite=False)
    run = build_run(tmp_path / "run", SCORES["a"]).path
    with pytest.raises(UserError, match="already holds a Run; choose another directory"):
        check_output_dir(run, overwrite=False)
    check_output_dir(run, overwrite=True)
    shutil.copytree(run, run / "seed_3")
    check_output_dir(run, overwrite=True)
    (run / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"files that do not belong to a Run \(thesis\.txt\)"):
            check_output_dir(run, overwrite)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("README.md", "mine", "which has no run.json; expected a Run)"),
        ("run.json", '{"name": "my project"}', "run.json: damaged: the content lacks"),
        ("run.json", "[]", "run.json: damaged: the content is []; expected object"),
        ("metrics.json", "{}", "which has no run.json"),
    ],
)
def test_a_directory_with_the_names_of_a_run_is_not_a_run(
    file: str, content: str, reason: str, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    (project / "model").mkdir(parents=True)
    (project / "model" / "weights.bin").write_text("precious")
    (project / file).write_text(content)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="which holds files but not a Run; expected") as caught:
            check_output_dir(project, overwrite)
        (line,) = caught.value.lines()
        assert reason in line


def test_directories_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    cases = {
        "file/run": "cannot write in",
        "file": "a file; expected a directory",
        "link": "a symbolic link to .*gone, which does not exist",
        "x" * 300: "cannot write there: File name too long",
        # Long enough for the directory, but not for its hidden names.
        "x" * 253: "cannot write in .*: File name too long",
        "a\0b": "cannot write there: ",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            check_output_dir(tmp_path / name, overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_symbolic_link_stays_and_its_directory_is_written(tmp_path: Path) -> None:
    (tmp_path / "disk" / "big").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "big")
    with staged_directory(tmp_path / "run") as staging:
        (staging / "run.json").write_text("whole")
        assert staging.parent == tmp_path / "disk"
    assert (tmp_path / "disk" / "big" / "run.json").read_text() == "whole"
    assert (tmp_path / "run").is_symlink()


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_a_trained_model_survives_a_later_failure_if_it_is_whole(name: str, tmp_path: Path) -> None:
    for is_whole in (True, False):
        with pytest.raises(RuntimeError) as caught, staged_directory(tmp_path / "run") as staging:
            (staging / name).mkdir()
            (staging / name / "README.md").write_text("")
            if is_whole:
                record = {"format_version": 1, "model": "m", "base_model_id": None}
                record |= {"method": "lora", "label_names": ["a", "b"], "max_length": 8}
                (staging / name / "peft_mrpc.json").write_text(json.dumps(record))
            raise RuntimeError("no space left on device")
        assert staging.exists() == is_whole
        notes = getattr(caught.value, "__notes__", [])
        assert (
            notes
            == [f"The trained model is kept in {staging / name}; `predict` can load it."][
                : int(is_whole)
            ]
        )


def test_the_second_of_two_writers_is_refused_at_once(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "run") as staging:
        (staging / "run.json").write_text("first")
        with (
            pytest.raises(UserError, match="output_dir: got .* which another command is writing"),
            staged_directory(tmp_path / "run"),
        ):
            pytest.fail("both write")
    assert (tmp_path / "run" / "run.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="already holds a Run") as caught,
        staged_directory(tmp_path / "run") as staging,
    ):
        (staging / "run.json").write_text("mine")
        build_run(tmp_path / "run", SCORES["a"])  # by a copy, say
    assert caught.value.__notes__ == [f"The finished Run is kept in {staging}; move it yourself."]
    assert (staging / "run.json").read_text() == "mine"
    assert load_run(tmp_path / "run").metrics["test"]["accuracy"] == 0.8


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
        pytest.raises(UserError, match="output_dir: got .*another command"),
        exclusive(tmp_path / "run"),
    ):
        pass
    with exclusive(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []
