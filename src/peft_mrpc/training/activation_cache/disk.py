"""The directories that trunks are kept in: where, how large, what for, and how they go."""

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from peft_mrpc.distributed import process_state
from peft_mrpc.errors import UserError
from peft_mrpc.models.hub import cache_dir
from peft_mrpc.serialization import read_json, write_json
from peft_mrpc.training.activation_cache.plan import TrunkPlan, in_bytes

ABOUT_FILE = "about.json"
# A file system that is full takes more down than a training.
SPARE_BYTES = 1 << 30
# A trunk's directory, and the files in it.
NAME = re.compile(r"[0-9a-f]{24}")
SUFFIXES = (".states", ".keys", ".lengths", ".new", ".unfinished")
# A file that nothing was added to for so long is not being written any more.
ABANDONED_SECONDS = 3600


def trunks_dir() -> Path:
    """Where trunks are kept, one directory each: `PEFT_MRPC_TRUNKS`, or in our cache."""
    folder = os.environ.get("PEFT_MRPC_TRUNKS")
    return Path(folder).expanduser() if folder else cache_dir() / "trunks"


@dataclass(frozen=True)
class KeptTrunk:
    """A trunk on disk.

    Attributes:
        folder: Its directory.
        about: What it was computed with.
        size: In bytes.
        unfinished: Of these, in files that are being written.
        used: When it was last used, in seconds since 1970.
    """

    folder: Path
    about: dict[str, Any]
    size: int
    unfinished: int
    used: float


def kept_trunks() -> list[KeptTrunk]:
    """All trunks on disk, the last used first."""
    found = []
    for folder in _folders():
        with contextlib.suppress(OSError):  # another process has removed it
            about: dict[str, Any] = {}
            with contextlib.suppress(UserError):  # or has just begun it
                read = read_json(folder / ABOUT_FILE)
                about = read if isinstance(read, dict) else {}
            size, unfinished = _size(folder.iterdir()), _size(unfinished_files(folder))
            found.append(KeptTrunk(folder, about, size, unfinished, folder.stat().st_mtime))
    return sorted(found, key=lambda trunk: -trunk.used)


def _folders() -> list[Path]:
    """Those of trunks: what else lies there is the user's own."""
    return [p for p in trunks_dir().glob("*") if NAME.fullmatch(p.name) and p.is_dir()]


def _size(paths: Iterable[Path]) -> int:
    """Bytes of files, of which others may remove or rename some meanwhile."""
    size = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def unfinished_files(folder: Path) -> Iterator[Path]:
    """Files of a fill that has not ended: it is running, or was killed."""
    for path in folder.iterdir():
        is_begun = path.suffix in (".unfinished", ".new")
        is_alone = path.suffix in (".states", ".keys")
        if is_begun or (is_alone and not path.with_suffix(".lengths").exists()):
            yield path


def sweep(folder: Path) -> None:
    """Remove what a fill that was killed left behind."""
    with contextlib.suppress(OSError):  # another process has removed it
        for path in [*unfinished_files(folder)]:
            with contextlib.suppress(FileNotFoundError):  # or has ended this one
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()


def disk_refusal(size: int, limit: int, own: Path | None = None) -> str:
    """Why so many bytes more cannot be kept on disk; nothing if they can.

    Args:
        size: In bytes.
        limit: The most that all trunks together may take.
        own: The trunk that they are of. What others are just writing there are the same rows.
    """
    for folder in _folders():
        sweep(folder)
    kept = sum(
        trunk.size - (trunk.unfinished if trunk.folder == own else 0) for trunk in kept_trunks()
    )
    if kept + size > limit:
        return (
            f"it takes {in_bytes(size)}, {in_bytes(kept)} are kept already, and "
            f"--trunk_cache_limit is {in_bytes(limit)} (`peft-mrpc cache` lists and clears)"
        )
    place = trunks_dir().absolute()
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"{place} cannot be written"
    free = shutil.disk_usage(there).free
    if size + SPARE_BYTES > free:
        return f"it takes {in_bytes(size)}, and {trunks_dir()} has {in_bytes(free)} free"
    return ""


class Room(NamedTuple):
    """Where activations are kept.

    Attributes:
        in_memory: There, and not on disk.
        refusal: What is in the way there, if anything is.
        reason: Why they are not on disk, where they would be otherwise.
    """

    in_memory: bool
    refusal: str
    reason: str = ""


def find_room(
    plan: TrunkPlan,
    size: int,
    in_memory: bool = False,
    held: int = 0,
    own: Path | None = None,
) -> Room:
    """Settle where so many bytes more are kept.

    Args:
        plan: Where they may be.
        size: In bytes.
        in_memory: Whether they can go nowhere else.
        held: Bytes in memory already.
        own: The trunk that they are of, if it has a place on disk.
    """
    limit, refusal = plan.memory_bytes, ""
    if held + size > limit:
        refusal = f"it takes {in_bytes(held + size)}, --trunk_cache_memory is {in_bytes(limit)}"
    if process_state().num_processes > 1:
        refusal = "several processes share it on disk alone (--trunk_cache disk)"
    if in_memory or plan.mode == "memory":
        return Room(True, refusal)
    on_disk = disk_refusal(size, plan.disk_bytes, own)
    if on_disk and plan.mode == "auto" and not refusal:
        return Room(True, "", on_disk)
    return Room(False, on_disk)


def fill_refusal(num_pairs: int, visits: int) -> str:
    """Why running pairs once does not pay, given how many training reads; nothing if it does."""
    if num_pairs <= visits:
        return ""
    return f"training reads {visits:,} pairs, fewer than the {num_pairs:,} to run"


def describe_trunk(folder: Path, about: Mapping[str, Any]) -> None:
    """Write beside a trunk what it was computed with."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ABOUT_FILE).is_file():
        new = folder / f"{uuid.uuid4().hex}.new"
        write_json(new, {**about, "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        new.rename(folder / ABOUT_FILE)


def remove_trunk(trunk: KeptTrunk) -> int:
    """Remove our files in it, but for those that are being written.

    A training that reads it keeps what it has mapped.

    Returns:
        How many bytes that freed.
    """
    sweep(trunk.folder)
    found, freed = [*trunk.folder.iterdir()], 0
    written = {*unfinished_files(trunk.folder)}  # after it: what is begun later is not in `found`
    for path in found:
        is_ours = path.suffix in SUFFIXES or (path.name == ABOUT_FILE and not written)
        if is_ours and path not in written:
            freed += _size([path])
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something of the user's is in it, or a running fill's
        trunk.folder.rmdir()
    return freed
