"""What is drawn anew in every epoch hears which one begins."""

from typing import Any, Protocol, runtime_checkable

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


@runtime_checkable
class EpochSeeded(Protocol):
    """Rows, their order or batches that follow from a seed and the epoch."""

    def set_epoch(self, epoch: int) -> None: ...


class SetEpochCallback(TrainerCallback):
    """Tell what draws anew which epoch begins, from 0; in a resumed training too."""

    def __init__(self) -> None:
        self.drawn: list[EpochSeeded] = []

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for drawn in self.drawn:
            drawn.set_epoch(int(state.epoch or 0))
