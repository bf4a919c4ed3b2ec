"""Write directories and files completely or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout

from peft_mrpc.errors import TrainingDiverged, UserError, one_line
from peft_mrpc.runs.run import RUN_CONTENTS


def check_output_dir(
    output_dir: Path,
    overwrite: bool,
    contents: frozenset[str] = RUN_CONTENTS,
    kind: str = "Run",
) -> None:
    """Refuse a directory where writing is impossible or would destroy other files.

    Args:
        output_dir: The directory to write.
        overwrite: Whether an existing directory of the same kind may be replaced.
        contents: Names, or patterns of names, that a directory of the kind may hold.
        kind: Name of the kind, for messages.
    Raises:
        UserError: If the directory exists and `overwrite` is off, if it holds anything else, or if
            it cannot be written.
    """
    where = f"output_dir: got {str(output_dir)!r}"
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"{where}, a file; expected a directory.")
    if output_dir.exists() and any(output_dir.iterdir()):
        names = sorted(path.name for path in output_dir.iterdir())
        others = [name for name in names if not any(fnmatch(name, own) for own in contents)]
        if others:
            raise UserError(
                f"{where}, which holds files that do not belong to a {kind} "
                f"({', '.join(others[:3])}); expected a new directory."
            )
        if not overwrite:
            raise UserError(
                f"{where}, which already holds a {kind}; choose another directory, or replace it "
                "with overwrite."
            )
    if output_dir.resolve() == Path.cwd():
        raise UserError(f"{where}, the working directory; expected another directory.")
    check_writable(output_dir.absolute().parent, where)


def check_writable(folder: Path, where: str) -> None:
    """Check that a directory, or its nearest existing parent, is writable.

    Args:
        folder: The directory.
        where: Beginning of the message.
    Raises:
        UserError: If it is a file or not writable.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        Path(tempfile.mkdtemp(dir=folder)).rmdir()
    except OSError as error:
        raise UserError(f"{where}; cannot write in {folder}: {error.strerror}.") from error


@contextlib.contextmanager
def staged_directory(output_dir: Path, key: str = "") -> Iterator[Path]:
    """Build a directory beside its destination and move it there when it is complete.

    Args:
        output_dir: The destination.
        key: Identifies the content; only one process at a time may use it. A directory that a
            killed process left with the same key is used again. Without a key it is a new one.
    Yields:
        A directory on the same file system. When the block succeeds, it replaces `output_dir`. When
        the block fails, it is removed, unless it holds checkpoints or the model of a training that
        did not diverge: these are kept, and a note of the exception names their place.
    """
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{output_dir.name}."
    if key:
        staging = output_dir.parent / f"{prefix}{key}"
        staging.mkdir(exist_ok=True)
    else:
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=output_dir.parent))
        staging.chmod(0o777 & ~_current_umask())
    try:
        yield staging
    except BaseException as error:
        is_kept = not isinstance(error, TrainingDiverged)
        models = [path for name in ("adapter", "model") if (path := staging / name).is_dir()]
        if is_kept and any(staging.glob("checkpoints/checkpoint-*")):
            error.add_note(f"Checkpoints are kept in {staging}; the same command continues.")
        elif is_kept and models:
            error.add_note(
                f"The trained model is kept in {models[0]}; `peft-mrpc predict` can load it."
            )
        else:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    move_into_place(staging, output_dir)


def move_into_place(staging: Path, output_dir: Path) -> None:
    """Replace `output_dir` by a finished directory; the old one is removed last."""
    replaced = None
    if output_dir.exists():
        replaced = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.old.", dir=output_dir.parent))
        output_dir.rename(replaced / "run")
    try:
        staging.rename(output_dir)
    except OSError:
        if replaced:
            (replaced / "run").rename(output_dir)
        raise
    if replaced:
        shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Write a file beside its destination and move it there when it is complete.

    Yields:
        A path on the same file system with the same suffix. When the block succeeds, it replaces
        `path`; otherwise it is removed.
    Raises:
        UserError: If the file cannot be written.
    """
    staging = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield staging
        staging.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {one_line(error)}") from error
    finally:
        staging.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(output_dir: Path) -> Iterator[None]:
    """Hold the lock of an output directory, so that one process writes it at a time.

    Raises:
        UserError: If another process holds the lock.
    """
    output_dir.absolute().parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output_dir.absolute().parent / f".{output_dir.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"output_dir: got {str(output_dir)!r}, which another process is writing; wait for it."
        ) from error
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)


def _current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
