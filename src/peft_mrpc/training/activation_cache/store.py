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

    One instance serves several trainings of a process: seeds, or the trials of a search. It holds
    the activations of one set of frozen layers; those of another set replace them.

    Args:
        memory_bytes: Activations beyond this size go to temporary files.
        num_trainings: How many trainings are expected to use the cache.
    """

    def __init__(self, memory_bytes: int, num_trainings: int = 1) -> None:
        self.memory_bytes = memory_bytes
        self.num_trainings = num_trainings
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._fingerprint = ""
        self._resident = 0  # bytes in memory
        self._blocks: list[torch.Tensor] = []  # [tokens, H] each
        self._places: dict[bytes, tuple[int, slice]] = {}  # block number and its tokens

    def __enter__(self) -> "ActivationCache":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def close(self) -> None:
        """Free the memory and remove the temporary files; the cache is empty afterwards."""
        self._fingerprint, self._resident = "", 0
        self._blocks.clear()
        self._places.clear()
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
        return self._resident + size <= self.memory_bytes

    def create_file(self, size: int) -> str:
        """Create a temporary file of so many bytes; its path.

        Raises:
            OSError: If there is not enough space, or the directory cannot be written.
        """
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="peft-mrpc-activations-")
        free = shutil.disk_usage(self._directory.name).free
        if size + SPARE_BYTES > free:
            needed, where = f"{size / 1e9:.2f} GB", tempfile.gettempdir()
            raise OSError(f"{needed} needed, {free / 1e9:.2f} GB free in {where} (TMPDIR)")
        path = Path(self._directory.name) / f"{len(self._blocks)}.activations"
        with path.open("wb") as file:
            file.truncate(size)
        return str(path)

    def add(
        self, keys: Sequence[bytes], lengths: Sequence[int], block: torch.Tensor, is_mapped: bool
    ) -> None:
        """Add the activations of examples, which follow one another in `block`, [tokens, H].

        Args:
            keys: Of each example, [N].
            lengths: Tokens of each example, [N].
            block: Their activations.
            is_mapped: Whether the block is a mapped file.
        """
        first = 0
        for key, length in zip(keys, lengths, strict=True):
            self._places[key] = (len(self._blocks), slice(first, first + length))
            first += length
        self._blocks.append(block)
        self._resident += 0 if is_mapped else block.nbytes

    def find(self, keys: Iterable[bytes]) -> list[torch.Tensor] | None:
        """The activations of these examples, [T, H] each; None if one of them is missing."""
        try:
            places = [self._places[key] for key in keys]
        except KeyError:
            return None
        return [self._blocks[number][tokens] for number, tokens in places]


def map_file(path: str, num_tokens: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Map a file of activations, [tokens, H]."""
    return torch.from_file(path, size=num_tokens * width, dtype=dtype).view(num_tokens, width)


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
