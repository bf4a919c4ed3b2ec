"""Activations on disk or in memory, found by the token ids that they were computed from."""

import contextlib
import hashlib
import os
import time
import uuid
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from peft_mrpc.errors import logger, one_line

KEY_BYTES = 16
# What was begun so long ago is not being written any more.
ABANDONED_SECONDS = 3600
# What collated batches call the activations; the model never sees it.
STATES = "trunk_states"
Collate = Callable[[list[Any]], Any]


def row_key(row: Mapping[str, Sequence[int]]) -> bytes:
    """Names an encoded pair by what the model reads of it."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for name in ("input_ids", "token_type_ids"):
        digest.update(array("q", row.get(name) or ()).tobytes() + b"|")
    return digest.digest()


class TrunkStore:
    """Rows of activations, [T, H] each, of differing lengths.

    On disk they are files of rows one after another (`NAME.states`), with keys and lengths beside
    them (`NAME.keys`, `NAME.lengths` with a checksum of each row, the last to be written). Files
    are only ever added, whole: any number of processes may read and write one store. A file that is
    damaged is said and left out, and its rows are computed again.

    Args:
        folder: The store's own directory; None keeps all in memory.
        width: H.
        dtype: Of the activations.
        resident_bytes: A file is held in memory as long as all of them fit into this; what comes
            after is mapped, and read as it is needed.
    """

    def __init__(
        self, folder: Path | None, width: int, dtype: torch.dtype, resident_bytes: int
    ) -> None:
        self.folder = folder
        self.width = width
        self.dtype = dtype
        self.resident_bytes = resident_bytes
        self.resident = 0  # bytes held in memory
        self._blocks: list[torch.Tensor] = []  # [tokens, H]
        self._place: dict[bytes, tuple[int, int, int]] = {}  # block, first token, tokens
        self._known: set[str] = set()
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        return key in self._place

    def __getitem__(self, key: bytes) -> torch.Tensor:
        """The activations of a row, [T, H]."""
        block, first, length = self._place[key]
        return self._blocks[block][first : first + length]

    @property
    def token_bytes(self) -> int:
        """Size of one token's activations."""
        return self.width * self.dtype.itemsize

    def refresh(self) -> None:
        """Take in the files that other processes have added."""
        if self.folder is None or not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob("*.lengths")):
            if path.stem not in self._known:
                self._read(path.stem)
        with contextlib.suppress(OSError):
            os.utime(self.folder)  # the day of its last use, for `peft-mrpc cache`

    def __getstate__(self) -> dict[str, Any]:
        """For workers of a data loader: they map the files themselves."""
        state = dict(vars(self))
        if self.folder is not None:
            state |= {"_blocks": [], "_place": {}, "_known": set(), "resident": 0}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.refresh()

    def _read(self, name: str) -> None:
        assert self.folder is not None
        self._known.add(name)
        path = self.folder / f"{name}.states"
        try:
            keys = path.with_suffix(".keys").read_bytes()
            rows = array("q", path.with_suffix(".lengths").read_bytes())
            lengths, sums = rows[::2], rows[1::2]
            size = sum(lengths) * self.width
            if len(keys) != KEY_BYTES * len(lengths) or len(sums) != len(lengths):
                raise ValueError("its parts do not fit together")
            if path.stat().st_size != size * self.dtype.itemsize:
                raise ValueError("it is cut short")
            # Read, not mapped: pages that are mapped and looked at count as this process's memory.
            with path.open("rb") as file:
                for length, wanted in zip(lengths, sums, strict=True):
                    if zlib.crc32(file.read(length * self.token_bytes)) != wanted:
                        raise ValueError("what it holds has changed")
            states = torch.from_file(str(path), shared=False, size=size, dtype=self.dtype)
            states = states.view(-1, self.width)
            if self.resident + states.nbytes <= self.resident_bytes:
                states = states.clone()
                self.resident += states.nbytes
        except (OSError, ValueError, RuntimeError) as error:
            logger.warning("%s: damaged and not used: %s", path, one_line(error))
            return
        self._add(states, keys, lengths)

    def _add(self, states: torch.Tensor, keys: bytes, lengths: Iterable[int]) -> None:
        first = 0
        for number, length in enumerate(lengths):
            key = keys[number * KEY_BYTES : (number + 1) * KEY_BYTES]
            self._place.setdefault(key, (len(self._blocks), first, length))
            first += length
        self._blocks.append(states)

    @contextlib.contextmanager
    def adding(self) -> Iterator["Writer"]:
        """Add rows: all of them once the block ends well, none if it fails."""
        if self.folder is None:
            yield (kept := MemoryWriter())
            if kept.states:
                self.resident += sum(one.nbytes for one in kept.states)
                self._add(torch.cat(kept.states), bytes(kept.keys), kept.lengths)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        path = self.folder / f"{uuid.uuid4().hex}.unfinished"
        try:
            with path.open("wb") as file:
                yield (writer := DiskWriter(file))
                file.flush()
                os.fsync(file.fileno())
            keys = bytes(writer.keys)
            self.refresh()
            # Another training may have filled in the same meanwhile.
            if all(keys[n : n + KEY_BYTES] in self for n in range(0, len(keys), KEY_BYTES)):
                return
            path.rename(path.with_suffix(".states"))
            path.with_suffix(".keys").write_bytes(keys)
            pairs = zip(writer.lengths, writer.sums, strict=True)
            rows = array("q", [number for pair in pairs for number in pair])
            path.with_suffix(".new").write_bytes(rows.tobytes())
            path.with_suffix(".new").rename(path.with_suffix(".lengths"))
        finally:
            if not path.with_suffix(".lengths").exists():
                for suffix in (".unfinished", ".states", ".keys", ".new"):
                    path.with_suffix(suffix).unlink(missing_ok=True)


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


def raw_bytes(states: torch.Tensor) -> Any:
    """A tensor's bytes: NumPy knows no bfloat16."""
    return states.contiguous().view(torch.uint8).numpy().data


def checksum(states: torch.Tensor) -> int:
    """Of a row's bytes."""
    return zlib.crc32(raw_bytes(states))


def sweep(folder: Path) -> None:
    """Remove what a fill that was killed left behind."""
    for path in folder.iterdir():
        is_begun = path.suffix in (".unfinished", ".new")
        is_alone = path.suffix in (".states", ".keys")
        if is_begun or (is_alone and not path.with_suffix(".lengths").exists()):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()


class TrunkCollator:
    """Pads encoded pairs to a batch, with their activations where a store has all of them.

    Args:
        collate: Pads token ids; knows nothing of activations.
    """

    def __init__(self, collate: Collate) -> None:
        self.collate = collate
        self.store: TrunkStore | None = None

    def __call__(self, features: list[Any]) -> Any:
        keys = [row_key(feature) for feature in features] if self.store else []
        batch = self.collate(features)
        if self.store and all(key in self.store for key in keys):
            batch[STATES] = pad_states([self.store[key] for key in keys], batch["attention_mask"])
        return batch


def pad_states(rows: Sequence[torch.Tensor], attention_mask: torch.Tensor) -> torch.Tensor:
    """Rows [T, H] where the mask [B, T] has their tokens, on either side; zeros elsewhere."""
    padded = rows[0].new_zeros(*attention_mask.shape, rows[0].shape[-1])
    for row, states, first in zip(padded, rows, attention_mask.argmax(dim=1).tolist(), strict=True):
        row[first : first + len(states)] = states
    return padded
