"""Training rows that come in either order of their sentences, by chance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset


class RandomSwapDataset(Dataset[dict[str, Any]]):
    """Training rows of which each comes in its own order or in the other, by chance.

    Which it is follows from the seed, the epoch and the row alone: so a training that goes on from
    a checkpoint, and one of several processes, sees what any other sees.

    Args:
        rows: Encoded pairs.
        swapped: The same pairs with sentence 2 first.
        seed: Fixes the orders of every epoch.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], swapped: Sequence[dict[str, Any]], seed: int
    ) -> None:
        self.orders = (rows, swapped)
        self.seed = seed
        epoch: Any = torch.zeros((), dtype=torch.int64)
        self.epoch: torch.Tensor = epoch.share_memory_()  # seen by loader workers
        self._drawn: tuple[int, list[int]] = (-1, [])

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, from 0."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.orders[0])

    def __getitem__(self, row: int) -> dict[str, Any]:
        epoch = int(self.epoch)
        if self._drawn[0] != epoch:
            draw = torch.Generator().manual_seed(self.seed)
            for _ in range(epoch + 1):
                orders = torch.randint(2, (len(self),), generator=draw)
            self._drawn = (epoch, orders.tolist())
        return self.orders[self._drawn[1][row]][row]
