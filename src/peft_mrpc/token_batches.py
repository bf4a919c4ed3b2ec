"""Training batches of as many pairs as fill a budget of tokens."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_mrpc.scoring import length_sorted_batches


class TokenBatches(Sampler[list[int]]):
    """Batches of like length, each of as many rows as its budget of tokens holds.

    Rows of one length are shuffled among each other and then the batches, anew each epoch; there
    are as many batches in each. The longest comes first: memory runs short at once or never.
    Which they are follows from seed and epoch alone, on every process.

    Args:
        lengths: Tokens of each row as it will be padded to, [N].
        max_tokens: The most tokens in a batch, pads included; a longer row is alone.
        seed: Fixes the batches of every epoch.
    """

    batch_size = None  # as accelerate asks for batches that differ in size
    drop_last = False

    def __init__(self, lengths: Sequence[int], max_tokens: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        sizes = [len(b) for b in length_sorted_batches(lengths, len(lengths), max_tokens)]
        self._ends = np.cumsum(sizes)[:-1]
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._ends) + 1

    def __iter__(self) -> Iterator[list[int]]:
        draw = np.random.default_rng([self.seed, self.epoch])
        shuffled = draw.permutation(len(self.lengths))
        order = shuffled[np.argsort(-self.lengths[shuffled], kind="stable")]
        batches = np.split(order, self._ends)
        yield batches[0].tolist()
        for number in 1 + draw.permutation(len(self._ends)):
            yield batches[number].tolist()


class BatchAnew(TrainerCallback):
    """Tell the batches which epoch begins."""

    def __init__(self, batches: TokenBatches) -> None:
        self.batches = batches

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        self.batches.epoch = int(state.epoch or 0)
