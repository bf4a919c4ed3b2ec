"""Attention that a CPU trains fast in bf16, and with dropout."""

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


class PlainAttention(TrainerCallback):
    """Attention by plain matrix products for as long as the training lasts.

    PyTorch's fused one takes several times as long backward in bf16 on a CPU (2.13.0: a third of
    a training step of SmolLM2). Where attention drops out, it is not fused there in any precision,
    and draws its chances one by one (`dropout.py`).

    Args:
        is_bf16: Whether the training computes in bf16; else it is plain where attention drops out.
    """

    def __init__(self, is_bf16: bool) -> None:
        self._is_bf16 = is_bf16
        self._before: dict[PreTrainedModel, str] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        self.leave()  # the Trainer may begin again with smaller batches
        inside = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
        inside = [part for part in inside if self._is_bf16 or drops_attention(part.config)]
        self._before = {part: str(part.config._attn_implementation) for part in inside}
        for part in inside:
            part.set_attn_implementation("eager")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Have the attention that there was."""
        for part, implementation in self._before.items():
            part.set_attn_implementation(implementation)
        self._before.clear()


def drops_attention(config: PretrainedConfig) -> bool:
    """Whether attention has dropout, whatever the architecture calls it (`attn_pdrop`, ...)."""
    named = {name: value for name, value in vars(config).items() if "att" in name}
    return any(isinstance(v, int | float) and v > 0 for n, v in named.items() if "drop" in n)
