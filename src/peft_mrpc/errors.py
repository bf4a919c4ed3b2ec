"""What the user did wrong, said in one line for each fault."""

import contextlib
import difflib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

logger = logging.getLogger("peft_mrpc")

EXIT_USER_ERROR = 2
EXIT_QUALITY_GATE = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
MAX_FAULTS_SHOWN = 10


class UserError(Exception):
    """Faults in what the user gave: `<where>: got <value>; expected <allowed>. <next step>`."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
        self.rank: int | None = None  # of the process that alone met it, in a job of several

    def lines(self) -> list[str]:
        """The faults to print; a long list is cut and says how much was cut."""
        shown = [" ".join(fault.split()) for fault in self.faults[:MAX_FAULTS_SHOWN]]
        rest = len(self.faults) - len(shown)
        return [*shown, f"... and {rest} more faults of this kind."] if rest else shown


class QualityGateFailed(UserError):
    """A bar that the user set was not met; all that was asked for was done."""


class TrainingDiverged(UserError):
    """A model whose scores are no numbers: nothing of it is worth keeping."""

    def __init__(self) -> None:
        super().__init__(
            "the model's scores are not finite: the training diverged. Lower --learning_rate (or "
            "--sam_rho, if there is one)."
        )


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where the program stands."""


def _on_terminate(*_: object) -> None:
    raise Terminated


@contextlib.contextmanager
def _no_interrupt_is_lost() -> Iterator[None]:
    """Send again what Python drops of Ctrl-C and SIGTERM.

    The handler raises where the program stands. In `__del__` or a weak reference's callback, of
    which loading weights runs many, nothing catches it and the program would go on.
    """

    def hook(lost: "sys.UnraisableHookArgs") -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            before(lost)
            return
        number = signal.SIGTERM if issubclass(lost.exc_type, Terminated) else signal.SIGINT
        # Later, or it would be raised in here and be lost once more.
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    before, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def closest(name: str, choices: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing where no choice is near."""
    close = difflib.get_close_matches(name, sorted(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown_name(where: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that is not among a short list of choices."""
    known = sorted(choices)
    return UserError(
        f"{where}: got {name!r}; expected one of {', '.join(known)}.{closest(name, known)}"
    )


def choice_faults(config: object, choices: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with flags that take one of a few names; those are the keys."""
    return [
        fault
        for name, known in choices.items()
        if getattr(config, name) not in known
        for fault in unknown_name(f"--{name}", getattr(config, name), known).faults
    ]


def raise_faults(faults: Sequence[str]) -> None:
    """Raise all faults at once, if there are any."""
    if faults:
        raise UserError(*faults)


def one_line(error: BaseException) -> str:
    """A library's error message without its line breaks, to stand inside one of ours."""
    return " ".join(str(error).split()) or type(error).__name__


def run_cli(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run one command and turn what it raises into the exit code the user is promised.

    Returns:
        0 done, 2 the input is wrong, 3 a bar was missed, 130 interrupted. Any other error keeps its
        traceback (1).
    """
    # PEFT still calls what transformers has renamed: not the user's to mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # LN tuning trains the norms, which no other PEFT method would.
    warnings.filterwarnings("ignore", message="Unsupported layer type", module="peft")
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    # Every rank of a distributed job makes the same checks: one on each machine speaks.
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    logger.setLevel(logging.INFO if speaks else logging.ERROR)
    # A scheduler's SIGTERM ends a run as Ctrl-C does: with what was begun cleared away.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _on_terminate)
    try:
        with _no_interrupt_is_lost():
            main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        if speaks or error.rank is not None:
            # On a line of its own: another process may be drawing a progress bar.
            begin = "" if error.rank is None else "\n"
            where = "" if error.rank is None else f"rank {error.rank}: "
            for line in [*error.lines(), *getattr(error, "__notes__", [])]:
                sys.stderr.write(f"{begin}peft-mrpc: {where}{line}\n")
        return EXIT_QUALITY_GATE if isinstance(error, QualityGateFailed) else EXIT_USER_ERROR
    except KeyboardInterrupt as error:
        notes = " ".join(getattr(error, "__notes__", []))
        sys.stderr.write(f"\npeft-mrpc: interrupted. {notes or 'Nothing was written.'}\n")
        return EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing more to say, and nothing is wrong.
        sys.stderr.close()
        return 0
    return 0
