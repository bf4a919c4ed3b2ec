"""The attention that a training computes with."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, TrainerCallback

from peft_mrpc.errors import UserError, one_line


class TrainingAttention(TrainerCallback):
    """Another attention than the model's own while it trains.

    One that is there for its dropout alone is left to training steps: what runs frozen layers once,
    and evaluates, has no dropout, and gives what the saved model gives.

    Args:
        asked: An implementation of transformers' (`eager`, `sdpa`, ...), or `auto`: on a CPU plain
            matrix products (`eager`) in bf16, for which PyTorch's fused attention takes several
            times as long backward (2.13.0: a third of a training step of SmolLM2), and where
            attention drops out, which PyTorch does not fuse there and draws one by one
            (`dropout.py`); the model's own otherwise.
        device: Its type.
        is_bf16: Whether the training computes in bf16.
    """

    def __init__(self, asked: str, device: str, is_bf16: bool) -> None:
        self._asked, self._device, self._is_bf16 = asked, device, is_bf16
        self._is_throughout = asked != "auto" or is_bf16
        self._used: contextlib.ExitStack | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.leave()  # the Trainer may begin again with smaller batches
        if self._is_throughout:
            self.on_step_begin(*args, **kwargs)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if self._used is None:
            self._used = contextlib.ExitStack()
            self._used.enter_context(attention_of(kwargs["model"], self._chosen))

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.leave()

    def rest(self) -> None:
        """Until the next step, have the attention that there was, unless this one is throughout."""
        if not self._is_throughout:
            self.leave()

    def leave(self) -> None:
        """Have the attention that there was."""
        if self._used is not None:
            self._used.close()
            self._used = None

    def _chosen(self, config: PretrainedConfig) -> str | None:
        if self._asked != "auto":
            return self._asked
        is_plain = self._device == "cpu" and (self._is_bf16 or drops_attention(config))
        return "eager" if is_plain else None


def drops_attention(config: PretrainedConfig) -> bool:
    """Whether attention has dropout, by a name that says so (`attn_pdrop`, ...); T5's does not."""
    named = [value for name, value in vars(config).items() if "att" in name and "drop" in name]
    return any(isinstance(value, float) and value > 0 for value in named)


def check_attention(model: nn.Module, asked: str) -> None:
    """Refuse an attention that the model cannot have.

    Raises:
        UserError: With the reason.
    """
    if asked == "auto":
        return
    reason = ""
    try:
        with attention_of(model, lambda _: asked) as parts:
            if any(part.config._attn_implementation != asked for part in parts):
                reason = "not its own"
    except (ValueError, ImportError, OSError) as error:
        reason = one_line(error)[:300]
    if reason:
        raise UserError(f"--attention: got {asked!r}, which this model cannot have: {reason}")


@contextlib.contextmanager
def attention_of(
    model: nn.Module, choose: Callable[[PretrainedConfig], str | None]
) -> Iterator[list[PreTrainedModel]]:
    """Within the block a model's parts have the attention chosen by their configurations.

    Args:
        model: Holds models of transformers', or is one.
        choose: Gives an implementation; None for a part's own.
    Yields:
        The parts that it was chosen for.
    Raises:
        ValueError, ImportError, OSError: If one cannot have it.
    """
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    # All of them first: each hands on to those inside it.
    chosen = {part: name for part in parts if (name := choose(part.config)) is not None}
    before = {part: str(part.config._attn_implementation) for part in chosen}
    try:
        for part, implementation in chosen.items():
            part.set_attn_implementation(implementation)
        yield list(chosen)
    finally:
        for part, implementation in before.items():
            part.set_attn_implementation(implementation)
