"""Checkpoints that give back exactly the model that was saved, whatever the method.

PEFT saves of a prompt only what its encoder computes. The Trainer, taking that for the encoder,
goes on from (or ends with) another model for p-tuning and fails for projected prefix tuning
(github.com/huggingface/peft/issues/2256). So each checkpoint also holds all that trains.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_mrpc.errors import UserError, logger

TRAINED_FILE = "trained.safetensors"


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


class FindBestAgain(TrainerCallback):
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
