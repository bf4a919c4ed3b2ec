"""Compute the activations of examples, each process a share of them.

Shapes: B batch, T tokens, H hidden.
"""

import os
from collections.abc import Sequence
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
    names = [n for n in ("input_ids", "token_type_ids") if n in examples.column_names]
    batches = examples.select_columns(names).iter(1000)
    return [key for batch in batches for key in map(example_key, *(batch[n] for n in names))]


def missing_rows(cache: ActivationCache, keys: Sequence[bytes]) -> list[int]:
    """The rows of the examples that the cache lacks, the first row of each distinct example."""
    first_rows: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        if key not in cache:
            first_rows.setdefault(key, row)
    return list(first_rows.values())


def first_refusal(refusal: str) -> str:
    """The first text of all processes that is not empty, so that they agree."""
    return str(next(filter(None, gather_object([refusal])), ""))


def fill_cache(
    cache: ActivationCache,
    layers: FrozenLayers,
    collator: CachedCollator,
    examples: Dataset,
    keys: Sequence[bytes],
) -> str:
    """Compute the activations of some examples and add them to the cache.

    The processes of a host share a memory-mapped file, and each of them computes some batches.

    Args:
        cache: Lacks all of these examples.
        layers: Compute the activations.
        collator: Pads a batch.
        examples: Distinct encoded examples, N, the same on every process.
        keys: Of each example, [N].
    Returns:
        Why this was not possible, the same on every process; empty if it was.
    """
    state = process_state()
    index = state.local_process_index
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    lengths = examples["length"][:]
    batches = length_sorted_batches(lengths, FILL_BATCH, FILL_TOKENS)
    num_tokens = sum(lengths)
    refusal, path = "", None
    if state.num_processes > 1 or not cache.fits_in_memory(num_tokens * layers.token_bytes):
        try:
            path = cache.create_file(num_tokens * layers.token_bytes) if index == 0 else None
        except OSError as error:
            refusal = f"no temporary file can be created: {one_line(error)}"
    # The first process of this host has created the file: local indices are consecutive.
    path = gather_object([path])[state.process_index - index]
    if refusal := first_refusal(refusal):
        return refusal
    block = None if path else torch.empty(num_tokens, layers.width, dtype=layers.dtype)

    def compute(batch: list[dict[str, Any]]) -> torch.Tensor:
        """The activations of all tokens but padding, [tokens, H]."""
        inputs = collator.collate(batch)
        activations = layers.compute(inputs)
        assert activations is not None
        return activations.cpu()[inputs["attention_mask"].bool()]

    first = 0
    is_main = state.is_main_process
    bar = tqdm(total=len(keys), desc="frozen layers", unit="example", disable=not is_main)
    try:
        with bar, ExitStack() as stack:
            file = stack.enter_context(Path(path).open("r+b")) if path else None
            for number, rows in enumerate(batches):
                end = first + sum(lengths[row] for row in rows)
                if number % num_local == index:
                    batch = examples.__getitems__(rows)
                    activations = torch.cat(retry_in_halves(batch, compute))
                    if block is not None:
                        block[first:end] = activations
                    elif file is not None:
                        file.seek(first * layers.token_bytes)
                        file.write(activations.view(torch.uint8).numpy().data)
                first = end
                bar.update(len(rows))
    except OSError as error:
        refusal = f"{path} cannot be written: {one_line(error)}"
    except torch.OutOfMemoryError:
        refusal = f"the frozen layers run out of memory with one example of {max(lengths)} tokens"
    if refusal := first_refusal(refusal):
        return refusal
    if block is None:
        block = map_file(str(path), num_tokens, layers.width, layers.dtype)
    order = [row for rows in batches for row in rows]
    cache.add([keys[row] for row in order], [lengths[row] for row in order], block, bool(path))
    return ""
