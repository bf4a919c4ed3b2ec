"""Rows of activations computed by several processes, each its share, and kept.

Shapes: T tokens, H hidden.
"""

import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from peft_mrpc.distributed import process_state
from peft_mrpc.errors import logger, one_line
from peft_mrpc.models.batched_inference import length_sorted_batches, retry_in_halves
from peft_mrpc.training.activation_cache.disk import describe_trunk, disk_refusal, trunks_dir
from peft_mrpc.training.activation_cache.rows import KeyedRows, Keys
from peft_mrpc.training.activation_cache.store import TrunkStore

# Gives the key and the activations [T, H] of each of some encoded pairs.
Compute = Callable[[list[Any]], Iterable[tuple[bytes, torch.Tensor]]]
# Rows in a forward pass when the activations are computed: nothing is kept for a backward pass.
FILL_BATCH, FILL_TOKENS = 32, 8192
# A file is closed at this size: so much is lost by a fill that is killed, and memory is filled
# file by file.
FILE_BYTES = 64 << 20


def missing_rows(store: TrunkStore, keys: Keys) -> list[int]:
    """Where rows stand that a store lacks, each once; it takes in the others.

    Args:
        keys: Of all rows, [N].
    """
    store.take(keys)
    unique, firsts = np.unique(keys, return_index=True)
    lacking: list[int] = np.sort(firsts[~store.has(unique)]).tolist()
    return lacking


def fill_store(
    store: TrunkStore, rows: KeyedRows, about: Mapping[str, Any], compute: Compute, limit: int
) -> str:
    """Compute the activations of rows, each process its share.

    Args:
        store: Takes them.
        rows: Those that it lacks.
        about: What they are computed with, to be written beside them.
        compute: Computes a batch.
        limit: The most bytes that all trunks on disk may take, this and others.
    Returns:
        Why they cannot be kept; nothing if all is well.
    """
    state = process_state()
    index, count = state.process_index, state.num_processes
    if not any(gather_object([len(rows)])):
        return ""  # complete: its place may be read-only
    if count > 1 and not _is_common(trunks_dir()):
        # Each machine has a disk of its own, and needs every row.
        index = state.local_process_index
        count = int(os.environ.get("LOCAL_WORLD_SIZE", count))

    fault = _fill_share(store, rows, about, compute, limit, slice(index, None, count))
    state.wait_for_everyone()
    store.refresh()
    # Another job may have come between what each process found missing.
    if not fault and (left := missing_rows(store, rows.keys)):
        fault = _fill_share(store, rows.at(left), about, compute, limit)
        store.refresh()
        store.take(rows.keys)
    return fault


def _fill_share(
    store: TrunkStore,
    rows: KeyedRows,
    about: Mapping[str, Any],
    compute: Compute,
    limit: int,
    share: slice = slice(None),
) -> str:
    """Compute some of the batches of rows; why they cannot be written, if so."""
    batches = length_sorted_batches(rows.lengths.tolist(), FILL_BATCH, FILL_TOKENS)
    if not (own := batches[share]):  # nothing to do: a store that is complete may be read-only
        return ""
    try:
        total = sum(map(len, own))
        silent = not logger.isEnabledFor(logging.INFO)
        with tqdm(total=total, desc="frozen layers", unit="pair", disable=silent) as bar:
            for part, size in _in_files(own, rows.lengths, store.token_bytes):
                if store.folder is not None:
                    # Before each file: other trainings fill what is theirs, or clear all of it.
                    if refusal := disk_refusal(size, limit, store.folder):
                        return refusal
                    describe_trunk(store.folder, about)
                _add_rows(store, rows.rows, part, compute, bar)
    except OSError as error:
        return f"{store.folder} cannot be written: {one_line(error)}"
    except torch.OutOfMemoryError:
        return (
            f"the frozen layers run out of memory with a pair of {rows.lengths.max()} tokens alone"
        )
    return ""


def _add_rows(
    store: TrunkStore, rows: Any, batches: Sequence[Sequence[int]], compute: Compute, bar: Any
) -> None:
    with store.adding() as writer:
        for numbers in batches:
            batch = [rows[number] for number in numbers]
            for part in retry_in_halves(batch, lambda part: list(compute(part))):
                for key, states in part:
                    writer.add(key, states.to(store.dtype))
            bar.update(len(batch))


def _in_files(
    batches: Sequence[Sequence[int]], lengths: NDArray[np.int64], token_bytes: int
) -> Iterator[tuple[list[Sequence[int]], int]]:
    """Batches in order, as many together as a file takes, and the bytes they fill."""
    part: list[Sequence[int]] = []
    size = 0
    for batch in batches:
        part.append(batch)
        size += int(lengths[batch].sum()) * token_bytes
        if size >= FILE_BYTES:
            yield part, size
            part, size = [], 0
    if part:
        yield part, size


def _is_common(folder: Path) -> bool:
    """Whether every process sees this directory; not where the first cannot write into it."""
    holder = [uuid.uuid4().hex]
    broadcast_object_list(holder)
    mark = folder / f".{holder[0]}"
    if process_state().is_main_process:
        with contextlib.suppress(OSError):  # said by whoever writes activations there
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
    process_state().wait_for_everyone()
    seen = all(gather_object([mark.exists()]))
    if process_state().is_main_process:
        with contextlib.suppress(OSError):
            mark.unlink()
    return seen
