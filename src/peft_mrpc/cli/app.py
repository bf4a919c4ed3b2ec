"""Run a command: exit codes, signals, logging and the format of errors."""

import contextlib
import dataclasses
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

from peft_mrpc import config
from peft_mrpc.errors import QualityGateFailed, UserError

EXIT_USER_ERROR = 2
EXIT_QUALITY_GATE = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C."""


def run_cli(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run one command and convert its exceptions into an exit code.

    Args:
        main: The command.
        argv: Its arguments; those of the process if None.
    Returns:
        0 done, 2 invalid input, 3 a quality gate failed, 130 interrupted, 143 terminated. Any
        other exception is raised (exit code 1, with a traceback).
    """
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
            # On a line of its own: another process may be drawing a progress bar.
            begin = "" if error.rank is None else "\n"
            where = "" if error.rank is None else f"rank {error.rank}: "
            for line in [*error.lines(), *getattr(error, "__notes__", [])]:
                sys.stderr.write(f"{begin}peft-mrpc: {where}{with_dashes(line)}\n")
        return EXIT_QUALITY_GATE if isinstance(error, QualityGateFailed) else EXIT_USER_ERROR
    except KeyboardInterrupt as error:
        notes = " ".join(getattr(error, "__notes__", []))
        sys.stderr.write(f"\npeft-mrpc: interrupted. {notes or 'Nothing was written.'}\n")
        return EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of the output has ended, as in `peft-mrpc ... | head`
        sys.stderr.close()
        return 0
    return 0


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
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("peft_mrpc").setLevel(logging.INFO if reports else logging.ERROR)


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
