"""Exceptions for invalid input, and the format of their messages."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence

MAX_FAULTS_SHOWN = 10


class UserError(Exception):
    """Invalid input, with one line per fault.

    A line has the form `<where>: got <value>; expected <allowed>. <next step>`. Where it concerns
    an argument, `<where>` is the argument's name; the command line adds the dashes.

    Attributes:
        faults: One line each.
        rank: In a job of several processes, the process that raised it alone; else None.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
        self.rank: int | None = None

    def lines(self) -> list[str]:
        """The first faults, one line each, and the number of the others."""
        shown = [" ".join(fault.split()) for fault in self.faults[:MAX_FAULTS_SHOWN]]
        rest = len(self.faults) - len(shown)
        return [*shown, f"... and {rest} more faults."] if rest else shown


class QualityGateFailed(UserError):
    """A metric is below its threshold. The report is written all the same."""


class TrainingDiverged(UserError):
    """The model's scores are NaN or infinite; the Run is discarded."""

    def __init__(self) -> None:
        super().__init__(
            "the model's scores are not finite: the training diverged. Use a lower learning_rate "
            "(or sam_rho, if it is set)."
        )


def closest(name: str, choices: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or an empty string if no choice is similar."""
    close = difflib.get_close_matches(name, sorted(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown_name(where: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that is not one of the choices."""
    known = sorted(choices)
    return UserError(
        f"{where}: got {name!r}; expected one of {', '.join(known)}.{closest(name, known)}"
    )


def choice_faults(config: object, choices: Mapping[str, Sequence[str]]) -> list[str]:
    """One fault for each field of a config whose value is not one of its choices.

    Args:
        config: A config dataclass.
        choices: The allowed values of each field.
    """
    return [
        fault
        for name, known in choices.items()
        if getattr(config, name) not in known
        for fault in unknown_name(name, getattr(config, name), known).faults
    ]


@contextlib.contextmanager
def collect_faults(faults: list[str]) -> Iterator[None]:
    """Append the faults of a UserError in the block to a list, instead of raising it."""
    try:
        yield
    except UserError as error:
        faults += error.faults


def raise_faults(faults: Sequence[str]) -> None:
    """Raise one UserError with all faults, each once, if there are any."""
    if faults:
        raise UserError(*dict.fromkeys(faults))


def one_line(error: BaseException) -> str:
    """The message of another library's exception, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
