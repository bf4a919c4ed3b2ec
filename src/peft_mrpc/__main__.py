"""The `peft-mrpc` command: hands on to the verbs, and imports only the one that runs."""

import importlib
import sys

from peft_mrpc import __version__
from peft_mrpc.cli.app import run_cli
from peft_mrpc.errors import unknown_name

VERBS = {
    "train": "adapt a model to pairs, evaluate it, write a Run",
    "tune": "search a method's settings, write the best as a recipe for train",
    "hard_prompt": "score pairs with a prompted causal LM, write a Run",
    "compare": "Runs -> one table, pictures, one report",
    "predict": "label new pairs with a Run, a directory or a Hub repository",
    "push": "publish a Run on the Hub",
    "doctor": "what is installed here, and which methods work on which models",
    "quickstart": "run every strategy on the built-in pairs and compare them",
}


def main() -> int:
    """Run one verb; see `run_cli` for the exit codes."""
    return run_cli(dispatch)


def dispatch(argv: list[str]) -> None:
    """Hand on to the verb that is named first.

    Raises:
        UserError: If there is no such verb.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, VERBS))
        lines = [f"  {verb.ljust(width)}  {text}" for verb, text in VERBS.items()]
        sys.stdout.write("usage: peft-mrpc VERB [FLAGS]\n\n" + "\n".join(lines))
        sys.stdout.write("\n\n`peft-mrpc VERB --help` shows the flags of one.\n")
    elif name == "--version":
        sys.stdout.write(f"peft-mrpc {__version__}\n")
    elif (verb := name.replace("-", "_")) in VERBS:
        importlib.import_module(f"peft_mrpc.{verb}").main(rest)
    else:
        raise unknown_name("VERB", name, VERBS)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
