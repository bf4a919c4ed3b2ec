"""Training batches of as many pairs as fill a budget of tokens."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainingArguments

from peft_mrpc.models.batched_inference import length_sorted_batches


class TokenBatches(Sampler[list[int]]):
    """Batches of like length, each of as many rows as its budget of tokens holds.

    Rows of one length are shuffled among each other and then the batches, anew each epoch; there
    are as many batches in each. The longest comes first: memory runs short at once or never.
    Which they are follows from seed and epoch alone; of several processes each has every so many'th
    batch, and all have as many: the first ones come again at the end.

    Args:
        lengths: Tokens of each row, [N].
        max_tokens: The most tokens in a batch, pads up to its longest row included; a row that is
            longer is alone.
        seed: Fixes the batches of every epoch.
        process: The number of this process.
        num_processes: How many share the batches.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        max_tokens: int,
        seed: int,
        process: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.lengths = np.asarray(lengths)
        sizes = [len(b) for b in length_sorted_batches(lengths, len(lengths), max_tokens)]
        self._ends = np.cumsum(sizes)[:-1]
        self.num_batches = len(sizes)
        self.seed = seed
        self.process = process
        self.num_processes = num_processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.num_batches / self.num_processes)

    def __iter__(self) -> Iterator[list[int]]:
        draw = np.random.default_rng([self.seed, self.epoch])
        shuffled = draw.permutation(len(self.lengths))
        order = shuffled[np.argsort(-self.lengths[shuffled], kind="stable")]
        batches = np.split(order, self._ends)
        places = [0, *(1 + draw.permutation(len(self._ends)))]
        for turn in range(len(self)):
            place = places[(turn * self.num_processes + self.process) % len(places)]
            yield batches[place].tolist()


def pairs_at_once(args: TrainingArguments, loader: Any) -> float:
    """How many pairs one batch of each process has together, on average where they differ."""
    batches = loader.batch_sampler
    if isinstance(batches, TokenBatches):
        return len(batches.lengths) / len(batches)
    return int(args.train_batch_size * args.world_size)
