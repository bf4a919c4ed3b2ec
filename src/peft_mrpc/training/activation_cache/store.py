"""Activations on disk or in memory, found by the token ids that they were computed from."""

import contextlib
import os
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from peft_mrpc.errors import logger, one_line
from peft_mrpc.training.activation_cache.rows import (
    DiskWriter,
    Keys,
    MemoryWriter,
    RowIndex,
    Writer,
    raw_bytes,
    row_keys,
    split_keys,
)

# What is known of a row, in the files and where it has been taken in: first and length in tokens.
IN_FILES, IN_BLOCKS = ("file", "first", "length", "checksum"), ("block", "first", "length")
# What collated batches call the activations; the model never sees it.
STATES = "trunk_states"
Collate = Callable[[list[Any]], Any]


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
        self._place = RowIndex(*IN_BLOCKS)
        self._on_disk = RowIndex(*IN_FILES)
        self._tokens: dict[str, int] = {}  # of each file by its name; their order numbers them
        self._damaged: set[str] = set()
        self.refresh()

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of these rows have been taken in, [N]."""
        return self._place.has(keys)

    def states(self, keys: Keys) -> list[torch.Tensor]:
        """The activations of these rows, [T, H] each; nothing if one has not been taken in."""
        places = self._place.rows(keys)[[*IN_BLOCKS]].tolist()
        if len(places) < len(keys):
            return []
        return [self._blocks[block][first : first + length] for block, first, length in places]

    @property
    def token_bytes(self) -> int:
        """Size of one token's activations."""
        return self.width * self.dtype.itemsize

    def refresh(self) -> None:
        """Learn of the files that other processes have added."""
        if self._source is None or not self._source.is_dir():
            return
        known = self._tokens.keys() | self._damaged
        new = [path for path in sorted(self._source.glob("*.lengths")) if path.stem not in known]
        tables: list[NDArray[Any]] = []
        try:
            for path in new:
                tables.append(self._list_rows(path))
        finally:  # an interrupt shall not leave a file listed whose rows are not
            self._on_disk.add(tables)
        with contextlib.suppress(OSError):
            os.utime(self._source)  # the day of its last use, for `peft-mrpc cache`

    def take(self, keys: Keys) -> None:
        """Take in those of these rows that the files hold."""
        wanted = np.unique(keys[~self.has(keys)])
        rows = self._on_disk.rows(wanted)
        rows = rows[np.lexsort((rows["first"], rows["file"]))]
        before = len(self._damaged)
        by_file = np.split(rows, np.flatnonzero(np.diff(rows["file"])) + 1)
        names = [*self._tokens]
        tables: list[NDArray[Any]] = []
        try:
            for own in filter(len, by_file):
                tables.append(self._take_rows(names[own["file"][0]], own))
        finally:  # nor memory taken by rows that nobody finds
            self._place.add(tables)
        if len(self._damaged) > before:  # what one file has lost another may hold
            self._on_disk = RowIndex(*IN_FILES)
            self._tokens.clear()
            self.refresh()
            self.take(wanted)

    def __getstate__(self) -> dict[str, Any]:
        """For workers of a data loader: they read the files themselves."""
        state = dict(vars(self))
        if self.folder is not None:
            state |= {"_blocks": [], "_place": RowIndex(*IN_BLOCKS)}
            state |= {"resident": 0, "asked": self._place.keys}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        asked = state.pop("asked", None)
        vars(self).update(state)
        if asked is not None:
            self.take(asked)

    def _list_rows(self, path: Path) -> NDArray[Any]:
        """What a file holds, to be read when it is asked for; nothing of a damaged one."""
        try:
            keys = split_keys(path.with_suffix(".keys").read_bytes())
            lengths, sums = np.frombuffer(path.read_bytes(), np.int64).reshape(-1, 2).T
            if len(keys) != len(lengths):
                raise ValueError("its parts do not fit together")
        except (OSError, ValueError) as error:
            self._give_up(path.stem, error)
            return self._on_disk.rows(split_keys(b""))
        numbers = {"first": np.cumsum(lengths) - lengths, "length": lengths, "checksum": sums}
        self._tokens[path.stem] = int(lengths.sum())
        return self._on_disk.build_table(keys, file=len(self._tokens) - 1, **numbers)

    def _take_rows(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Check rows of one file, in its order, hold or map them, and say where they are."""
        assert self._source is not None
        path = self._source / f"{name}.states"
        size = int(rows["length"].sum()) * self.token_bytes
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
            return self._place.rows(split_keys(b""))
        self.resident += size if is_held else 0
        self._blocks.append(states)
        firsts = np.cumsum(rows["length"]) - rows["length"] if is_held else rows["first"]
        place = {"block": len(self._blocks) - 1, "first": firsts, "length": rows["length"]}
        return self._place.build_table(rows["key"], **place)

    def _read_rows(self, path: Path, rows: NDArray[Any], is_held: bool) -> torch.Tensor:
        """Read rows against their checksums, [tokens, H]; nothing of them if they are not held."""
        tokens = int(rows["length"].sum()) if is_held else 0
        states = torch.empty(tokens, self.width, dtype=self.dtype)
        content, filled = raw_bytes(states).cast("B") if tokens else memoryview(b""), 0
        with path.open("rb") as file:
            for first, length, checksum in rows[["first", "length", "checksum"]].tolist():
                file.seek(first * self.token_bytes)
                read = file.read(length * self.token_bytes)
                if zlib.crc32(read) != checksum:
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

    @contextlib.contextmanager
    def adding(self) -> Iterator[Writer]:
        """Add rows: all of them once the block ends well, none if it fails."""
        if self.folder is None:
            yield (kept := MemoryWriter())
            # Each row a block of its own: one block of all would be there twice for a while.
            self.resident += sum(states.nbytes for states in kept.states)
            blocks = len(self._blocks) + np.arange(len(kept.states))
            place = {"block": blocks, "first": 0, "length": kept.lengths}
            self._place.add([self._place.build_table(split_keys(kept.keys), **place)])
            self._blocks += kept.states
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{uuid.uuid4().hex}.unfinished"
        try:
            with path.open("wb") as file:
                yield (writer := DiskWriter(file))
                file.flush()
                os.fsync(file.fileno())
            keys = bytes(writer.keys)
            self.refresh()
            # Another training may have filled in the same meanwhile.
            if self._on_disk.has(split_keys(keys)).all():
                return
            path.rename(path.with_suffix(".states"))
            path.with_suffix(".keys").write_bytes(keys)
            rows = np.stack([writer.lengths, writer.sums], axis=1)
            path.with_suffix(".new").write_bytes(rows.astype(np.int64).tobytes())
            path.with_suffix(".new").rename(path.with_suffix(".lengths"))
        finally:
            if not path.with_suffix(".lengths").exists():
                for suffix in (".unfinished", ".states", ".keys", ".new"):
                    path.with_suffix(suffix).unlink(missing_ok=True)


class TrunkCollator:
    """Pads encoded pairs to a batch, with their activations where a store has all of them.

    Args:
        collate: Pads token ids; knows nothing of activations.
    """

    def __init__(self, collate: Collate) -> None:
        self.collate = collate
        self.store: TrunkStore | None = None

    def __call__(self, features: list[Any]) -> Any:
        kept: list[torch.Tensor] = []
        if self.store is not None:
            kept = self.store.states(row_keys(features))
        batch = self.collate(features)
        if kept:
            batch[STATES] = pad_states(kept, batch["attention_mask"])
        return batch


def pad_states(rows: Sequence[torch.Tensor], attention_mask: torch.Tensor) -> torch.Tensor:
    """Rows [T, H] where the mask [B, T] has their tokens, on either side; zeros elsewhere."""
    padded = rows[0].new_zeros(*attention_mask.shape, rows[0].shape[-1])
    for row, states, first in zip(padded, rows, attention_mask.argmax(dim=1).tolist(), strict=True):
        row[first : first + len(states)] = states
    return padded
