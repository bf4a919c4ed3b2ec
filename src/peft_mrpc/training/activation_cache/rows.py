"""Rows of activations: their keys, how they are found by them, and how they are written."""

import hashlib
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset

KEY_BYTES = 16
# Keys of rows, [N]; all of one length, so that it is no matter that NumPy drops zeros at an end.
Keys = NDArray[np.bytes_]
KEY = np.dtype(f"S{KEY_BYTES}")


def row_key(row: Mapping[str, Sequence[int]]) -> bytes:
    """Names an encoded pair by what the model reads of it; its mask is ones: nothing is padded."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for name in ("input_ids", "token_type_ids"):
        digest.update(array("q", row.get(name) or ()).tobytes() + b"|")
    return digest.digest()


def row_keys(rows: Iterable[Mapping[str, Any]]) -> Keys:
    """The key of each of N encoded pairs, [N]."""
    return np.fromiter(map(row_key, rows), KEY)


@dataclass(frozen=True)
class KeyedRows:
    """N encoded pairs with what they are known by: to be made once, for every pair is hashed.

    Attributes:
        rows: The pairs, which may be made as they are asked for.
        keys: Of each, [N].
        lengths: Tokens of each, [N].
    """

    rows: Any
    keys: Keys
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Any) -> "KeyedRows":
        pairs = ((row_key(row), len(row["input_ids"])) for row in rows)
        found = np.fromiter(pairs, [("key", KEY), ("length", np.int64)])
        return cls(rows, found["key"].copy(), found["length"].copy())

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, places: Sequence[int]) -> "KeyedRows":
        """Some of them."""
        return KeyedRows(Subset(self.rows, places), self.keys[places], self.lengths[places])


def split_keys(keys: bytes | bytearray) -> Keys:
    """Keys that stand one after another."""
    return np.frombuffer(bytes(keys), KEY)


class RowIndex:
    """A few numbers of each row, found by its key.

    Sorted arrays: a row takes its key and eight bytes for each number, where a mapping from keys to
    tuples takes some hundreds.

    Args:
        columns: What the numbers are called.
    """

    def __init__(self, *columns: str) -> None:
        self._rows = np.empty(0, [("key", KEY), *((column, np.int64) for column in columns)])

    @property
    def keys(self) -> Keys:
        """Of all rows, sorted."""
        keys: Keys = self._rows["key"]
        return keys

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of these keys it knows, [N]."""
        return self._find(keys)[1]

    def rows(self, keys: Keys) -> NDArray[Any]:
        """The rows of those keys that it knows, in their order, with `key` and every column."""
        places, found = self._find(keys)
        return self._rows[places[found]]

    def build_table(self, keys: Keys, **columns: Any) -> NDArray[Any]:
        """Rows to `add`, each column [N] or one number for all."""
        rows = np.empty(len(keys), self._rows.dtype)
        assert {"key", *columns} == set(rows.dtype.names or ()), "a number for each column"
        rows["key"] = keys
        for name, numbers in columns.items():
            rows[name] = numbers
        return rows

    def add(self, tables: Iterable[NDArray[Any]]) -> None:
        """Take in rows; of those with one key, the first that came.

        Each call copies the whole: many tables at once cost what one does.
        """
        rows = np.concatenate([self._rows[:0], *tables])
        new = rows[np.unique(rows["key"], return_index=True)[1]]
        places, known = self._find(new["key"])
        if not known.all():
            self._rows = np.insert(self._rows, places[~known], new[~known])

    def _find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where each key would stand, and whether it does, [N] each."""
        places = np.searchsorted(self.keys, keys)
        if not len(self.keys):
            return places, np.zeros(len(keys), bool)
        return places, self.keys[np.minimum(places, len(self.keys) - 1)] == keys


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
