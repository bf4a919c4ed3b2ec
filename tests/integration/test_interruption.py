"""The same command continues a training that was interrupted, whatever ended it."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_mrpc import UserError
from peft_mrpc.models.classifier import Classifier
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.train import main
from peft_mrpc.training.checkpoints import STATE_FILE

PREDICTIONS = "predictions/validation.jsonl"
SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def interrupt(train_tiny: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Interrupt a training when it has saved its checkpoints; of several seeds, the last one's."""
    score = Classifier.predict_proba

    def run(*args: Any, **options: Any) -> KeyboardInterrupt:
        num_seeds = len(options.get("seeds", [42]))
        calls: list[Any] = []

        def score_or_stop(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == num_seeds:
                raise KeyboardInterrupt
            return score(*arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
            patch.setattr(Classifier, "predict_proba", score_or_stop)
            train_tiny(*args, **{**SAVING, **options})
        return caught.value

    return run


def unfinished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(".*") if path.is_dir())


def test_a_killed_training_ends_in_the_predictions_of_one_that_was_not(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--method", "p_tuning", "--num_virtual_tokens", "2", "--model", tiny_bert]
    flags += ["--max_steps", "40", "--save_strategy", "steps", "--save_steps", "1"]
    flags += ["--save_total_limit", "2", "--per_device_train_batch_size", "4", *data_flags]
    main([*flags, "--output_dir", str(tmp_path / "whole")])
    flags += ["--output_dir", str(tmp_path / "killed")]
    for step in (3, 11):
        process = subprocess.Popen(
            [sys.executable, "-m", "peft_mrpc.train", *flags], stderr=subprocess.DEVNULL
        )
        while not any(tmp_path.glob(f".killed.*/checkpoints/checkpoint-{step}")):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    (staging,) = unfinished(tmp_path)
    main(flags)
    whole, killed = (tmp_path / name / PREDICTIONS for name in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()
    assert not staging.exists()
    history = load_run(tmp_path / "killed").record["log_history"]
    assert history[-1]["step"] == 40


def test_the_newest_whole_checkpoint_is_used(
    interrupt: Any, train_tiny: Callable[..., Run], tmp_path: Path, caplog: Any
) -> None:
    whole = train_tiny("lora", "whole", **SAVING)
    error = interrupt("lora", "run")
    (staging,) = unfinished(tmp_path)
    assert error.__notes__ == [f"Checkpoints are kept in {staging}; the same command continues."]
    (staging / "checkpoints" / "checkpoint-6" / STATE_FILE).unlink()
    weights = staging / "checkpoints" / "checkpoint-4" / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    caplog.set_level(logging.INFO, "peft_mrpc")
    reporting = {"logging_steps": 1, "disable_tqdm": True, "run_name": "again"}
    run = train_tiny("lora", "run", resume_from_checkpoint="auto", **SAVING, **reporting)
    assert f"checkpoint-6: which has no {STATE_FILE}; removed" in caplog.text
    assert "checkpoint-4: whose trained.safetensors is damaged" in caplog.text
    assert "continuing the interrupted training at checkpoint-2" in caplog.text
    assert (run.path / PREDICTIONS).read_bytes() == (whole.path / PREDICTIONS).read_bytes()
    assert len(list(run.path.glob("checkpoints/checkpoint-*"))) == 3
    assert not unfinished(tmp_path)


def test_a_training_that_keeps_its_best_checkpoint_continues(
    interrupt: Any, train_tiny: Callable[..., Run], tmp_path: Path, caplog: Any
) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    options |= {"save_total_limit": 1, "learning_rate": 0.5}
    whole = train_tiny("lora", "whole", **{**SAVING, **options})
    interrupt("lora", "run", **options)
    caplog.set_level(logging.INFO, "peft_mrpc")
    run = train_tiny("lora", "run", **{**SAVING, **options})
    assert "continuing the interrupted training at checkpoint-6" in caplog.text
    assert run.record["selection"] == whole.record["selection"]
    assert (run.path / PREDICTIONS).read_bytes() == (whole.path / PREDICTIONS).read_bytes()


def test_the_checkpoints_of_another_job_are_named_and_neither_used_nor_deleted(
    interrupt: Any, train_tiny: Callable[..., Run], tmp_path: Path, caplog: Any
) -> None:
    interrupt("lora", "run")
    (staging,) = unfinished(tmp_path)
    caplog.set_level(logging.INFO, "peft_mrpc")
    train_tiny("lora", "run", learning_rate=1e-3, **SAVING)
    assert f"{staging} holds the checkpoints of an interrupted training" in caplog.text
    assert "continuing" not in caplog.text
    assert len(list(staging.glob("checkpoints/checkpoint-*"))) == 3


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_unfinished_seed_continues(
    overwrite: bool, interrupt: Any, train_tiny: Callable[..., Run], tmp_path: Path, caplog: Any
) -> None:
    if overwrite:
        train_tiny("lora", "run", seeds=[1, 2], learning_rate=1e-3)
    options = {"seeds": [1, 2], "overwrite": overwrite, **SAVING}
    whole = train_tiny("lora", "whole", **options)
    interrupt("lora", "run", **options)
    assert len(unfinished(tmp_path / "run")) == 1
    caplog.set_level(logging.INFO, "peft_mrpc")
    run = train_tiny("lora", "run", **options)
    assert "seed 1: finished before" in caplog.text
    assert "continuing the interrupted training at checkpoint-6" in caplog.text
    assert run.metrics == whole.metrics
    assert {path.name for path in run.path.iterdir()} == {"seed_1", "seed_2"}


def test_a_checkpoint_cannot_be_named_for_several_seeds(train_tiny: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match="seeds: got resume_from_checkpoint as well"):
        train_tiny("lora", seeds=[1, 2], resume_from_checkpoint="checkpoint-3")
