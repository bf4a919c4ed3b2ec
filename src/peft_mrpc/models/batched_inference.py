"""Run a model over many rows: length-sorted batches, several processes, out-of-memory handling."""

import logging
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
from peft_mrpc.errors import UserError, one_line

logger = logging.getLogger(__name__)

Row = TypeVar("Row")
Result = TypeVar("Result")
ComputeBatch = Callable[[list[int]], NDArray[np.float64]]


class ScoreCache(Protocol):
    """Results of batches that an interrupted command has computed."""

    def find(self, rows: Sequence[int]) -> NDArray[np.float64] | None:
        """The results of these rows, [B, K], or None if one is missing."""

    def add(self, rows: Sequence[int], scores: NDArray[np.float64]) -> None:
        """Store the results of a batch."""


def length_sorted_batches(
    lengths: Sequence[int], batch_size: int, max_tokens: int | None = None
) -> list[list[int]]:
    """Group rows of similar length, longest first: memory runs out in the first batch or never.

    Args:
        lengths: Tokens of each row, [N].
        batch_size: Maximum rows per batch.
        max_tokens: Maximum tokens per batch, with padding; a longer row is a batch by itself.
    Returns:
        Row numbers.
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


def run_batched(
    lengths: Sequence[int],
    batch_size: int,
    compute: ComputeBatch,
    description: str,
    max_tokens: int | None = None,
    cache: ScoreCache | None = None,
) -> NDArray[np.float64]:
    """Compute a result for every row, distributed over the processes of the job.

    All processes form the same batches and each computes whole ones. So the padding of a row, and
    its result, do not depend on the number of processes. The progress bar is shown if this
    package's logger shows INFO messages, as it does in the commands.

    Args:
        lengths: Tokens of each row, [N].
        batch_size: Rows per forward pass.
        compute: Computes the results of a batch of rows, [B] -> [B, K].
        description: Text before the progress bar.
        max_tokens: Maximum tokens per forward pass.
        cache: Results of an earlier, interrupted command.
    Returns:
        Results in row order, [N, K], on every process.
    Raises:
        UserError: If one row does not fit in memory, or another process has failed.
    """
    state = process_state()
    results: list[tuple[int, NDArray[np.float64]]] = []
    shows_bar = state.is_main_process and logger.isEnabledFor(logging.INFO)
    with tqdm(total=len(lengths), desc=description, unit=" examples", disable=not shows_bar) as bar:
        for number, batch in enumerate(length_sorted_batches(lengths, batch_size, max_tokens)):
            if number % state.num_processes == state.process_index:
                output = None if cache is None else cache.find(batch)
                if output is None:
                    output = _compute_on_this_process(batch, compute)
                    if cache is not None:
                        cache.add(batch, output)
                results += zip(batch, output, strict=True)
            bar.update(len(batch))
    if state.num_processes > 1:
        # Gathered as objects: `gather` would need equal shards, whose padding reorders rows.
        try:
            results = gather_object(results)
        except RuntimeError as error:  # gloo: the other process has ended
            raise UserError(
                f"another process of this job has ended before its time: {one_line(error)[:100]}"
            ) from error
    results.sort(key=itemgetter(0))
    assert [row for row, _ in results] == list(range(len(lengths))), "a row was lost or duplicated"
    return np.stack([output for _, output in results])


def _compute_on_this_process(batch: list[int], compute: ComputeBatch) -> NDArray[np.float64]:
    """Compute a batch; an error carries the rank, since other processes do not raise it."""
    try:
        return compute_with_retry(batch, compute)
    except UserError as error:
        if process_state().num_processes > 1:
            error.rank = process_state().process_index
        raise


def compute_with_retry(batch: list[int], compute: ComputeBatch) -> NDArray[np.float64]:
    """Compute a batch, in halves if memory runs out.

    Raises:
        UserError: If one row does not fit in memory.
    """

    def compute_part(part: list[int]) -> NDArray[np.float64]:
        try:
            return compute(part)
        except torch.OutOfMemoryError as error:
            if len(part) > 1:
                raise
            raise out_of_memory(f"row {part[0] + 1} by itself") from error

    return np.concatenate(retry_in_halves(batch, compute_part))


def retry_in_halves(batch: list[Row], compute: Callable[[list[Row]], Result]) -> list[Result]:
    """Compute a batch, or its halves if memory runs out.

    Returns:
        One result per part, in order.
    Raises:
        torch.OutOfMemoryError: If one row does not fit.
    """
    try:
        return [compute(batch)]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # After the handler, which holds references to the tensors of the failed pass.
    clear_device_cache()
    half = len(batch) // 2
    logger.warning("out of memory with a batch of %d examples: retrying with %d", len(batch), half)
    return [
        result for part in (batch[:half], batch[half:]) for result in retry_in_halves(part, compute)
    ]


def out_of_memory(what: str) -> UserError:
    """The error for input that cannot be split any further."""
    return UserError(
        f"out of memory with {what}. Use a smaller or quantized model, shorter examples or fewer "
        "demonstrations, or distribute the model (device_map: auto)."
    )


def classifier_probabilities(logits: torch.Tensor) -> NDArray[np.float64]:
    """Softmax of classifier logits in float64, [B, C]; of one output, its sigmoid, [B, 2]."""
    logits = logits.double()
    if logits.shape[-1] == 1:  # the softmax of 0 and x is the sigmoid of x
        logits = torch.cat([torch.zeros_like(logits), logits], dim=-1)
    probabilities: NDArray[np.float64] = logits.softmax(dim=-1).cpu().numpy()
    return probabilities
