"""Run a command: exit codes, signals, logging and the format of errors."""

import contextlib
import dataclasses
import io
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from peft_mrpc import config
from peft_mrpc.errors import QualityGateFailed, UserError, one_line
from peft_mrpc.formatting import escape_control

EXIT_USER_ERROR = 2
EXIT_QUALITY_GATE = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
# Failures of the disk inside libraries that raise no OSError: the Rust code of safetensors and
# tokenizers, and torch.save.
DISK_FAILURE = re.compile(r"\(os error \d+\)|PytorchStreamWriter failed")
# torch raises RuntimeErrors where a CPU or GPU has no memory left.
MEMORY_FAILURE = re.compile(r"out of memory|can't allocate memory|not enough memory")


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C."""


def run_cli(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run one command and convert its exceptions into an exit code.

    Args:
        main: The command.
        argv: Its arguments; those of the process if None.
    Returns:
        0 done, 2 invalid input or a failure of the system (such as a full disk), 3 a quality gate
        failed, 130 interrupted, 143 terminated. Any other exception is raised (exit code 1, with a
        traceback).
    """
    _protect_output()
    # Every process of a distributed job makes the same checks: one on each machine reports.
    reports = os.environ.get("LOCAL_RANK", "0") == "0"
    _set_up_logging(reports)
    # A scheduler's SIGTERM ends a run as Ctrl-C does, so that unfinished files are removed.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        with _resend_lost_interrupts():
            main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        if reports or error.rank is not None:
            where = "" if error.rank is None else f"rank {error.rank}: "
            # On a line of its own: another process may be drawing a progress bar.
            begin = "" if error.rank is None else "\n"
            lines = [where + with_dashes(line) for line in error.lines()]
            _print_error([*lines, *getattr(error, "__notes__", [])], begin)
        return EXIT_QUALITY_GATE if isinstance(error, QualityGateFailed) else EXIT_USER_ERROR
    except KeyboardInterrupt as error:
        notes = " ".join(getattr(error, "__notes__", []))
        _print_error([f"interrupted. {notes or 'Nothing was written.'}"], begin="\n")
        return EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED
    except Exception as error:
        if (failure := system_failure(error)) is None:
            raise
        _print_error([failure, *getattr(error, "__notes__", [])])
        return EXIT_USER_ERROR
    if failure := _output_failure():
        _print_error([failure])
        return EXIT_USER_ERROR
    return 0


def system_failure(error: Exception) -> str | None:
    """One line for a failure of the system or of a text's encoding; None for other exceptions."""
    message = one_line(error)[:300]
    if isinstance(error, OSError):
        path = error.filename2 or error.filename
        if error.strerror is None or path is None:
            return message
        return f"{os.fsdecode(path) if isinstance(path, str | bytes) else path}: {error.strerror}."
    if isinstance(error, UnicodeError):
        return f"a text cannot be encoded or decoded: {message}."
    if isinstance(error, MemoryError) or MEMORY_FAILURE.search(message):
        return f"not enough memory: {message}. Use smaller batches or shorter examples."
    return message if DISK_FAILURE.search(message) else None


def _print_error(lines: Iterable[str], begin: str = "") -> None:
    for line in lines:
        sys.stderr.write(f"{begin}peft-mrpc: {escape_control(line)}\n")


def print_text(text: str) -> None:
    """Print lines of the result of a command; control characters in them are escaped."""
    sys.stdout.write(f"{escape_control(text)}\n")
    sys.stdout.flush()


class _StandardStream(io.FileIO):
    """A standard stream that stays writable when its reader ends or its disk is full.

    What is printed afterwards is dropped: printing may stop, as in `peft-mrpc train ... | head`,
    but the command goes on.

    Attributes:
        failure: The first error.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        if self.failure is None:
            try:
                return super().write(data) or 0
            except OSError as error:
                self.failure = error
        return len(data)


def _protect_output() -> None:
    """Make printing independent of the readers and encodings of the standard streams."""
    for name, original in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        stream: Any = getattr(sys, name)
        is_original = stream is original  # not one that a test or a notebook has replaced
        if stream is None:  # closed by the shell, as in `>&-`
            null = Path(os.devnull).open("w", errors="backslashreplace")  # noqa: SIM115
            setattr(sys, name, null)
        elif is_original and stream.isatty():
            stream.reconfigure(errors="backslashreplace")
        elif is_original:
            raw = _StandardStream(stream.fileno(), "wb", closefd=False)
            protected = io.TextIOWrapper(
                *(io.BufferedWriter(raw), stream.encoding, "backslashreplace"),
                line_buffering=stream.line_buffering,
            )
            setattr(sys, name, protected)


def _output_failure() -> str | None:
    """One line if the result could not be printed although there is a reader."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.failure if isinstance(raw, _StandardStream) else None
    if error is None or isinstance(error, BrokenPipeError):
        return None
    return f"standard output: {error.strerror}; the command has finished."


def with_dashes(fault: str) -> str:
    """Write the name of an option as on the command line: `r: got 0` becomes `--r: got 0`.

    Library code names arguments; a fault that begins with another word stays as it is.
    """
    name = re.match(r"[a-z]\w*(?=: )", fault)
    return f"--{fault}" if name and name[0] in _option_names() else fault


def _option_names() -> set[str]:
    """The names of all options; of libraries and methods, if the command has imported them."""
    types = [kind for kind in vars(config).values() if dataclasses.is_dataclass(kind)]
    if transformers := sys.modules.get("transformers.training_args"):
        types.append(transformers.TrainingArguments)
    names = {field.name for kind in types for field in dataclasses.fields(kind)}
    if registry := sys.modules.get("peft_mrpc.methods.registry"):
        names.update(*(method.option_types() for method in registry.METHODS.values()))
    return names


def _set_up_logging(reports: bool) -> None:
    # PEFT still calls functions that transformers has renamed; users cannot change that.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # LN tuning trains normalization layers, which PEFT's other methods do not support.
    warnings.filterwarnings("ignore", message="Unsupported layer type", module="peft")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_EscapingFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("peft_mrpc").setLevel(logging.INFO if reports else logging.ERROR)


class _EscapingFormatter(logging.Formatter):
    """Escapes control characters of foreign text, such as a server's answer."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_control(super().format(record))


def _raise_terminated(*_: object) -> None:
    raise Terminated


@contextlib.contextmanager
def _resend_lost_interrupts() -> Iterator[None]:
    """Send Ctrl-C and SIGTERM again when Python drops them.

    A signal handler raises in whatever code is running. In `__del__` or the callback of a weak
    reference, which run often while weights are loaded, Python prints the exception and goes on.
    """

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            previous(dropped)
            return
        number = signal.SIGTERM if issubclass(dropped.exc_type, Terminated) else signal.SIGINT
        # Later, because an exception raised inside this hook would be dropped too.
        timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    previous, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = previous


@contextlib.contextmanager
def progress_bars(enabled: bool) -> Iterator[None]:
    """Show or hide the progress bars of transformers and datasets within the block."""
    import datasets
    from transformers.utils import logging as transformers_logging

    previous = transformers_logging.is_progress_bar_enabled(), datasets.is_progress_bar_enabled()
    if not enabled:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if previous[0]:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        if previous[1]:
            datasets.enable_progress_bars()
