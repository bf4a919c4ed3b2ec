"""Exit codes, interrupts and the format of errors."""

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_mrpc.cli.app import print_text, run_cli, with_dashes
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


# A command that prints, and then writes a file as a training writes its Run.
PRINTING = """
import sys
from pathlib import Path
from peft_mrpc.cli.app import print_text, run_cli
def main(argv):
    for _ in range(3):
        print_text("line \\x1b[31m\\ud800 " * 20_000)
        sys.stderr.write("progress " * 20_000)
        sys.stderr.flush()
    Path(argv[0]).write_text("done")
sys.exit(run_cli(main))
"""


@pytest.mark.parametrize("redirection", ["2>&1 | head -c 9", ">&- 2>&-", "2> /dev/full"])
def test_a_command_outlives_the_readers_of_its_output(redirection: str, tmp_path: Path) -> None:
    command = f'set -o pipefail; "$0" -c "$1" "$2" {redirection}'
    arguments = [sys.executable, PRINTING, str(tmp_path / "file")]
    done = subprocess.run(["bash", "-c", command, *arguments], capture_output=True, check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "done"


def test_a_result_that_cannot_be_printed_is_an_error(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PRINTING, str(tmp_path / "file")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            arguments, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2 and (tmp_path / "file").is_file()
    assert done.stderr.endswith(
        "peft-mrpc: standard output: No space left on device; the command has finished.\n"
    )


def test_characters_that_the_encoding_lacks_are_escaped(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINTING, str(tmp_path / "file")],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"line \\x1b[31m\\ud800 line")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "/x/y"), "/x/y: No space left on device."),
        (OSError(36, "File name too long"), "[Errno 36] File name too long"),
        (PermissionError(13, "Permission denied", b"/x"), "/x: Permission denied."),
        (OSError("model not\nloaded\x1b[2J"), r"model not loaded\x1b[2J"),
        (
            RuntimeError("I/O error: No space left (os error 28)"),
            "I/O error: No space left (os error 28)",
        ),
        (MemoryError(), "not enough memory: MemoryError. Use smaller batches or shorter examples."),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
            "not enough memory: DefaultCPUAllocator: can't allocate memory: you tried 8 bytes. "
            "Use smaller batches or shorter examples.",
        ),
        (
            UnicodeEncodeError("utf-8", "a\ud800", 1, 2, "surrogates"),
            "a text cannot be encoded or decoded: 'utf-8' codec can't encode character '\\ud800' "
            "in position 1: surrogates.",
        ),
    ],
)
def test_failures_of_the_system_are_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> None:
        error.add_note("Checkpoints are kept.")
        raise error

    assert run_cli(main, []) == 2
    assert capsys.readouterr().err == f"peft-mrpc: {line}\npeft-mrpc: Checkpoints are kept.\n"


def test_other_exceptions_keep_their_traceback() -> None:
    def main(argv: list[str]) -> None:
        raise RuntimeError("a mistake of this package")

    with pytest.raises(RuntimeError, match="a mistake"):
        run_cli(main, [])


def test_control_characters_are_escaped_in_errors_logs_and_results(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(argv: list[str]) -> None:
        print_text("a\x1b]0;b\x07\tc\nd")
        raise UserError("\x1b[2J\x9b1m got \u202e")

    assert run_cli(main, []) == 2
    output = capsys.readouterr()
    assert output.out == "a\\x1b]0;b\\x07\tc\nd\n"
    assert output.err == "peft-mrpc: \\x1b[2J\\x9b1m got \\u202e\n"


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
