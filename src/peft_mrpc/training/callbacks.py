"""Callbacks of the Trainer: attention, logged metrics, progress bar; TensorBoard directories."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from peft_mrpc.errors import UserError, one_line
from peft_mrpc.interop.transformers_internals import attn_implementation

logger = logging.getLogger(__name__)

LOGGING_DIR = "TENSORBOARD_LOGGING_DIR"


class ContextCallback(TrainerCallback):
    """Train within context managers that change how the model computes.

    Evaluations during the training are part of it: frozen layers, training steps and evaluations
    compute the same.

    Args:
        contexts: Return a context manager for the model each.
    """

    def __init__(
        self, contexts: Sequence[Callable[[Any], contextlib.AbstractContextManager[None]]]
    ) -> None:
        self.contexts = contexts
        self._entered = contextlib.ExitStack()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.restore()  # the Trainer begins again with smaller batches (auto_find_batch_size)
        for enter in self.contexts:
            self._entered.enter_context(enter(kwargs["model"]))

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Compute as before the training."""
        self._entered.close()


class LogMetricsCallback(TrainerCallback):
    """Log losses, learning rates and evaluation metrics as the training computes them."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or not state.is_world_process_zero or "train_runtime" in logs:
            return
        texts = [
            f"{name} {value:.4g}"
            for name, value in logs.items()
            if name != "epoch" and isinstance(value, int | float)
        ]
        logger.info("epoch %.2f: %s", state.epoch or 0, ", ".join(texts))


class ProgressBarCallback(ProgressCallback):
    """The Trainer's progress bar."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: transformers prints the metrics here."""


def log_instead_of_printing(trainer: Trainer) -> None:
    """Log the metrics that transformers' callbacks print."""
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(ProgressBarCallback)
    trainer.add_callback(LogMetricsCallback)


@contextlib.contextmanager
def attention_implementation(model: nn.Module, name: str) -> Iterator[None]:
    """Within the block the transformers models inside a module use this attention implementation.

    Raises:
        ValueError, ImportError, OSError: If one of them does not support it.
    """
    parts = _innermost_models(model)
    before = [attn_implementation(part.config) for part in parts]
    try:
        for part in parts:
            part.set_attn_implementation(name)
        yield
    finally:
        for part, implementation in zip(parts, before, strict=True):
            part.set_attn_implementation(implementation)


def _innermost_models(model: nn.Module) -> list[PreTrainedModel]:
    """The transformers models that contain no other one; wrappers have no attention layers."""
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    return [
        part
        for part in parts
        if not any(child in parts for child in part.modules() if child is not part)
    ]


def validate_attention(model: nn.Module, option: str) -> None:
    """Check that a model supports the attention implementation that was requested.

    Raises:
        UserError: If not.
    """
    reason = ""
    try:
        with attention_implementation(model, option):
            parts = _innermost_models(model)
            if any(attn_implementation(part.config) != option for part in parts):
                reason = "it has no implementation of this name"
    except (ValueError, ImportError, OSError) as error:
        reason = one_line(error)[:300]
    if reason:
        raise UserError(f"attention: got {option!r}, which the model does not support: {reason}")


@contextlib.contextmanager
def tensorboard_logs(arguments: TrainingArguments, output_dir: Path) -> Iterator[None]:
    """Within the block a new Trainer gets a TensorBoard directory beside the Run.

    The Run itself is written elsewhere and moved when it is complete, so the logs go to
    `tensorboard/<name of the Run>/seed-<seed>-<time>` beside it, where they can be watched. The
    environment variable `TENSORBOARD_LOGGING_DIR` of transformers takes precedence.
    """
    if "tensorboard" not in (arguments.report_to or ()) or os.environ.get(LOGGING_DIR):
        yield
        return
    folder = output_dir.absolute().parent / "tensorboard"
    started = time.strftime("%Y%m%dT%H%M%S")
    os.environ[LOGGING_DIR] = str(folder / output_dir.name / f"seed-{arguments.seed}-{started}")
    logger.info("watch the training with: tensorboard --logdir %s", folder)
    try:
        yield
    finally:
        del os.environ[LOGGING_DIR]


@contextlib.contextmanager
def package_log_level(level: int) -> Iterator[None]:
    """Within the block this package logs messages of this level and above."""
    package = logging.getLogger("peft_mrpc")
    level_before = package.level
    package.setLevel(level)
    try:
        yield
    finally:
        package.setLevel(level_before)
