"""Exit codes, interrupts and the format of errors."""

import signal
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from peft_mrpc.cli.app import run_cli, with_dashes
from peft_mrpc.errors import QualityGateFailed, UserError


class Thing:
    """An object with weak references that can raise a signal when it is deleted."""

    def __init__(self, on_delete: Callable[[], None] | None = None) -> None:
        self.on_delete = on_delete

    def __del__(self) -> None:
        if self.on_delete:
            self.on_delete()


@pytest.fixture(autouse=True)
def handlers() -> Any:
    """Handle Ctrl-C as in a terminal; a shell ignores it for background jobs."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("place", ["callback", "delete"])
def test_an_interrupt_that_python_drops_ends_the_command(
    place: str, number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> None:
        if place == "delete":
            Thing(lambda: signal.raise_signal(number))
        else:
            thing = Thing()
            reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
            del thing
            assert reference() is None
        for _ in range(100):  # the training that would continue
            time.sleep(0.1)

    before = sys.unraisablehook
    assert run_cli(main, []) == code
    assert "peft-mrpc: interrupted. Nothing was written." in capsys.readouterr().err
    assert sys.unraisablehook is before


def test_other_errors_that_python_drops_reach_the_previous_hook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropped: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: dropped.append(error.exc_type))

    def main(argv: list[str]) -> None:
        Thing(lambda: exec("raise ValueError"))

    assert run_cli(main, []) == 0
    assert dropped == [ValueError]


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("a", "b"), 2), (QualityGateFailed("a", "b"), 3)]
)
def test_faults_are_printed_one_per_line(
    error: UserError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> None:
        raise error

    assert run_cli(main, []) == code
    assert capsys.readouterr().err == "peft-mrpc: a\npeft-mrpc: b\n"


def test_a_closed_pipe_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(argv: list[str]) -> None:
        raise BrokenPipeError

    class Stream:
        def close(self) -> None: ...

    monkeypatch.setattr(sys, "stderr", Stream())
    assert run_cli(main, []) == 0


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("max_length: got 3; expected 8.", "--max_length: got 3; expected 8."),
        ("repo_id: got none.", "--repo_id: got none."),
        ("train: no examples.", "train: no examples."),
        ("mine.yaml: r: got 0.", "mine.yaml: r: got 0."),
        ("--seed: got -1.", "--seed: got -1."),
    ],
)
def test_names_of_options_get_dashes(fault: str, line: str) -> None:
    assert with_dashes(fault) == line
