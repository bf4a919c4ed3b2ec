"""Activations on disk or in memory, found by the token ids that they were computed from."""

import contextlib
import itertools
import os
import time
import uuid
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peft_mrpc.errors import logger, one_line
from peft_mrpc.trunk_rows import (
    KEY_BYTES,
    DiskWriter,
    MemoryWriter,
    Writer,
    raw_bytes,
    row_key,
    split_keys,
)

# What was begun so long ago is not being written any more.
ABANDONED_SECONDS = 3600
# What collated batches call the activations; the model never sees it.
STATES = "trunk_states"
Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a row stands in a file.

    Attributes:
        file: Name of the file, without suffix.
        first: Its first token.
        length: How many tokens it has.
        checksum: Of its bytes.
    """

    file: str
    first: int
    length: int
    checksum: int


class TrunkStore:
    """Rows of activations, [T, H] each, of differing lengths.

    On disk they are files of rows one after another (`NAME.states`), with keys and lengths beside
    them (`NAME.keys`, `NAME.lengths` with a checksum of each row, the last to be written). Files
    are only ever added, whole: any number of processes may read and write one store. Of a file the
    rows that are asked for are read, and no others. One that is damaged there is said and left
    out, and its rows are computed again.

    Args:
        folder: The store's own directory; None keeps all in memory.
        width: H.
        dtype: Of the activations.
        resident_bytes: Rows are held in memory as long as all of them fit into this; those of a
            file that comes after are mapped, and read as they are needed.
    """

    def __init__(
        self, folder: Path | None, width: int, dtype: torch.dtype, resident_bytes: int
    ) -> None:
        self.folder = folder
        self._source = folder  # read from, also once new rows are kept in memory
        self.width = width
        self.dtype = dtype
        self.resident_bytes = resident_bytes
        self.resident = 0  # bytes held in memory
        self._blocks: list[torch.Tensor] = []  # [tokens, H]
        self._place: dict[bytes, tuple[int, int, int]] = {}  # block, first token, tokens
        self._on_disk: dict[bytes, Kept] = {}
        self._tokens: dict[str, int] = {}  # of each file
        self._damaged: set[str] = set()
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        """Whether a row has been taken in."""
        return key in self._place

    def __getitem__(self, key: bytes) -> torch.Tensor:
        """The activations of a row that has been taken in, [T, H]."""
        block, first, length = self._place[key]
        return self._blocks[block][first : first + length]

    @property
    def token_bytes(self) -> int:
        """Size of one token's activations."""
        return self.width * self.dtype.itemsize

    def refresh(self) -> None:
        """Learn of the files that other processes have added."""
        if self.folder is None or not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob("*.lengths")):
            if path.stem not in self._tokens.keys() | self._damaged:
                self._list_rows(path)
        with contextlib.suppress(OSError):
            os.utime(self.folder)  # the day of its last use, for `peft-mrpc cache`

    def take(self, keys: Iterable[bytes]) -> None:
        """Take in those of these rows that the files hold."""
        by_file: dict[str, list[bytes]] = {}
        for key in keys:
            if key in self._on_disk and key not in self._place:
                by_file.setdefault(self._on_disk[key].file, []).append(key)
        before = len(self._damaged)
        for name, own in by_file.items():
            self._take_rows(name, sorted(own, key=lambda key: self._on_disk[key].first))
        if len(self._damaged) > before:  # what one file has lost another may hold
            self._on_disk.clear()
            self._tokens.clear()
            self.refresh()
            self.take([key for own in by_file.values() for key in own])

    def __getstate__(self) -> dict[str, Any]:
        """For workers of a data loader: they read the files themselves."""
        state = dict(vars(self))
        if self.folder is not None:
            state |= {"_blocks": [], "_place": {}, "resident": 0, "asked": [*self._place]}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        asked = state.pop("asked", [])
        vars(self).update(state)
        self.take(asked)

    def _list_rows(self, path: Path) -> None:
        """Note which rows a file holds; they are read when they are asked for."""
        try:
            keys = path.with_suffix(".keys").read_bytes()
            rows = array("q", path.read_bytes())
            lengths, sums = rows[::2], rows[1::2]
            if len(keys) != KEY_BYTES * len(lengths) or len(sums) != len(lengths):
                raise ValueError("its parts do not fit together")
        except (OSError, ValueError) as error:
            self._give_up(path.stem, error)
            return
        first = 0
        for key, length, wanted in zip(split_keys(keys), lengths, sums, strict=True):
            self._on_disk.setdefault(key, Kept(path.stem, first, length, wanted))
            first += length
        self._tokens[path.stem] = first

    def _take_rows(self, name: str, keys: Sequence[bytes]) -> None:
        """Check rows of a file, in its order, and hold or map them."""
        assert self._source is not None
        path = self._source / f"{name}.states"
        rows = [self._on_disk[key] for key in keys]
        lengths = [row.length for row in rows]
        size = sum(lengths) * self.token_bytes
        is_held = self.resident + size <= self.resident_bytes
        try:
            if path.stat().st_size != self._tokens[name] * self.token_bytes:
                raise ValueError("it is cut short")
            # Read, not mapped: pages that are mapped and looked at count as this process's memory.
            states = self._read_rows(path, rows, is_held)
            if not is_held:
                numbers = self._tokens[name] * self.width
                whole = torch.from_file(str(path), shared=False, size=numbers, dtype=self.dtype)
                states = whole.view(-1, self.width)
        except (OSError, ValueError, RuntimeError) as error:
            self._give_up(name, error)
            return
        self.resident += size if is_held else 0
        firsts = itertools.accumulate(lengths, initial=0) if is_held else [r.first for r in rows]
        self._add(states, keys, firsts, lengths)

    def _read_rows(self, path: Path, rows: Sequence[Kept], is_held: bool) -> torch.Tensor:
        """Read rows against their checksums, [tokens, H]; nothing of them if they are not held."""
        tokens = sum(row.length for row in rows) if is_held else 0
        states = torch.empty(tokens, self.width, dtype=self.dtype)
        content, filled = raw_bytes(states).cast("B") if tokens else memoryview(b""), 0
        with path.open("rb") as file:
            for row in rows:
                file.seek(row.first * self.token_bytes)
                read = file.read(row.length * self.token_bytes)
                if zlib.crc32(read) != row.checksum:
                    raise ValueError("what it holds has changed")
                if is_held:
                    content[filled : filled + len(read)] = read
                    filled += len(read)
        return states

    def _give_up(self, name: str, error: Exception) -> None:
        assert self._source is not None
        self._damaged.add(name)
        path = self._source / f"{name}.states"
        logger.warning("%s: damaged and not used: %s", path, one_line(error))

    def _add(
        self,
        states: torch.Tensor,
        keys: Sequence[bytes],
        firsts: Iterable[int],
        lengths: Sequence[int],
    ) -> None:
        """Add a block, and where in it rows begin and how long they are."""
        for key, first, length in zip(keys, firsts, lengths, strict=False):
            self._place.setdefault(key, (len(self._blocks), first, length))
        self._blocks.append(states)

    @contextlib.contextmanager
    def adding(self) -> Iterator[Writer]:
        """Add rows: all of them once the block ends well, none if it fails."""
        if self.folder is None:
            yield (kept := MemoryWriter())
            # Each row a block of its own: one block of all would be there twice for a while.
            own = zip(kept.states, split_keys(kept.keys), kept.lengths, strict=True)
            for states, key, length in own:
                self.resident += states.nbytes
                self._add(states, [key], [0], [length])
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
            if all(key in self._on_disk for key in split_keys(keys)):
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
