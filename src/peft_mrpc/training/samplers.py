"""Training rows in groups of like length, the same again however an epoch comes to be trained."""

from collections.abc import Iterator

import torch
from accelerate.utils import broadcast_object_list
from transformers.trainer_pt_utils import LengthGroupedSampler


class ResumableLengthGroupedSampler(LengthGroupedSampler):
    """The Trainer's sampler by length, whose order follows from where it began and the epoch alone.

    transformers' own draws from torch's global stream as each epoch begins. So does whatever else
    draws from that: dropout, evaluations, the batches of other shapes that another process has. A
    training that went on within its second epoch saw some rows twice and others never, and so did
    one of several processes. This one draws from a copy of the stream as it stands when the sampler
    is built, the first process's copy; while nothing else draws, the order is that of transformers.

    Args:
        batch_size: Rows in a step of one process.
        lengths: Tokens of each row, [N].
        seed: Fixes the order in place of the global stream, if given.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int | None = None) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.epoch = 0
        if seed is None:
            self.generator.set_state(torch.get_rng_state())
        else:
            self.generator.manual_seed(seed)
        start = [self.generator.get_state()]
        broadcast_object_list(start)
        self._start = start[0]

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.set_state(self._start)
        for _ in range(self.epoch):  # those before
            self._draw_as_a_loader()
            torch.randperm(len(self), generator=self.generator)
        self._draw_as_a_loader()
        order: Iterator[int] = super().__iter__()  # type: ignore[no-untyped-call]
        return order

    def _draw_as_a_loader(self) -> None:
        """What it draws for its workers as each epoch begins."""
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
