"""Rows scored once each, in batches of like length, on any number of processes."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Protocol, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from peft_mrpc.distributed import process_state
from peft_mrpc.errors import UserError, logger, one_line

Row = TypeVar("Row")
Result = TypeVar("Result")
ScoreBatch = Callable[[list[int]], NDArray[np.float64]]


class ScoreCache(Protocol):
    """Scores of an earlier command that did not come to its end."""

    def find(self, rows: Sequence[int]) -> NDArray[np.float64] | None:
        """The scores of these rows, [B, K], if all of them are there."""

    def add(self, rows: Sequence[int], scores: NDArray[np.float64]) -> None:
        """Keep the scores of a batch."""


def length_sorted_batches(
    lengths: Sequence[int], batch_size: int, max_tokens: int | None = None
) -> list[list[int]]:
    """Row numbers in batches of like length, longest first: memory runs short at once or never.

    Args:
        lengths: Tokens of each row, [N].
        batch_size: The most rows in a batch.
        max_tokens: The most tokens in a batch, pads included; a longer row is alone.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches: list[list[int]] = []
    room = 0
    for row in order:
        if room == 0:
            batches.append([])
            fitting = batch_size if max_tokens is None else max_tokens // max(1, lengths[row])
            room = max(1, min(batch_size, fitting))
        batches[-1].append(row)
        room -= 1
    return batches


def score_rows(
    lengths: Sequence[int],
    batch_size: int,
    score_batch: ScoreBatch,
    description: str,
    max_tokens: int | None = None,
    kept: ScoreCache | None = None,
) -> NDArray[np.float64]:
    """Score every row once, spread over the processes of the job.

    The batches are formed once for all processes, and handed out whole: what a row is padded to,
    and so its score, does not depend on how many processes there are.

    Args:
        lengths: Tokens of each row, [N].
        batch_size: Rows in a forward pass.
        score_batch: Scores the rows of one batch, [B] -> [B, K].
        description: Stands before the progress bar.
        max_tokens: The most tokens in a forward pass.
        kept: Where the scores of each batch are found again.
    Returns:
        The scores in row order, [N, K], on every process.
    """
    state = process_state()
    batches = length_sorted_batches(lengths, batch_size, max_tokens)
    scored: list[tuple[int, NDArray[np.float64]]] = []
    with tqdm(
        total=len(lengths),
        desc=description,
        unit="pair",
        disable=not state.is_main_process,
        mininterval=0.5,
    ) as bar:
        for number, batch in enumerate(batches):
            if number % state.num_processes == state.process_index:
                scores = None if kept is None else kept.find(batch)
                if scores is None:
                    scores = _score_own(batch, score_batch)
                    if kept is not None:
                        kept.add(batch, scores)
                scored += zip(batch, scores, strict=True)
            bar.update(len(batch))
    if state.num_processes > 1:
        # Gathered as objects, uneven as they are: padding to even shards would reorder rows.
        try:
            scored = gather_object(scored)
        except RuntimeError as error:  # gloo's, where the other end is gone
            raise UserError(
                f"another process of this job has ended before its time: {one_line(error)[:100]}"
            ) from error
    scored.sort(key=itemgetter(0))
    assert [row for row, _ in scored] == list(range(len(lengths))), "a row was lost or doubled"
    return np.stack([scores for _, scores in scored])


def _score_own(batch: list[int], score_batch: ScoreBatch) -> NDArray[np.float64]:
    """Score a batch of this process's share; what it meets there the others do not say."""
    try:
        return score_with_retry(batch, score_batch)
    except UserError as error:
        if process_state().num_processes > 1:
            error.rank = process_state().process_index
        raise


def score_with_retry(batch: list[int], score_batch: ScoreBatch) -> NDArray[np.float64]:
    """Score a batch, in halves where the device has no memory for the whole of it."""

    def score(part: list[int]) -> NDArray[np.float64]:
        try:
            return score_batch(part)
        except torch.OutOfMemoryError as error:
            if len(part) > 1:
                raise
            raise out_of_memory(f"row {part[0] + 1} by itself") from error

    return np.concatenate(retry_in_halves(batch, score))


def retry_in_halves(batch: list[Row], compute: Callable[[list[Row]], Result]) -> list[Result]:
    """What is computed of a batch, part by part where the device has no memory for the whole.

    Raises:
        torch.OutOfMemoryError: If one row alone does not fit.
    """
    try:
        return [compute(batch)]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # Out of the handler, so that what the failed pass held on to is free again.
    clear_device_cache()
    half = len(batch) // 2
    logger.warning("out of memory with %d pairs at once: going on with %d", len(batch), half)
    return [
        found for part in (batch[:half], batch[half:]) for found in retry_in_halves(part, compute)
    ]


def out_of_memory(what: str) -> UserError:
    """The error for what fits in no smaller piece."""
    return UserError(
        f"out of memory with {what}; use a smaller or quantized model, shorter rows or fewer "
        "demonstrations, or spread the model (--device_map auto)."
    )


def classifier_probabilities(logits: torch.Tensor) -> NDArray[np.float64]:
    """Softmax of classifier logits in float64, [B, C]."""
    probabilities: NDArray[np.float64] = logits.double().softmax(dim=-1).cpu().numpy()
    return probabilities
