"""Rows of activations: their names, and how they are written one after another."""

import hashlib
import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import torch

KEY_BYTES = 16


def row_key(row: Mapping[str, Sequence[int]]) -> bytes:
    """Names an encoded pair by what the model reads of it."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for name in ("input_ids", "token_type_ids"):
        digest.update(array("q", row.get(name) or ()).tobytes() + b"|")
    return digest.digest()


def split_keys(keys: bytes | bytearray) -> list[bytes]:
    """Keys that stand one after another."""
    return [bytes(keys[n : n + KEY_BYTES]) for n in range(0, len(keys), KEY_BYTES)]


def raw_bytes(states: torch.Tensor) -> Any:
    """A tensor's bytes: NumPy knows no bfloat16."""
    return states.contiguous().view(torch.uint8).numpy().data


def checksum(states: torch.Tensor) -> int:
    """Of a row's bytes."""
    return zlib.crc32(raw_bytes(states))


class Writer:
    """Takes rows one after another."""

    def __init__(self) -> None:
        self.keys = bytearray()
        self.lengths = array("q")

    def add(self, key: bytes, states: torch.Tensor) -> None:
        """Take a row, [T, H]."""
        self.keys += key
        self.lengths.append(len(states))


class MemoryWriter(Writer):
    """Keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[torch.Tensor] = []

    def add(self, key: bytes, states: torch.Tensor) -> None:
        super().add(key, states)
        self.states.append(states.clone())


class DiskWriter(Writer):
    """Writes them through: memory holds one batch."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file = file
        self.sums = array("q")

    def add(self, key: bytes, states: torch.Tensor) -> None:
        super().add(key, states)
        self.sums.append(checksum(states))
        self.file.write(raw_bytes(states))
