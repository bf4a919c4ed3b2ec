"""Checkpoints that give back exactly the model that was saved, whatever the method.

PEFT saves of a prompt only what its encoder computes. The Trainer, taking that for the encoder,
goes on from (or ends with) another model for p-tuning and fails for projected prefix tuning
(github.com/huggingface/peft/issues/2256). So each checkpoint also holds all that trains.
"""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_mrpc.errors import UserError, logger, one_line
from peft_mrpc.training.optimizer_faults import parts_layers

TRAINED_FILE = "trained.safetensors"
ABOUT_FILE = "training.json"
STATE_FILE = "trainer_state.json"


def checkpoint_faults(
    folder: Path, arguments: TrainingArguments, patience: int | None
) -> list[str]:
    """What is wrong with a checkpoint to go on from, as far as its files say.

    Args:
        folder: The checkpoint.
        arguments: Of the training that is to go on.
        patience: Its evaluations without progress before it stops; None for no early stopping.
    """
    where = f"--resume_from_checkpoint: got {str(folder)!r}"
    if not (folder / STATE_FILE).is_file():
        return [f"{where}, which holds no {STATE_FILE}; expected a directory checkpoint-N."]
    try:
        state = json.loads((folder / STATE_FILE).read_text("utf-8"))
        step, epoch = int(state["global_step"]), float(state["epoch"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        return [_damaged(folder, STATE_FILE, error)]
    faults = _file_faults(folder)
    if not parts_layers(arguments):  # whose shards have other names
        faults += [
            f"{where}, which holds no {name}, without which a training does not go on as it was; "
            "expected a checkpoint that was saved without --save_only_model."
            for name in ("optimizer.pt", "scheduler.pt")
            if not (folder / name).exists()
        ]
    if 0 < arguments.max_steps < step:
        faults.append(f"--max_steps: got {arguments.max_steps}, but {folder} has trained {step}.")
    if arguments.max_steps <= 0 and epoch > arguments.num_train_epochs:
        faults.append(
            f"--num_train_epochs: got {arguments.num_train_epochs:g}, but {folder} has trained "
            f"{epoch:g}; expected as many or more."
        )
    kept = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {}).get("args", {})
    if patience is not None and patience != (before := kept.get("early_stopping_patience")):
        faults.append(
            f"--early_stopping_patience: got {patience}, but {folder} was trained with "
            f"{before or 'none'}, by which it has counted; expected the same."
        )
    return faults


def _file_faults(folder: Path) -> list[str]:
    """Which files of a checkpoint are cut short."""
    faults = []
    # An archive has its table at its end: one that is cut short is none.
    for path in sorted([*folder.glob("*.pt"), *folder.glob("*.pth")]):
        if not zipfile.is_zipfile(path):
            faults.append(_damaged(folder, path.name, "it is no archive, or not a whole one"))
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            faults.append(_damaged(folder, path.name, error))
    return faults


def _damaged(folder: Path, name: str, reason: object) -> str:
    said = one_line(reason) if isinstance(reason, Exception) else reason
    return (
        f"--resume_from_checkpoint: got {str(folder)!r}, whose {name} is damaged ({said}); "
        "expected the whole of it. Go on from an earlier checkpoint."
    )


def read_about(folder: Path) -> dict[str, Any]:
    """Which training a checkpoint is of.

    Raises:
        UserError: If it does not say.
    """
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT_FILE).read_text("utf-8"))
        if not {"flags", "train"} <= about.keys():
            raise ValueError("it says nothing of a training")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: holds no {ABOUT_FILE}; expected a checkpoint written by this peft-mrpc."
        ) from error
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(_damaged(folder, ABOUT_FILE, error)) from error
    return about


def save_trained(model: nn.Module, names: Sequence[str], folder: Path) -> None:
    """Write the parameters of these names."""
    parameters = dict(model.named_parameters())
    tensors = {name: parameters[name].detach().cpu().contiguous() for name in names}
    save_file(tensors, folder / TRAINED_FILE)


def load_trained(model: nn.Module, names: Sequence[str], folder: Path) -> None:
    """Set the parameters of these names to what a checkpoint holds.

    Raises:
        UserError: If it holds none, or those of another method or model.
    """
    if not (folder / TRAINED_FILE).is_file():
        raise UserError(
            f"{folder}: holds no {TRAINED_FILE}; expected a checkpoint written by this peft-mrpc."
        )
    stored = load_file(folder / TRAINED_FILE)
    own = {name: tensor for name, tensor in model.named_parameters() if name in set(names)}
    others = sorted(
        name for name in {*own, *stored} if _shape(own.get(name)) != _shape(stored.get(name))
    )
    if others:
        raise UserError(
            f"{folder}: was written by another method, model or option ({others[0]} differs); "
            "expected a checkpoint of the same."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(stored[name])


def _shape(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else (tensor.shape, tensor.dtype)


class CheckpointMetadata(TrainerCallback):
    """Write down which training a checkpoint is of.

    Args:
        about: Gives what is to be read again by `read_about`; asked where a checkpoint is saved
            alone, for it reads all pairs.
    """

    def __init__(self, about: Callable[[], Mapping[str, Any]]) -> None:
        self.about = about

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.should_save:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            text = json.dumps(self.about(), indent=1) + "\n"
            (folder / ABOUT_FILE).write_text(text, encoding="utf-8")


class RelocateBestCheckpoint(TrainerCallback):
    """Find the best checkpoint so far when a training goes on from another one.

    Its path was written down while the Run was being built; a finished Run has moved since, and
    the Trainer forgets a best checkpoint that is gone, to end with the last model instead.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        resumed = args.resume_from_checkpoint
        if not (args.load_best_model_at_end and resumed and state.best_global_step):
            return
        if state.best_model_checkpoint is not None:
            return
        beside = Path(resumed).parent / f"checkpoint-{state.best_global_step}"
        if not beside.is_dir():
            raise UserError(
                f"--resume_from_checkpoint: got {resumed!r}, whose best checkpoint so far is "
                f"{beside.name}, which is not beside it; expected both."
            )
        state.best_model_checkpoint = str(beside)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            logger.warning(
                "--load_best_model_at_end: the training ended before its first evaluation, and so "
                "with its last model; lower --eval_delay"
            )
