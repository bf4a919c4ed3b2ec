"""Attention that a CPU trains fast in bf16."""

from typing import Any

from torch import nn
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


class PlainAttention(TrainerCallback):
    """Attention by plain matrix products for as long as the training lasts.

    PyTorch's fused one takes several times as long backward in bf16 on a CPU (2.13.0: a third of
    a training step of SmolLM2), and is no slower in fp32.
    """

    def __init__(self) -> None:
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
