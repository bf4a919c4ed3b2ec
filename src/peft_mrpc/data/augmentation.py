"""Sentence-swap augmentation: training examples with their sentences in random order."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset


class RandomSwapDataset(Dataset[dict[str, Any]]):
    """Training examples whose two sentences come in random order.

    The order depends on the seed, the epoch and the row alone, so that a resumed training and
    every process of a distributed one read the same.

    Args:
        examples: Encoded examples, a `datasets.Dataset`.
        swapped: The same examples with sentence 2 first.
        seed: Determines the orders of every epoch.
    """

    def __init__(self, examples: Any, swapped: Any, seed: int) -> None:
        self.orders = (examples, swapped)
        self.seed = seed
        epoch: Any = torch.zeros((), dtype=torch.int64)
        self.epoch: torch.Tensor = epoch.share_memory_()  # for data loader workers
        self._draws: tuple[int, list[int]] = (-1, [])

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch, from 0."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.orders[0])

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Several examples, which Arrow reads faster than one after another."""
        draws = self._epoch_draws()
        examples: dict[int, dict[str, Any]] = {}
        for number, order in enumerate(self.orders):
            wanted = [row for row in rows if draws[row] == number]
            if wanted:
                examples |= zip(wanted, order.__getitems__(wanted), strict=True)
        return [examples[row] for row in rows]

    def _epoch_draws(self) -> list[int]:
        """The order of each row in the current epoch, [N]."""
        epoch = int(self.epoch)
        if self._draws[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed)
            for _ in range(epoch + 1):
                orders = torch.randint(2, (len(self),), generator=generator)
            self._draws = (epoch, orders.tolist())
        return self._draws[1]
