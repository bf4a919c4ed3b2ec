"""How likely a causal LM holds a text after another. Token ids only, no tokenizer.

What all the sequences begin with (an instruction, demonstrations) goes through the model once; its
keys and values stand before every batch. Exact: a causal model computes the same for these tokens
whatever follows. Where a model keeps something else than keys and values, nothing is shared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from peft_mrpc.errors import logger
from peft_mrpc.models.batched_inference import (
    ScoreCache,
    out_of_memory,
    run_batched,
)
from peft_mrpc.prompting.prefix_cache import common_prefix, repeat_prefix, run_prefix

# How many logits are in one softmax.
SOFTMAX_ELEMENTS = 1 << 22
# A prefix shorter than this is not worth keys and values of its own.
WORTH_SHARING = 8
# From so many shared tokens on, copies of their keys and values cost more than what sequences in
# one line waste on each other; and how long the line is at most.
WORTH_PACKING, PACKED_TOKENS = 128, 512
# How far log-probabilities may lie apart by rounding; a wrong mask moves them by whole nats.
PACKED_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.25}


@dataclass(frozen=True)
class Continuation:
    """Some tokens, and those after which their probability is asked for.

    Attributes:
        context: Token ids, at least one.
        tokens: Token ids, at least one.
    """

    context: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Of both together."""
        return len(self.context) + len(self.tokens)

    @property
    def read(self) -> tuple[int, ...]:
        """What the model reads: of the last token only the probability matters."""
        return self.context + self.tokens[:-1]


class ContinuationScorer:
    """Scores the continuations of many rows with one model.

    Args:
        model: A causal LM in eval mode.
        pad_token_id: Any id; pads are masked.
        shares_prefix: Whether what all sequences begin with is computed once.
    """

    def __init__(
        self, model: PreTrainedModel, pad_token_id: int, shares_prefix: bool = True
    ) -> None:
        self.model = model
        self.pad_token_id = pad_token_id
        self.shares_prefix = shares_prefix
        self.prefix_length = 0  # of the last call
        self._prefix: DynamicCache | None = None
        self._packs = False  # whether sequences go through the model in one line

    def score(
        self,
        rows: Sequence[Sequence[Continuation]],
        batch_size: int,
        max_tokens: int | None = None,
        description: str = "asking",
        kept: ScoreCache | None = None,
    ) -> NDArray[np.float64]:
        """Log-probabilities of the continuations (arXiv:2005.14165, section 2.4).

        Args:
            rows: N rows of K continuations.
            batch_size: Rows in one forward pass.
            max_tokens: The most tokens in one, what is shared not counted.
            description: Stands before the progress bar.
            kept: Where the scores of each batch are found again.
        Returns:
            Sums over each continuation's tokens, in nats, the softmax taken in float32, [N, K].
        """
        sequences = [longest_reads(row) for row in rows]
        self._share(rows, sequences)
        lengths = [sum(len(s) - self.prefix_length for s in row) for row in sequences]

        def score_batch(batch: list[int]) -> NDArray[np.float64]:
            return self._score_batch([rows[row] for row in batch], [sequences[r] for r in batch])

        try:
            return run_batched(lengths, batch_size, score_batch, description, max_tokens, kept)
        finally:
            self._prefix = None

    @torch.inference_mode()
    def _share(
        self,
        rows: Sequence[Sequence[Continuation]],
        sequences: Sequence[Sequence[tuple[int, ...]]],
    ) -> None:
        """Run what all sequences begin with through the model, but for one token of each."""
        self._prefix, self.prefix_length, self._packs = None, 0, False
        if not self.shares_prefix or len(rows) < 2:
            return
        # The last token of a context gives the first probability, and so is read in the batch.
        room = min(len(one.context) for row in rows for one in row) - 1
        length = min(common_prefix([one for row in sequences for one in row]), room)
        if length < WORTH_SHARING:
            return
        cache = run_prefix(self.model, sequences[0][0][:length])
        if cache is None:
            logger.info("what all prompts begin with is run for each: this model keeps a state")
            return
        self._prefix, self.prefix_length = cache, length
        # A window would have to be in the mask as well; other kernels take no mask of ours.
        self._packs = (
            length >= WORTH_PACKING
            and all(type(layer) is DynamicLayer for layer in cache.layers)
            and self.model.config._attn_implementation in ("sdpa", "eager")
            and self._packs_rightly([sequences[0][0], sequences[-1][0]])
        )

    def _packs_rightly(self, sequences: Sequence[tuple[int, ...]]) -> bool:
        """Whether two sequences in one line get what they get by themselves.

        Not where a model reckons positions or masks by itself: ALiBi, windows of its own.
        """
        sequence = torch.arange(len(sequences))
        last = torch.tensor([len(ids) - self.prefix_length - 1 for ids in sequences])
        found = []
        try:
            for run in (self._logits, self._packed_logits):
                logits, line, column = run(sequences, sequence, last)
                rows = logits[line.to(logits.device), column.to(logits.device)]
                found.append(rows.float().log_softmax(dim=-1))
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise out_of_memory("two prompts") from error
            return False
        apart = float((found[0] - found[1]).abs().max())
        return apart <= PACKED_TOLERANCE.get(self.model.dtype, PACKED_TOLERANCE[torch.float16])

    @torch.inference_mode()
    def _score_batch(
        self,
        rows: Sequence[Sequence[Continuation]],
        sequences: Sequence[Sequence[tuple[int, ...]]],
    ) -> NDArray[np.float64]:
        flat = [one for row in sequences for one in row]  # S sequences
        first = np.cumsum([0, *(len(row) for row in sequences)])
        # Of every token asked for: its sequence, the position that predicts it, its id, its cell.
        asked: list[tuple[int, int, int, int]] = []
        width = len(rows[0])
        for number, row in enumerate(rows):
            for column, one in enumerate(row):
                place = _find_read(one.read, sequences[number])
                start = len(one.context) - 1 - self.prefix_length
                asked += [
                    (int(first[number]) + place, start + step, token, number * width + column)
                    for step, token in enumerate(one.tokens)
                ]
        sequence, position, token, cell = torch.tensor(asked).T
        found, cells = [], []
        for start, end in self._parts(flat):
            own = (sequence >= start) & (sequence < end)
            asked_here = (sequence[own] - start, position[own], token[own])
            found.append(self._chosen(flat[start:end], *asked_here))
            cells.append(cell[own])
        sums = torch.zeros(len(rows) * width, dtype=torch.float64)
        sums.index_add_(0, torch.cat(cells), torch.cat(found))
        return sums.view(len(rows), width).numpy()

    def _parts(self, sequences: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
        """From where to where sequences go through the model together."""
        if not self._packs:
            return [(0, len(sequences))]
        parts, start, tokens = [], 0, 0
        for number, ids in enumerate(sequences):
            own = len(ids) - self.prefix_length
            if tokens and tokens + own > PACKED_TOKENS:
                parts.append((start, number))
                start, tokens = number, 0
            tokens += own
        return [*parts, (start, len(sequences))]

    def _chosen(
        self,
        sequences: Sequence[tuple[int, ...]],
        sequence: torch.Tensor,
        position: torch.Tensor,
        token: torch.Tensor,
    ) -> torch.Tensor:
        """Log-probabilities of tokens, each at a position of a sequence, [M]."""
        run = self._packed_logits if self._packs else self._logits
        logits, line, column = run(sequences, sequence, position)
        return chosen_log_probabilities(logits, line, column, token).double().cpu()

    def _packed_logits(
        self,
        sequences: Sequence[tuple[int, ...]],
        sequence: torch.Tensor,
        position: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `_logits`, with the sequences one after the other in a single line.

        Each sees what they share and itself. So the shared keys and values stand there once, where
        a batch would have a copy for each row, and nothing is padded.
        """
        model, past = self.model, self.prefix_length
        own = [torch.tensor(ids[past:]) for ids in sequences]
        lengths = torch.tensor([len(ids) for ids in own])
        which = torch.repeat_interleave(torch.arange(len(own)), lengths)  # [T]
        places = torch.cat([torch.arange(len(ids)) for ids in own])  # [T]
        sees = (which[:, None] == which[None, :]) & (places[:, None] >= places[None, :])
        mask = torch.zeros(1, 1, len(which), past + len(which), dtype=model.dtype)
        mask[..., past:].masked_fill_(~sees, torch.finfo(model.dtype).min)
        assert self._prefix is not None
        asked = (
            torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])[sequence] + position
        )
        kept, column = torch.unique(asked, return_inverse=True)
        logits = model(
            input_ids=torch.cat(own)[None].to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=(past + places)[None].to(model.device),
            past_key_values=repeat_prefix(self._prefix, 1),
            logits_to_keep=kept.to(model.device),
            use_cache=True,
        ).logits
        column = column if logits.shape[1] == len(kept) else asked
        return logits, torch.zeros_like(column), column

    def _logits(
        self,
        sequences: Sequence[tuple[int, ...]],
        sequence: torch.Tensor,
        position: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [S, U, V] at the positions asked for, and where in them each of these is."""
        model, past = self.model, self.prefix_length
        lengths = torch.tensor([len(ids) - past for ids in sequences])
        width = int(lengths.max())
        input_ids = torch.full((len(sequences), width), self.pad_token_id)
        for number, ids in enumerate(sequences):
            input_ids[number, : len(ids) - past] = torch.tensor(ids[past:])
        # Pads stand on the right, where a causal model does not see them: no sequence's scores
        # depend on another's length but by rounding.
        mask = torch.arange(past + width)[None, :] < past + lengths[:, None]  # [S, P + T]
        places, which = torch.unique(position, return_inverse=True)
        cached: dict[str, Any] = {}
        if self._prefix is not None:
            cached["past_key_values"] = repeat_prefix(self._prefix, len(sequences))
        logits = model(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.long().to(model.device),
            # Only positions that predict something go through the output layer.
            logits_to_keep=places.to(model.device),
            use_cache=self._prefix is not None,
            **cached,
        ).logits
        # A few models do not know logits_to_keep and give every position.
        return logits, sequence, which if logits.shape[1] == len(places) else position


def longest_reads(row: Sequence[Continuation]) -> list[tuple[int, ...]]:
    """The sequences to run for a row: what is the beginning of another is read off that one."""
    reads = sorted({one.read for one in row})
    # Sorted, a beginning stands right before what goes on from it, or before its other ends.
    return [a for a, b in pairwise([*reads, ()]) if b[: len(a)] != a]


def _find_read(read: tuple[int, ...], sequences: Sequence[tuple[int, ...]]) -> int:
    return next(i for i, ids in enumerate(sequences) if ids[: len(read)] == read)


def chosen_log_probabilities(
    logits: torch.Tensor, line: torch.Tensor, column: torch.Tensor, token: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities of some tokens, the softmax taken in float32, [M].

    Some rows at a time: of a large vocabulary all at once would be gigabytes.

    Args:
        logits: [S, U, V].
        line: Where along S each token is predicted, [M].
        column: The same along U, [M].
        token: Token ids, [M].
    """
    line, column, token = (which.to(logits.device) for which in (line, column, token))
    found = []
    step = max(1, SOFTMAX_ELEMENTS // logits.shape[-1])
    for start in range(0, len(token), step):
        own = slice(start, start + step)
        predicted = logits[line[own], column[own]].float()
        chosen = predicted.gather(1, token[own, None])[:, 0]
        found.append(chosen - predicted.logsumexp(dim=-1))
    return torch.cat(found)
