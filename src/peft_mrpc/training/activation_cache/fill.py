"""Compute the activations of examples, each process a share of them.

Shapes: B batch, T tokens, H hidden.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers.utils.logging import tqdm

from peft_mrpc.distributed import process_state
from peft_mrpc.errors import one_line
from peft_mrpc.models.batched_inference import length_sorted_batches, retry_in_halves
from peft_mrpc.training.activation_cache.bypass import FrozenLayers
from peft_mrpc.training.activation_cache.store import (
    ActivationCache,
    CachedCollator,
    example_key,
    map_file,
)

# Batches of the frozen layers: there is no backward pass, so that they can be large.
FILL_BATCH, FILL_TOKENS = 32, 8192


def example_keys(examples: Dataset) -> list[bytes]:
    """The key of each encoded example, [N]."""
    return list(_example_keys(examples))


def _example_keys(examples: Dataset) -> Iterator[bytes]:
    names = [n for n in ("input_ids", "token_type_ids") if n in examples.column_names]
    for batch in examples.select_columns(names).iter(1000):
        yield from map(example_key, *(batch[name] for name in names))


def missing_rows(cache: ActivationCache, keys: Sequence[bytes]) -> list[int]:
    """The rows of the examples that the cache lacks, each distinct example once."""
    first_rows: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        if key not in cache:
            first_rows.setdefault(key, row)
    return list(first_rows.values())


def first_refusal(refusal: str) -> str:
    """The first non-empty text of all processes, so that they agree; empty if there is none."""
    return str(next(filter(None, gather_object([refusal])), ""))


def fill_cache(
    cache: ActivationCache,
    layers: FrozenLayers,
    collator: CachedCollator,
    examples: Dataset,
    keys: Sequence[bytes],
    rows: Sequence[int],
    width: int,
) -> str:
    """Compute the activations of some examples and add them to the cache.

    The processes of one host share a memory-mapped file, and each computes some of its batches.

    Args:
        cache: Takes the activations.
        layers: Compute them.
        collator: Pads a batch.
        examples: Encoded examples, N.
        keys: Of each example, [N].
        rows: The examples to compute, the same on every process.
        width: H.
    Returns:
        Why this was not possible, the same on every process; empty if it was.
    """
    state = process_state()
    index = state.local_process_index
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    lengths = examples.select(rows)["length"][:]
    batches = length_sorted_batches(lengths, FILL_BATCH, FILL_TOKENS)
    order = [number for batch in batches for number in batch]
    assert layers.dtype is not None
    shape = (sum(lengths), width)
    size = shape[0] * width * layers.dtype.itemsize
    refusal, path = "", None
    if (state.num_processes > 1 or not cache.fits_in_memory(size)) and index == 0:
        try:
            path = cache.create_file(size)
        except OSError as error:
            refusal = f"the temporary file cannot be created: {one_line(error)}"
    # Local processes have consecutive indices.
    path = gather_object([path])[state.process_index - index]
    if refusal := first_refusal(refusal):
        return refusal
    block = None if path else torch.empty(shape, dtype=layers.dtype)

    def compute(batch: list[dict[str, Any]]) -> torch.Tensor:
        """The activations of the batch's tokens without padding, [tokens, H]."""
        padded = collator.collate(batch)
        activations = layers.compute(padded)
        assert activations is not None
        return activations.cpu()[padded["attention_mask"].bool()]

    first = 0
    try:
        with ExitStack() as stack:
            file = stack.enter_context(Path(path).open("r+b")) if path else None
            is_main = state.is_main_process
            bar = tqdm(total=len(rows), desc="frozen layers", unit="example", disable=not is_main)
            stack.enter_context(bar)
            for number, batch in enumerate(batches):
                tokens = sum(lengths[place] for place in batch)
                if number % num_local == index:
                    features = examples.__getitems__([rows[place] for place in batch])
                    activations = torch.cat(retry_in_halves(features, compute))
                    if block is not None:
                        block[first : first + tokens] = activations
                    elif file is not None:
                        file.seek(first * width * activations.element_size())
                        file.write(activations.contiguous().view(torch.uint8).numpy().data)
                first += tokens
                bar.update(len(batch))
    except OSError as error:
        refusal = f"{path} cannot be written: {one_line(error)}"
    except torch.OutOfMemoryError:
        refusal = f"the frozen layers run out of memory with one example of {max(lengths)} tokens"
    if refusal := first_refusal(refusal):
        return refusal
    if block is None:
        assert path is not None
        block = map_file(path, shape, layers.dtype)
    distinct = [rows[number] for number in order]
    cache.add([keys[row] for row in distinct], [lengths[n] for n in order], block, path)
    return ""
