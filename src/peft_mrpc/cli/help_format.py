"""The help of a command: each flag once, on one line, with the defaults that say something."""

import argparse
from collections.abc import Collection

from peft_mrpc.config import COMMON_TRAINING_ARGUMENTS


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with each flag spelled once and only the defaults that say something."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flag = action.option_strings[-1 if action.dest == "help" else 0]
        # A switch needs no value, everything else does.
        takes_value = action.nargs != 0 and not isinstance(action.const, bool)
        return f"{flag} {(action.metavar or 'X')}" if takes_value else flag

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, False, argparse.SUPPRESS) or "default" in str(action.help)
        return action.help if silent else super()._get_help_string(action)


def shorten_help(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    """Show the best-known TrainingArguments in the help, each on one line."""
    for action in parser._actions:
        if action.dest in names:
            # The `--no_X` twins of boolean flags share their dest.
            is_twin = any("--no_" in flag for flag in action.option_strings)
            ours = None if is_twin else COMMON_TRAINING_ARGUMENTS.get(action.dest)
            action.help = ours or argparse.SUPPRESS
    parser.epilog = (
        "Every other option of transformers.TrainingArguments is accepted as it is, and so are "
        "the options of the chosen method (`--num_unfrozen_layers 2`, `--r 16`, "
        "`--num_virtual_tokens 20`, ...)."
    )
