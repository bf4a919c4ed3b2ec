"""The `peft-mrpc` command: runs one of its commands and imports no other."""

import importlib
import sys

from peft_mrpc import __version__
from peft_mrpc.cli.app import run_cli
from peft_mrpc.errors import unknown_name

COMMANDS = {
    "train": "adapt a model to a data set, evaluate it, write a Run",
    "hard_prompt": "classify examples with a prompted causal LM, write a Run",
    "tune": "search a method's hyperparameters, write the best as a file for train",
    "compare": "compare Runs: metrics, significance tests, plots, one HTML report",
    "predict": "label the examples of a file with a Run, a directory or a Hub repository",
    "push": "upload a Run to the Hub",
    "doctor": "print what is installed, and which methods work on which models",
    "quickstart": "run every strategy on the built-in examples and compare them",
}


def main() -> int:
    """Run one command; `run_cli` describes the exit codes."""
    return run_cli(dispatch)


def dispatch(argv: list[str]) -> None:
    """Run the command that the first word names.

    Raises:
        UserError: If there is no such command.
    """
    name, *rest = argv or ["--help"]
    command = name.replace("-", "_")
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
        sys.stdout.write("usage: peft-mrpc COMMAND [--option value ...]\n\n" + "\n".join(lines))
        sys.stdout.write("\n\n`peft-mrpc COMMAND --help` shows the options of a command.\n")
    elif name == "--version":
        sys.stdout.write(f"peft-mrpc {__version__}\n")
    elif command in COMMANDS:
        importlib.import_module(f"peft_mrpc.{command}").main(rest)
    else:
        raise unknown_name("COMMAND", name, COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
