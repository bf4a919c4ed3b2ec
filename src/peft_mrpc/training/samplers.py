"""Orders of training examples, and of their sentences, by the seed and the epoch alone."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_mrpc.data.encoding import LENGTH_COLUMN
from peft_mrpc.interop.transformers_internals import length_grouped_order


@runtime_checkable
class EpochSeeded(Protocol):
    """A dataset or sampler that depends on the epoch."""

    def set_epoch(self, epoch: int) -> None: ...


class SetEpochCallback(TrainerCallback):
    """Pass the number of each epoch, from 0, to what depends on it; in a resumed training too."""

    def __init__(self) -> None:
        self.targets: list[EpochSeeded] = []

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for target in self.targets:
            target.set_epoch(int(state.epoch or 0))


class ResumableLengthGroupedSampler(Sampler[int]):
    """A length-grouped sampler whose order depends on its initial state and the epoch alone.

    The sampler of transformers draws from torch's global generator when an epoch begins, as
    dropout and evaluation do. A training resumed in its second epoch would therefore read some
    examples twice and others never, and so would one of several processes. This sampler draws from
    a copy of the global generator, taken on the first process when the sampler is built. Without
    other draws the order is that of transformers.

    Args:
        batch_size: Examples in a step of one process.
        lengths: Tokens of each example, [N].
        seed: Determines the order in place of the global generator.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int | None = None) -> None:
        self.batch_size = batch_size
        self.lengths = lengths
        self.generator = torch.Generator()
        self.epoch = 0
        if seed is None:
            self.generator.set_state(torch.get_rng_state())
        else:
            self.generator.manual_seed(seed)
        state = [self.generator.get_state()]
        broadcast_object_list(state)
        self._initial_state = state[0]

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        self.generator.set_state(self._initial_state)
        for _ in range(self.epoch):  # repeat the draws of the epochs before
            self._draw_worker_seed()
            torch.randperm(len(self), generator=self.generator)
        self._draw_worker_seed()
        return iter(length_grouped_order(self.lengths, self.batch_size, self.generator))

    def _draw_worker_seed(self) -> None:
        """The draw of a DataLoader for its workers when an epoch begins."""
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)


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


def example_lengths(dataset: Any) -> list[int]:
    """Tokens of each training example, [N], in its own order of sentences."""
    encoded = dataset.orders[0] if isinstance(dataset, RandomSwapDataset) else dataset
    lengths: list[int] = encoded[LENGTH_COLUMN][:]
    return lengths
