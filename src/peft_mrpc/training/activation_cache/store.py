"""Activations of examples, in memory or in memory-mapped temporary files.

Shapes: B batch, T tokens, H hidden.
"""

import hashlib
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from peft_mrpc.training.activation_cache.bypass import ACTIVATIONS

# Space that a temporary file leaves free on its file system.
SPARE_BYTES = 1 << 30


class ActivationCache:
    """Activations [T, H] of examples, found by the token ids that they were computed from.

    An instance serves one training after another in the same process: seeds, or the trials of a
    search. It holds the activations of one set of frozen layers; another set replaces them.

    Args:
        memory_bytes: Activations are held in memory as long as all of them fit into this, and in
            memory-mapped files in a temporary directory beyond.
        num_trainings: How many trainings are expected to use the cache.
    """

    def __init__(self, memory_bytes: int, num_trainings: int = 1) -> None:
        self.memory_bytes = memory_bytes
        self.num_trainings = num_trainings
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._fingerprint = ""
        self._blocks: list[torch.Tensor] = []  # [tokens, H] each
        self._paths: list[str | None] = []  # of the blocks; None for those in memory
        self._rows: dict[bytes, tuple[int, int, int]] = {}  # block, first token, number of tokens

    def __enter__(self) -> "ActivationCache":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def close(self) -> None:
        """Free the memory and remove the temporary files; the cache is empty afterwards."""
        self._fingerprint = ""
        self._blocks.clear()
        self._paths.clear()
        self._rows.clear()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def select(self, fingerprint: str) -> None:
        """Drop all activations that were not computed by the layers of this fingerprint."""
        if fingerprint != self._fingerprint:
            self.close()
            self._fingerprint = fingerprint

    def fits_in_memory(self, size: int) -> bool:
        """Whether so many bytes can be added within `memory_bytes`."""
        resident = sum(
            block.nbytes for block, path in zip(self._blocks, self._paths, strict=True) if not path
        )
        return resident + size <= self.memory_bytes

    def create_file(self, size: int) -> str:
        """Create a temporary file of so many bytes; its path.

        Raises:
            OSError: If there is not enough space, or the directory cannot be written.
        """
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="peft-mrpc-activations-")
        folder = self._directory.name
        free = shutil.disk_usage(folder).free
        if size + SPARE_BYTES > free:
            raise OSError(f"{size / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free in {folder}")
        path = Path(folder) / f"{len(self._blocks)}.activations"
        with path.open("wb") as file:
            file.truncate(size)
        return str(path)

    def add(
        self, keys: Sequence[bytes], lengths: Sequence[int], block: torch.Tensor, path: str | None
    ) -> None:
        """Add the activations of examples, which are consecutive in `block`, [tokens, H].

        Args:
            keys: Of each example, [N].
            lengths: Tokens of each example, [N].
            block: In memory or mapped.
            path: Of the file that the block is mapped from.
        """
        first = 0
        for key, length in zip(keys, lengths, strict=True):
            self._rows[key] = (len(self._blocks), first, length)
            first += length
        self._blocks.append(block)
        self._paths.append(path)

    def find(self, keys: Iterable[bytes]) -> list[torch.Tensor] | None:
        """The activations of these examples, [T, H] each; None if one of them is missing."""
        places = [self._rows.get(key) for key in keys]
        if any(place is None for place in places):
            return None
        return [
            self._blocks[place[0]][place[1] : place[1] + place[2]]
            for place in places
            if place is not None
        ]

    def __getstate__(self) -> dict[str, Any]:
        """For data loader workers that are not forked: they map the files themselves."""
        blocks = [
            (block.shape, block.dtype) if path else block
            for block, path in zip(self._blocks, self._paths, strict=True)
        ]
        return {**vars(self), "_blocks": blocks, "_directory": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        blocks = zip(state["_blocks"], state["_paths"], strict=True)
        state["_blocks"] = [map_file(path, *block) if path else block for block, path in blocks]
        vars(self).update(state)


def map_file(path: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Map a file of activations, [tokens, H]."""
    size = shape[0] * shape[1]
    return torch.from_file(path, shared=False, size=size, dtype=dtype).view(*shape)


def example_key(input_ids: Sequence[int], token_type_ids: Sequence[int] = ()) -> bytes:
    """A digest of what the model reads of an example without padding."""
    digest = hashlib.blake2b(digest_size=16)
    for ids in (input_ids, token_type_ids):
        digest.update(array("q", ids).tobytes() + b"|")
    return digest.digest()


class CachedCollator:
    """Pads examples to a batch, with their activations if the cache has all of them.

    Args:
        collate: Pads token ids.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate
        self.cache: ActivationCache | None = None  # set while a training uses it

    def __call__(self, features: list[Mapping[str, Any]]) -> Any:
        batch = self.collate(features)
        if self.cache is not None:
            keys = (example_key(f["input_ids"], f.get("token_type_ids", ())) for f in features)
            if (rows := self.cache.find(keys)) is not None:
                batch[ACTIVATIONS] = pad_activations(rows, batch["attention_mask"])
        return batch


def pad_activations(rows: Sequence[torch.Tensor], attention_mask: torch.Tensor) -> torch.Tensor:
    """Rows [T, H] at the tokens of the mask [B, T], padded on either side with zeros, [B, T, H]."""
    padded = rows[0].new_zeros(*attention_mask.shape, rows[0].shape[-1])
    firsts = attention_mask.argmax(dim=1).tolist()
    for target, row, first in zip(padded, rows, firsts, strict=True):
        target[first : first + len(row)] = row
    return padded
