"""Where a Run or a report is built, and how it gets into its place: whole, or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from peft_mrpc.errors import TrainingDiverged, UserError
from peft_mrpc.runs.run import RUN_CONTENTS


def check_output_dir(
    output_dir: Path,
    overwrite: bool,
    contents: frozenset[str] = RUN_CONTENTS,
    kind: str = "Run",
) -> None:
    """Refuse a place where writing would lose something, or that cannot be written to.

    Args:
        output_dir: Where a directory is to be.
        overwrite: Whether one of the same kind may be replaced.
        contents: What a directory of the kind may hold.
        kind: Its name, for the message.
    Raises:
        UserError: If one is there and `overwrite` is off, if anything else is there at all, or if
            the place is not writable.
    """
    where = f"--output_dir: got {str(output_dir)!r}"
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"{where}, a file; expected a directory.")
    if output_dir.exists() and any(output_dir.iterdir()):
        others = sorted({path.name for path in output_dir.iterdir()} - contents)
        if others:
            raise UserError(
                f"{where}, which holds what is no {kind}'s ({', '.join(others[:3])}); "
                "expected a new directory."
            )
        if not overwrite:
            raise UserError(
                f"{where}, which already holds a {kind}; name another directory, or replace it "
                "with --overwrite."
            )
    if output_dir.resolve() == Path.cwd():
        raise UserError(f"{where}, the working directory; expected another.")
    check_writable(output_dir.absolute().parent, where)


def check_writable(folder: Path, where: str) -> None:
    """Try to write in a directory, or in the nearest one that exists above it.

    Raises:
        UserError: If that is a file or cannot be written to.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        Path(tempfile.mkdtemp(dir=folder)).rmdir()
    except OSError as error:
        raise UserError(f"{where}; cannot write in {folder}: {error.strerror}.") from error


@contextlib.contextmanager
def staged_directory(output_dir: Path) -> Iterator[Path]:
    """Build a Run or a report beside its place and move it there whole, or not at all.

    Yields:
        A directory on the same file system. When the block ends well it becomes `output_dir` (one
        that was there goes then, and not before). When it fails it is removed, unless it holds
        training checkpoints, or a model that did not diverge: those are kept, and the error says
        where.
    """
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", dir=output_dir.parent))
    staging.chmod(0o777 & ~_current_umask())
    try:
        yield staging
    except BaseException as error:
        kept = sorted(
            staging.glob("checkpoints/checkpoint-*"), key=lambda p: int(p.name.split("-")[-1])
        )
        trained = [path for name in ("adapter", "model") if (path := staging / name).is_dir()]
        if kept:
            error.add_note(
                f"Checkpoints are kept; go on with --resume_from_checkpoint {kept[-1]}, and delete "
                f"{staging} when it is done."
            )
        elif trained and not isinstance(error, TrainingDiverged):
            error.add_note(
                f"What was trained is kept in {trained[0]}: `peft-mrpc predict` reads it."
            )
        else:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    move_into_place(staging, output_dir)


def move_into_place(staging: Path, output_dir: Path) -> None:
    """Make a finished directory the one at `output_dir`; what stood there goes then, not before."""
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


def _current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
