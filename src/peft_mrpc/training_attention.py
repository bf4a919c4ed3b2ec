"""The attention that a training computes with."""

from typing import Any

from torch import nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

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
        self._is_entered = False
        self._before: dict[PreTrainedModel, str] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        self.leave()  # the Trainer may begin again with smaller batches
        if self._is_throughout:
            self._enter(model)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if not self._is_entered:
            self._enter(model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.leave()

    def rest(self) -> None:
        """Until the next step, have the attention that there was, unless this one is throughout."""
        if not self._is_throughout:
            self.leave()

    def leave(self) -> None:
        """Have the attention that there was."""
        self._is_entered = False
        for part, implementation in self._before.items():
            part.set_attn_implementation(implementation)
        self._before.clear()

    def _enter(self, model: nn.Module | None) -> None:
        assert model is not None
        self._is_entered = True
        found = [(part, self._chosen(part.config)) for part in _pretrained(model)]
        # All of them first: each hands on to those inside it.
        self._before = {part: str(part.config._attn_implementation) for part, new in found if new}
        for part, implementation in found:
            if implementation:
                part.set_attn_implementation(implementation)

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
    parts = {part: str(part.config._attn_implementation) for part in _pretrained(model)}
    try:
        for part in parts:
            part.set_attn_implementation(asked)
        reason = "" if all(p.config._attn_implementation == asked for p in parts) else "not its own"
    except (ValueError, ImportError, OSError) as error:
        reason = one_line(error)[:300]
    finally:
        for part, before in parts.items():
            part.set_attn_implementation(before)
    if reason:
        raise UserError(f"--attention: got {asked!r}, which this model cannot have: {reason}")


def _pretrained(model: nn.Module) -> list[PreTrainedModel]:
    return [part for part in model.modules() if isinstance(part, PreTrainedModel)]
