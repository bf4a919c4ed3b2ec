"""What is drawn anew in every epoch hears which one begins."""

from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class DrawsAnew(Protocol):
    """Rows or batches that follow from a seed and the epoch."""

    def set_epoch(self, epoch: int) -> None: ...


class TellEpoch(TrainerCallback):
    """Tell rows or batches which epoch begins, from 0; a resumed training too."""

    def __init__(self, drawn: DrawsAnew) -> None:
        self.drawn = drawn

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.drawn.set_epoch(int(state.epoch or 0))
