"""The directories that trunks are kept in: where, how large, what for, and how they go."""

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_mrpc.errors import UserError, one_line
from peft_mrpc.runs import read_json, write_json
from peft_mrpc.sources import cache_dir
from peft_mrpc.trunk_plan import in_bytes

ABOUT_FILE = "about.json"
# A file system that is full takes more down than a training.
SPARE_BYTES = 1 << 30
# A trunk's directory, and the files in it.
NAME = re.compile(r"[0-9a-f]{24}")
SUFFIXES = (".states", ".keys", ".lengths", ".new", ".unfinished")


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
        used: When it was last used, in seconds since 1970.
    """

    folder: Path
    about: dict[str, Any]
    size: int
    used: float


def kept_trunks() -> list[KeptTrunk]:
    """All trunks on disk, the last used first."""
    found = []
    for folder in trunks_dir().glob("*"):
        if not NAME.fullmatch(folder.name) or not folder.is_dir():  # the user's own
            continue
        with contextlib.suppress(OSError):  # another process is removing it
            about: dict[str, Any] = {}
            with contextlib.suppress(UserError):  # or has just begun it
                about = read_json(folder / ABOUT_FILE)
            size = sum(path.stat().st_size for path in folder.iterdir())
            found.append(KeptTrunk(folder, about, size, folder.stat().st_mtime))
    return sorted(found, key=lambda trunk: -trunk.used)


def disk_refusal(size: int, limit: int) -> str:
    """Why so many bytes more cannot be kept on disk; nothing if they can.

    Args:
        size: In bytes.
        limit: The most that all trunks together may take.
    """
    kept = sum(trunk.size for trunk in kept_trunks())
    if kept + size > limit:
        return (
            f"it takes {in_bytes(size)}, {in_bytes(kept)} are kept already, and "
            f"--trunk_cache_limit is {in_bytes(limit)} (`peft-mrpc cache` lists and clears)"
        )
    try:
        trunks_dir().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{trunks_dir()} cannot be written: {one_line(error)}"
    free = shutil.disk_usage(trunks_dir()).free
    if size + SPARE_BYTES > free:
        return f"it takes {in_bytes(size)}, and {trunks_dir()} has {in_bytes(free)} free"
    return ""


def describe_trunk(folder: Path, about: Mapping[str, Any]) -> None:
    """Write beside a trunk what it was computed with."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ABOUT_FILE).is_file():
        new = folder / f"{uuid.uuid4().hex}.new"
        write_json(new, {**about, "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        new.rename(folder / ABOUT_FILE)


def remove_trunk(trunk: KeptTrunk) -> None:
    """Remove our files in it; a training that reads it keeps what it has mapped."""
    for path in trunk.folder.iterdir():
        if path.suffix in SUFFIXES or path.name == ABOUT_FILE:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something of the user's is in it
        trunk.folder.rmdir()
