"""Parse command lines and YAML files of options.

Options are the fields of dataclasses: of the configs in `config.py`, of transformers'
TrainingArguments, and of the options of a method. A value is converted to the type of its field,
and only the options that the user gave are returned. Options of the command line win over those
of the file that `--config` names.
"""

import dataclasses
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from peft_mrpc.errors import raise_faults
from peft_mrpc.options import Argument, convert_arguments, option_types
from peft_mrpc.serialization import FALSE_WORDS, TRUE_WORDS, read_yaml

# Columns of the help, and where the texts begin.
WIDTH, COLUMN = 100, 32


@dataclass(frozen=True)
class Positional:
    """What a command takes without an option name.

    Attributes:
        name: As shown in the help.
        help: One sentence.
        is_list: Whether several may be given.
    """

    name: str
    help: str
    is_list: bool = False


def parse_command(
    command: str,
    description: str,
    argv: Sequence[str],
    config_types: Sequence[type],
    positional: Positional | None = None,
) -> tuple[list[Any], list[str]]:
    """Parse the options of a command that has config dataclasses only.

    Args:
        command: Its name, for the help.
        description: The first line of the help.
        argv: The command line.
        config_types: The dataclasses.
        positional: What stands without an option name, if anything.
    Returns:
        One instance of each dataclass, and the words without an option name.
    Raises:
        UserError: With one line for each unknown option, wrong type and missing word.
        SystemExit: After `--help`.
    """
    annotations = {n: kind for t in config_types for n, kind in option_types(t).items()}
    switches = {name for name, kind in annotations.items() if kind is bool}
    arguments, words, faults = split_arguments(argv, annotations, switches, positional is not None)
    if {"help", "help_all"} & {argument.name for argument in arguments}:
        groups = [HelpGroup.of_config(kind) for kind in config_types]
        is_short = not any(argument.name == "help_all" for argument in arguments)
        print_help(command, description, groups, is_short, positional)
    arguments, file_faults = with_file(arguments)
    values, value_faults = convert_arguments(arguments, annotations)
    faults = [*faults, *file_faults, *value_faults]
    if positional and not words:
        faults.append(f"{command}: got no {positional.name}; expected {positional.help}.")
    if positional and len(words) > 1 and not positional.is_list:
        faults.append(f"{command}: got {' '.join(words)}; expected one {positional.name}.")
    raise_faults(faults)
    return [build_config(kind, values) for kind in config_types], words


def build_config(kind: type, values: Mapping[str, Any]) -> Any:
    """An instance of a config dataclass with the options that were given."""
    return kind(**{name: values[name] for name in option_types(kind) if name in values})


def split_arguments(
    argv: Sequence[str],
    annotations: Mapping[str, Any] | None = None,
    switches: Collection[str] = (),
    has_positional: bool = False,
) -> tuple[list[Argument], list[str], list[str]]:
    """Split a command line at its options, in one pass.

    `--name value`, `--name=value` and `--name-with-dashes` are accepted. With positional words an
    option takes one word and a switch none, except `true` and `false`; else an option takes all
    words up to the next option.

    Returns:
        The options, the words that belong to none, and the faults.
    """
    arguments: list[Argument] = []
    words: list[str] = []
    faults: list[str] = []
    taken: list[str] | None = None  # the words of the option before, while it accepts more
    for token in argv:
        if token.startswith("--") and len(token) > 2:
            name, equals, value = token[2:].partition("=")
            name = name.replace("-", "_")
            values = [value] if equals else []
            arguments.append(Argument(name, values, f"--{name}", is_typed=True))
            taken = None if equals else values
            continue
        if token == "-h":
            arguments.append(Argument("help", [], token, is_typed=True))
            continue
        if taken is not None and has_positional:
            name = arguments[-1].name
            is_switch = name in switches or (annotations is not None and name not in annotations)
            if taken or (is_switch and token.lower() not in (*TRUE_WORDS, *FALSE_WORDS)):
                taken = None
        if taken is not None:
            taken.append(token)
        elif has_positional:
            words.append(token)
        else:
            faults.append(f"got {token!r}; expected an option (--name value).")
    return arguments, words, faults


def with_file(arguments: Sequence[Argument]) -> tuple[list[Argument], list[str]]:
    """Put the options of the YAML file that `--config` names before those of the command line.

    A line `name: null` is as if the line were not there.

    Returns:
        The options, of which a later one wins, and the faults.
    Raises:
        UserError: If the file cannot be read.
    """
    paths = [a.value for a in arguments if a.name == "config"]
    if not paths or len(paths[-1]) != 1:
        return list(arguments), []
    path = paths[-1][0]
    content = read_yaml(path, "config", "`name: value` lines, one for each option")
    faults = []
    if "config" in content:
        faults.append(f"{path}: config: a file of options cannot name another one; remove it.")
    of_file = [
        Argument(name, value, f"{path}: {name}", is_typed=False)
        for name, value in content.items()
        if name != "config"
    ]
    return [*of_file, *arguments], faults


@dataclass(frozen=True)
class HelpOption:
    """One option in the help."""

    name: str
    help: str
    default: Any = None
    is_common: bool = True

    def format(self) -> str:
        """The option on one line, or on more if its help is long."""
        text = f"{self.help}{self._default_text()}".strip()
        begin = f"  --{self.name}"
        if len(begin) >= COLUMN:
            begin = f"{begin}\n{' ' * COLUMN}"
        indent = " " * COLUMN
        wrapped = textwrap.fill(
            text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
        return (begin.ljust(COLUMN) + wrapped[COLUMN:]).rstrip()

    def one_line(self) -> "HelpOption":
        """This option with the first sentence of its help, cut to one line."""
        sentence = self.help.split(". ")[0].removesuffix(".")
        room = WIDTH - COLUMN - len(self._default_text())
        return replace(self, help=textwrap.shorten(sentence, max(room, 20), placeholder="..."))

    def _default_text(self) -> str:
        is_plain = isinstance(self.default, bool | int | float | str | list) and self.default != ""
        if self.default is False or not is_plain or "default:" in self.help:
            return ""
        return f" (default: {self.default})"


@dataclass(frozen=True)
class HelpGroup:
    """Options under one heading."""

    title: str
    options: Sequence[HelpOption]

    @classmethod
    def of_config(cls, kind: Any, defaults: Mapping[str, Any] | None = None) -> "HelpGroup":
        """The options of a config dataclass.

        Args:
            kind: The dataclass.
            defaults: Defaults that replace those of the dataclass.
        """
        options = []
        for field in dataclasses.fields(kind):
            default = (defaults or {}).get(field.name, field.default)
            text, common = field.metadata["help"], field.metadata["common"]
            options.append(HelpOption(field.name, text, default, common))
        return cls(kind.group, options)


def format_help(
    usage: str, description: str, groups: Sequence[HelpGroup], is_short: bool, epilog: str = ""
) -> str:
    """The help of a command.

    Args:
        usage: How the command is called.
        description: What it does.
        groups: Its options.
        is_short: Whether to leave out the options that are not common.
        epilog: The last lines.
    """
    parts = [f"usage: {usage}\n\n{description}"]
    for group in groups:
        options = [option for option in group.options if option.is_common or not is_short]
        if options:
            parts.append("\n".join([f"{group.title}:", *(option.format() for option in options)]))
    is_cut = is_short and any(not option.is_common for group in groups for option in group.options)
    lines = [epilog] if epilog else []
    if is_cut:
        lines.append("`--help_all` shows all options.")
    if lines:
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def print_help(
    command: str,
    description: str,
    groups: Sequence[HelpGroup],
    is_short: bool,
    positional: Positional | None = None,
    epilog: str = "",
) -> NoReturn:
    """Print the help of a command and end the program."""
    words = ""
    if positional:
        words = f" {positional.name}" + (" ..." if positional.is_list else "")
    usage = f"peft-mrpc {command}{words} [--option value ...]"
    sys.stdout.write(format_help(usage, description, groups, is_short, epilog))
    sys.stdout.flush()
    raise SystemExit(0)


def option_names(*config_types: type) -> set[str]:
    """The names of all options of some dataclasses."""
    return {f.name for kind in config_types for f in dataclasses.fields(kind) if f.init}
