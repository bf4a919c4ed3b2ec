"""How a command ends that is interrupted."""

import signal
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from peft_mrpc.cli.app import run_cli


class Thing:
    """What can be referred to weakly, and can raise a signal on its way out."""

    def __init__(self, on_delete: Callable[[], None] | None = None) -> None:
        self.on_delete = on_delete

    def __del__(self) -> None:
        if self.on_delete:
            self.on_delete()


@pytest.fixture(autouse=True)
def handlers() -> Any:
    """Ctrl-C as a terminal has it: a shell that runs this suite in the background ignores it."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("place", ["callback", "delete"])
def test_an_interrupt_where_nothing_can_be_raised_ends_the_command(
    place: str, number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> None:
        if place == "delete":
            Thing(lambda: signal.raise_signal(number))
        else:
            thing = Thing()
            kept = weakref.ref(thing, lambda _: signal.raise_signal(number))
            del thing
            assert kept() is None
        for _ in range(100):  # the training that would go on
            time.sleep(0.1)

    before = sys.unraisablehook
    assert run_cli(main, []) == code
    assert "peft-mrpc: interrupted. Nothing was written." in capsys.readouterr().err
    assert sys.unraisablehook is before


def test_another_error_where_nothing_can_be_raised_is_told_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(lost.exc_type))

    def main(argv: list[str]) -> None:
        Thing(lambda: exec("raise ValueError"))

    assert run_cli(main, []) == 0
    assert told == [ValueError]
