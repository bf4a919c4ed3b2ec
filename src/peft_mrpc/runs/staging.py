"""Write directories and files completely or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout

from peft_mrpc.errors import TrainingDiverged, UserError, one_line
from peft_mrpc.runs.run import ARTIFACT_FOLDERS, RUN_CONTENTS, load_run, read_artifact_record


@dataclass(frozen=True)
class DirectoryKind:
    """A kind of output directory. Only a directory of the same kind is replaced.

    Attributes:
        name: For messages.
        contents: Names, or patterns of names, that a directory of the kind may hold.
        read: Raises UserError for a directory of another kind.
    """

    name: str
    contents: frozenset[str]
    read: Callable[[Path], object]


RUN_DIRECTORY = DirectoryKind("Run", RUN_CONTENTS, load_run)


def check_output_dir(
    output_dir: Path, overwrite: bool, kind: DirectoryKind = RUN_DIRECTORY
) -> None:
    """Refuse a directory where writing is impossible or would destroy other files.

    Args:
        output_dir: The directory to write.
        overwrite: Whether an existing directory of the same kind may be replaced.
        kind: What will be written.
    Raises:
        UserError: If the directory exists and `overwrite` is off, if it holds anything else, or if
            it cannot be written.
    """
    where = f"output_dir: got {str(output_dir)!r}"
    try:
        fault = _content_fault(output_dir, overwrite, kind)
        if fault is None and output_dir.resolve() == Path.cwd():
            fault = "the working directory; expected another directory"
    except (OSError, ValueError) as error:  # a name that is too long, or has a null character
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{where}; cannot write there: {reason}.") from error
    if fault is not None:
        raise UserError(f"{where}, {fault}.")
    check_writable(output_dir.absolute().parent, where, prefix=_staging_prefix(output_dir))


def _content_fault(output_dir: Path, overwrite: bool, kind: DirectoryKind) -> str | None:
    """Why a directory cannot be written, or replaced."""
    if output_dir.is_symlink() and not output_dir.exists():
        return (
            f"a symbolic link to {output_dir.readlink()}, which does not exist; create or remove it"
        )
    if not output_dir.exists():
        return None
    if not output_dir.is_dir():
        return "a file; expected a directory"
    names = sorted(path.name for path in output_dir.iterdir())
    others = [name for name in names if not any(fnmatch(name, own) for own in kind.contents)]
    if others:
        return (
            f"which holds files that do not belong to a {kind.name} ({', '.join(others[:3])}); "
            "expected a new directory"
        )
    if not names:
        return None
    try:
        kind.read(output_dir)
    except UserError as error:
        reason = error.faults[0].removesuffix(".")
        return f"which holds files but not a {kind.name}; expected a new directory ({reason})"
    if overwrite:
        return None
    return (
        f"which already holds a {kind.name}; choose another directory, or replace it with overwrite"
    )


def check_writable(folder: Path, where: str, prefix: str = "") -> None:
    """Check that a directory, or its nearest existing parent, is writable.

    Args:
        folder: The directory.
        where: Beginning of the message.
        prefix: Beginning of the names that will be written there.
    Raises:
        UserError: If it is a file or not writable.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        Path(tempfile.mkdtemp(prefix=prefix, dir=folder)).rmdir()
    except OSError as error:
        raise UserError(f"{where}; cannot write in {folder}: {error.strerror}.") from error


def _staging_prefix(output_dir: Path) -> str:
    return f".{output_dir.name}."


@contextlib.contextmanager
def staged_directory(
    output_dir: Path,
    overwrite: bool = False,
    kind: DirectoryKind = RUN_DIRECTORY,
    key: str = "",
) -> Iterator[Path]:
    """Build a directory beside its destination and move it there when it is complete.

    One process at a time writes a destination: its lock is held from the check to the move.

    Args:
        output_dir: The destination. Of a symbolic link, the directory that it names.
        overwrite: Whether an existing directory of the same kind is replaced.
        kind: What is written.
        key: Identifies the content: a directory that a killed process left with the same key is
            used again. Without a key it is a new one.
    Yields:
        A directory on the same file system. When the block succeeds, it becomes `output_dir`. When
        the block fails, it is removed, unless it holds training checkpoints or a trained model that
        did not diverge: these are kept, and a note of the exception names their place.
    Raises:
        UserError: As `check_output_dir`, or if another process writes the destination.
    """
    output_dir = Path(os.path.realpath(output_dir))
    with exclusive(output_dir):
        check_output_dir(output_dir, overwrite, kind)
        prefix, parent = _staging_prefix(output_dir), output_dir.parent
        if key:
            staging = parent / f"{prefix}{key}"
            staging.mkdir(exist_ok=True)
        else:
            staging = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            staging.chmod(0o777 & ~_current_umask())
        try:
            yield staging
        except BaseException as error:
            if note := _describe_remains(staging, error):
                error.add_note(note)
            else:
                shutil.rmtree(staging, ignore_errors=True)
            raise
        try:
            # Again: not every file system has locks, and other tools do not use them.
            check_output_dir(output_dir, overwrite, kind)
            move_into_place(staging, output_dir)
        except (UserError, OSError) as error:
            error.add_note(f"The finished {kind.name} is kept in {staging}; move it yourself.")
            raise


def _describe_remains(staging: Path, error: BaseException) -> str | None:
    """A note about what a failed training has left; None if it is of no use."""
    if isinstance(error, TrainingDiverged):
        return None
    if any(staging.glob("checkpoints/checkpoint-*/trainer_state.json")):
        return f"Checkpoints are kept in {staging}; the same command continues."
    for name in ARTIFACT_FOLDERS:
        # Its record is written last, and names the files.
        with contextlib.suppress(UserError):
            read_artifact_record(staging / name)
            return f"The trained model is kept in {staging / name}; `predict` can load it."
    return None


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
    output_dir = output_dir.absolute()
    lock = FileLock(output_dir.parent / f".{output_dir.name}.lock")
    where = f"output_dir: got {str(output_dir)!r}"
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{where}, which another command is writing; wait for it, or choose another directory."
        ) from error
    except OSError as error:
        raise UserError(f"{where}; cannot write there: {error.strerror}.") from error
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
