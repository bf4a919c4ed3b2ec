"""A training goes on from a checkpoint only as the training that wrote it would have."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_mrpc.runs.run import load_run
from peft_mrpc.train import main
from peft_mrpc.training.checkpoints import (
    FINGERPRINT_FILE,
    RESUME_CRITICAL_OPTIONS,
    STATE_FILE,
    TRAINED_FILE,
)

Fails = Callable[..., str]
STEP = 3  # of six: the end of the first of two epochs


@pytest.fixture(scope="module")
def words(tiny_bert: str, pair_files: dict[str, str]) -> list[str]:
    data = ["--train_file", pair_files["train"], "--validation_file", pair_files["validation"]]
    flags = ["--method", "lora", "--model", tiny_bert, *data, "--num_train_epochs", "2"]
    return [*flags, "--per_device_train_batch_size", "6", "--save_strategy", "epoch"]


@pytest.fixture(scope="module")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resuming") / "run"
    main([*words, "--output_dir", str(folder)])
    return folder


@pytest.fixture
def checkpoint(finished: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    folder = tmp_path / f"checkpoint-{STEP}"
    shutil.copytree(finished / "checkpoints" / folder.name, folder)
    return folder


def resume(checkpoint: Path, output_dir: Path) -> list[str]:
    return ["--resume_from_checkpoint", str(checkpoint), "--output_dir", str(output_dir)]


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--learning_rate", "1e-7"], "--learning_rate: got 1e-07, but {} was trained with 0.0005"),
        (["--head_learning_rate", "0.1"], "--head_learning_rate: got 0.1, but {}"),
        (["--optim", "sgd"], '--optim: got "sgd", but {} was trained with "adamw_torch_fused"'),
        (["--layer_decay", "0.9"], "--layer_decay: got 0.9, but {} was trained with nothing"),
        (["--lora_alpha", "64"], "--lora_alpha: got 64, but {}"),
        (["--seed", "7"], "--seed: got 7, but {} was trained with 42"),
        (["--swap_sentences", "false"], '--swap_sentences: got "false", but {}'),
        (["--max_train_samples", "12"], "which was trained on other examples than the 12 of"),
        (["--early_stopping_patience", "1"], "{} was trained with none"),
        (["--num_train_epochs", "0.5"], "num_train_epochs: got 0.5, but {} is at epoch 1"),
        (["--max_steps", "2"], "max_steps: got 2, but {} is at step 3"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry_run"]], ids=["train", "dry_run"])
def test_what_another_training_wrote_is_refused(
    flags: list[str],
    fault: str,
    more: list[str],
    words: list[str],
    checkpoint: Path,
    tmp_path: Path,
    fails: Fails,
) -> None:
    message = fails(main, *words, *flags, *more, *resume(checkpoint, tmp_path / "on"))
    assert fault.format(checkpoint) in message
    assert not (tmp_path / "on").exists()


def test_all_differences_are_reported_together(
    words: list[str], checkpoint: Path, tmp_path: Path, fails: Fails
) -> None:
    flags = ["--seed", "7", "--lora_alpha", "64", "--max_train_samples", "12"]
    message = fails(main, *words, *flags, *resume(checkpoint, tmp_path / "on"))
    assert [message.count(f"{name}: got") for name in ("--seed", "--lora_alpha")] == [1, 1]
    assert "other examples" in message


@pytest.mark.parametrize(
    "name",
    [STATE_FILE, FINGERPRINT_FILE, TRAINED_FILE, "optimizer.pt", "scheduler.pt", "rng_state.pth"],
)
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_file_that_is_cut_short_is_named(
    name: str, share: float, words: list[str], checkpoint: Path, tmp_path: Path, fails: Fails
) -> None:
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: int(share * len(content))])
    message = fails(main, *words, *resume(checkpoint, tmp_path / "on"))
    assert f"got {str(checkpoint)!r}, whose {name} is damaged" in message
    assert not (tmp_path / "on").exists()


def test_a_checkpoint_that_does_not_say_what_it_is_of_is_refused(
    words: list[str], checkpoint: Path, tmp_path: Path, fails: Fails
) -> None:
    (checkpoint / FINGERPRINT_FILE).unlink()
    message = fails(main, *words, *resume(checkpoint, tmp_path / "on"))
    assert f"{checkpoint}: has no {FINGERPRINT_FILE}; expected a checkpoint written by" in message


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
def test_a_checkpoint_of_the_model_alone_is_refused(
    name: str, words: list[str], checkpoint: Path, tmp_path: Path, fails: Fails
) -> None:
    (checkpoint / name).unlink()
    message = fails(main, *words, "--dry_run", *resume(checkpoint, tmp_path / "on"))
    assert f"which has no {name}; expected a complete checkpoint" in message


def test_another_patience_and_another_number_of_processes_are_refused(
    words: list[str], checkpoint: Path, tmp_path: Path, fails: Fails
) -> None:
    state = json.loads((checkpoint / STATE_FILE).read_text("utf-8"))
    state["stateful_callbacks"]["EarlyStoppingCallback"] = {"args": {"early_stopping_patience": 2}}
    (checkpoint / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    flags = [*words, "--dry_run", *resume(checkpoint, tmp_path / "on")]
    message = fails(main, *flags, "--early_stopping_patience", "1")
    assert "--early_stopping_patience: got 1, but" in message and "trained with 2" in message
    about = json.loads((checkpoint / FINGERPRINT_FILE).read_text("utf-8"))
    about["flags"]["num_processes"] = 2
    (checkpoint / FINGERPRINT_FILE).write_text(json.dumps(about), encoding="utf-8")
    message = fails(main, *flags)
    assert f"num_processes: got 1, but {checkpoint} was trained with 2" in message


def test_a_default_that_is_spelt_out_is_the_same(
    words: list[str], checkpoint: Path, tmp_path: Path
) -> None:
    flags = ["--bias", "none", "--dry_run"]  # PEFT's own, of which the recipe says nothing
    main([*words, *flags, *resume(checkpoint, tmp_path / "on")])


def test_a_run_is_not_replaced_while_it_is_gone_on_from(
    words: list[str], finished: Path, fails: Fails
) -> None:
    checkpoint = finished / "checkpoints" / f"checkpoint-{STEP}"
    message = fails(main, *words, *resume(checkpoint, finished), "--overwrite")
    assert f"which contains the checkpoint {checkpoint}" in message and checkpoint.is_dir()


def test_more_epochs_and_another_way_of_watching_go_on(
    words: list[str], checkpoint: Path, tmp_path: Path
) -> None:
    flags = ["--num_train_epochs", "3", "--save_strategy", "no", "--threshold", "0.4"]
    main([*words, *flags, *resume(checkpoint, tmp_path / "on")])
    last = load_run(tmp_path / "on").record["log_history"][-1]
    assert (last["step"], last["epoch"]) == (9, 3)


def test_every_flag_that_decides_is_one(finished: Path) -> None:
    # A flag that had another name would be compared with itself: nothing with nothing.
    config = load_run(finished).record["config"]
    assert set(RESUME_CRITICAL_OPTIONS) <= config.keys()
    checkpoint = finished / "checkpoints" / f"checkpoint-{STEP}"
    about = json.loads((checkpoint / FINGERPRINT_FILE).read_text("utf-8"))
    assert about["flags"]["learning_rate"] == config["learning_rate"]
    assert about["train"] == load_run(finished).record["data"]["splits"]["train"]["fingerprint"]
