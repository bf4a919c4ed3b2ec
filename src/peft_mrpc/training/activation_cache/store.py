"""Activations of examples, in a memory-mapped temporary file.

Shapes: N examples, B batch, T tokens, H hidden.
"""

import hashlib
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers.utils.logging import tqdm

from peft_mrpc.distributed import process_state
from peft_mrpc.errors import one_line
from peft_mrpc.formatting import format_bytes
from peft_mrpc.models.batched_inference import length_sorted_batches, retry_in_halves
from peft_mrpc.training.activation_cache.bypass import (
    ACTIVATIONS,
    CacheUnavailableError,
    FrozenLayers,
)

# Batches of the frozen layers: there is no backward pass, so that they can be large.
FILL_BATCH, FILL_TOKENS = 32, 8192
# Space that the temporary file leaves free on its file system.
SPARE_BYTES = 256 << 20
PREFIX = "peft-mrpc-activations-"

Collate = Callable[[list[Any]], Any]


class ActivationCache:
    """Activations [T, H] of examples, found by the token ids that they were computed from.

    They are in a memory-mapped temporary file: the system keeps in memory what fits. The file is
    deleted as soon as it is mapped, so that it does not outlive the process.

    One instance serves several trainings of a process: seeds, or the trials of a search. It holds
    the activations of one set of frozen layers and examples; others replace them.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drop all activations."""
        self._fingerprint = ""
        self._activations = torch.empty(0, 0)  # of all tokens, [tokens, H]
        self._places: dict[bytes, slice] = {}

    def has_all(self, fingerprint: str, keys: Iterable[bytes]) -> bool:
        """Whether the cache holds the activations of these layers for all of these examples."""
        return fingerprint == self._fingerprint and self._places.keys() >= set(keys)

    def find(self, examples: Sequence[Mapping[str, Any]]) -> list[torch.Tensor] | None:
        """Return the activations of examples, [T, H] each; None if one of them is missing."""
        try:
            return [self._activations[self._places[example_key(e)]] for e in examples]
        except KeyError:
            return None

    def fill(
        self,
        fingerprint: str,
        examples: Dataset,
        layers: FrozenLayers,
        collate: Collate,
    ) -> None:
        """Compute the activations of some examples, which replace the content of the cache.

        The processes of a host share the file, and each of them computes some batches.

        Args:
            fingerprint: Identifies the frozen layers.
            examples: Distinct encoded examples, N, the same on every process.
            layers: Compute the activations.
            collate: Pads a batch.
        Raises:
            CacheUnavailableError: On every process, if one of them fails.
        """
        self.clear()
        lengths = examples["length"][:]
        batches = length_sorted_batches(lengths, FILL_BATCH, FILL_TOKENS)
        order = [row for rows in batches for row in rows]
        ends = np.cumsum([0, *(lengths[row] for row in order)]).tolist()
        with ExitStack() as stack:
            path = _create_file(stack, ends[-1] * layers.token_bytes)
            problem = ""
            try:
                with Path(path).open("r+b") as file:
                    for first, activations in _compute(examples, batches, layers, collate):
                        file.seek(first * layers.token_bytes)
                        file.write(activations.view(torch.uint8).numpy().data)
            except OSError as error:
                problem = f"{path} cannot be written: {one_line(error)}"
            except torch.OutOfMemoryError:
                problem = f"the frozen layers run out of memory with {max(lengths)} tokens"
            except CacheUnavailableError as error:
                problem = error.reason
            raise_on_all(problem)
            mapped = torch.from_file(path, size=ends[-1] * layers.width, dtype=layers.dtype)
            process_state().wait_for_everyone()  # before the file is deleted
        self._activations = mapped.view(-1, layers.width)
        keys = list(map(example_key, examples))
        places = zip(order, pairwise(ends), strict=True)
        self._places = {keys[row]: slice(*place) for row, place in places}
        self._fingerprint = fingerprint


class CachedCollator:
    """Pads examples to a batch, with their activations if the cache has all of them.

    Args:
        collate: Pads token ids.
    """

    def __init__(self, collate: Collate) -> None:
        self.collate = collate
        self.cache: ActivationCache | None = None  # set while a training uses it

    def __call__(self, features: list[Mapping[str, Any]]) -> Any:
        batch = self.collate(features)
        if self.cache is not None and (rows := self.cache.find(features)) is not None:
            batch[ACTIVATIONS] = pad_activations(rows, batch["attention_mask"])
        return batch


def example_key(example: Mapping[str, Any]) -> bytes:
    """A digest of what the model reads of an encoded example without padding."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("input_ids", "token_type_ids"):
        digest.update(array("q", example.get(name, ())).tobytes() + b"|")
    return digest.digest()


def pad_activations(rows: Sequence[torch.Tensor], attention_mask: torch.Tensor) -> torch.Tensor:
    """Rows [T, H] at the tokens of the mask [B, T], padded on either side with zeros, [B, T, H]."""
    padded = rows[0].new_zeros(*attention_mask.shape, rows[0].shape[-1])
    firsts = attention_mask.argmax(dim=1).tolist()
    for target, row, first in zip(padded, rows, firsts, strict=True):
        target[first : first + len(row)] = row
    return padded


def raise_on_all(problem: str) -> None:
    """Raise the first problem of all processes on each of them, so that they agree.

    Args:
        problem: Of this process; empty if there is none.
    Raises:
        CacheUnavailableError: If a process has one.
    """
    if reason := next(filter(None, gather_object([problem])), ""):
        raise CacheUnavailableError(reason)


def _create_file(stack: ExitStack, size: int) -> str:
    """Create the temporary file of this host, to be deleted with the stack.

    Returns:
        Its path, on every process.
    Raises:
        CacheUnavailableError: If there is not enough space, or the directory cannot be written.
    """
    state = process_state()
    path = problem = ""
    if state.local_process_index == 0:
        try:
            # Windows does not delete files that are mapped.
            directory = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
            folder = stack.enter_context(directory)
            path, free = f"{folder}/activations", shutil.disk_usage(folder).free
            if size + SPARE_BYTES > free:
                raise OSError(f"{format_bytes(size)} needed, {format_bytes(free)} free")
            with Path(path).open("wb") as file:
                file.truncate(size)
        except OSError as error:
            problem = f"no temporary file can be created (TMPDIR): {one_line(error)}"
    raise_on_all(problem)
    # The processes of a host have consecutive indices.
    return str(gather_object([path])[state.process_index - state.local_process_index])


def _compute(
    examples: Dataset, batches: list[list[int]], layers: FrozenLayers, collate: Collate
) -> Iterator[tuple[int, torch.Tensor]]:
    """Run the frozen layers for this process's share of the batches.

    Yields:
        For each batch the number of its first token, and the activations of all its tokens without
        padding, [tokens, H].
    """

    def compute(batch: list[dict[str, Any]]) -> torch.Tensor:
        inputs = collate(batch)
        return layers.compute(inputs).cpu()[inputs["attention_mask"].bool()]

    state = process_state()
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    lengths, first = examples["length"][:], 0
    is_main = state.is_main_process
    with tqdm(
        total=len(examples), desc="frozen layers", unit="example", disable=not is_main
    ) as bar:
        for number, rows in enumerate(batches):
            if number % num_local == state.local_process_index:
                batch = examples.__getitems__(rows)
                yield first, torch.cat(retry_in_halves(batch, compute))
            first += sum(lengths[row] for row in rows)
            bar.update(len(rows))
