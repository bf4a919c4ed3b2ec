import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_mrpc.train import main


def logged(folder: Path) -> dict[str, list[float]]:
    """The scalars of one directory, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("seeds", [["--seed", "3"], ["--seeds", "3,5"]])
def test_tensorboard_logs_of_each_training_are_beside_its_run(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, seeds: list[str]
) -> None:
    flags = ["--model", tiny_bert, "--method", "linear_probe", "--num_train_epochs", "2"]
    flags += ["--logging_steps", "1", "--eval_strategy", "epoch"]
    flags += ["--save_strategy", "no", "--per_device_train_batch_size", "4"]
    out = tmp_path / "runs" / "probe"
    main([*flags, *data_flags, *seeds, "--report_to", "tensorboard", "--output_dir", str(out)])
    trainings = sorted((tmp_path / "runs").rglob("tensorboard/*/seed-*"))
    assert [path.name.rsplit("-", 1)[0] for path in trainings] == (
        ["seed-3"] if len(seeds[1]) == 1 else ["seed-3", "seed-5"]
    )
    for folder in trainings:
        scalars = logged(folder)
        assert len(scalars["train/loss"]) > 2 and len(scalars["eval/accuracy"]) == 2
    assert not list(out.rglob("checkpoints/**/events.out*"))


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_an_error(
    tiny_bert: str,
    data_flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
    name: str,
) -> None:
    # As on a machine without it, whatever this one has: transformers looks for it by this.
    seek = importlib.util.find_spec
    monkeypatch.setattr(
        *(importlib.util, "find_spec"),
        lambda sought, *rest: None if sought == name else seek(sought, *rest),
    )
    flags = ["--model", tiny_bert, "--method", "linear_probe", *data_flags]
    message = fails(main, *flags, "--report_to", name, "--output_dir", str(tmp_path / "run"))
    assert f"requires {name} to be installed. Run `pip install {name}`." in message
    assert not (tmp_path / "run").exists()


def test_the_environment_variable_takes_precedence(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    flags = ["--model", tiny_bert, "--method", "linear_probe", "--max_steps", "2"]
    flags += ["--logging_steps", "1", "--report_to", "tensorboard"]
    main([*flags, *data_flags, "--output_dir", str(tmp_path / "run")])
    assert len(logged(tmp_path / "mine")["train/loss"]) == 2
    assert not (tmp_path / "tensorboard").exists()
