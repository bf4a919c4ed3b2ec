"""Command lines and recipes: flags to dataclasses, YAML files to flags, configs to records."""

import argparse
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml

from peft_mrpc.config import SHOWN_TRAINING_ARGUMENTS
from peft_mrpc.errors import UserError, closest, one_line, raise_faults
from peft_mrpc.option_values import parse_option, parse_scalar


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


def flag_names(*dataclass_types: type) -> set[str]:
    """Names of all flags that these dataclasses define."""
    return {f.name for kind in dataclass_types for f in dataclasses.fields(kind) if f.init}


def parse_known_flags(
    prog: str,
    description: str,
    dataclass_types: Sequence[type],
    argv: Sequence[str],
    shown_defaults: Mapping[str, Any],
    positional: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> tuple[list[Any], list[str]]:
    """Parse flags into one instance of each dataclass, through transformers' HfArgumentParser.

    A user's recipe, which is in `argv` too, is looked at value by value first, so that all of its
    faults are said at once.

    Returns:
        The instances (with `positional`, a namespace of what stood without a flag as well), and
        the tokens of flags that none of the dataclasses know.
    Raises:
        UserError: If a value has the wrong type or an instance refuses its values.
    """
    from transformers import HfArgumentParser, TrainingArguments

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{prog}: {message}. See {prog} --help.")

    parser = Parser(
        list(dataclass_types),  # type: ignore[arg-type]
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    if positional:
        parser.add_argument(**positional)
    raise_faults(_recipe_faults(parser, recipe or {}))
    for action in parser._actions:
        action.default = shown_defaults.get(action.dest, action.default)
    parser.usage = (
        f"peft-mrpc {prog}{' ' + positional['metavar'] if positional else ''} [--FLAG VALUE ...]"
    )
    if TrainingArguments in dataclass_types:
        parser._optionals.title = "training arguments"
        _shorten_help(parser, flag_names(TrainingArguments))
    try:
        *instances, rest = parser.parse_args_into_dataclasses(
            list(argv), look_for_args_file=False, return_remaining_strings=True
        )
    except (ValueError, TypeError, ImportError) as error:  # raised in a __post_init__
        raise UserError(f"{prog}: {one_line(error)}") from error
    return instances, rest


def _recipe_faults(parser: argparse.ArgumentParser, recipe: Mapping[str, Any]) -> list[str]:
    faults = []
    for name, value in recipe.items():
        try:
            parser.parse_known_args(recipe_to_flags({name: value}))
        except UserError as error:
            said = re.sub(r".*?argument \S+: |\. See .*", "", str(error))
            faults.append(f"{recipe['config']}: {name}: {said}.")
    return faults


def _shorten_help(parser: argparse.ArgumentParser, names: set[str]) -> None:
    """Show the best-known TrainingArguments in the help, each on one line."""
    for action in parser._actions:
        if action.dest in names:
            # The `--no_X` twins of boolean flags share their dest.
            is_twin = any("--no_" in flag for flag in action.option_strings)
            ours = None if is_twin else SHOWN_TRAINING_ARGUMENTS.get(action.dest)
            action.help = ours or argparse.SUPPRESS
    parser.epilog = (
        "Every other option of transformers.TrainingArguments is accepted as it is, and so are "
        "the options of the chosen method (`--num_unfrozen_layers 2`, `--r 16`, "
        "`--num_virtual_tokens 20`, ...)."
    )


def parse_flags(
    prog: str,
    description: str,
    dataclass_types: Sequence[type],
    argv: Sequence[str],
    recipes: Sequence[Mapping[str, Any]] = (),
    method_options: Mapping[str, Any] | None = None,
    other_flags: Mapping[str, str] | None = None,
    positional: Mapping[str, Any] | None = None,
    recipe_path: str | None = None,
) -> tuple[list[Any], dict[str, Any]]:
    """Parse a whole command line; recipes come first, so that a flag overrides them.

    Args:
        prog: Name shown in errors.
        description: First line of the help.
        dataclass_types: The dataclasses whose fields are flags.
        argv: What the user typed.
        recipes: Mappings of flag names to values, weakest first.
        method_options: The method's options, which are flags too, with their annotations.
        other_flags: Flags known elsewhere, with what they belong to, for a better hint.
        positional: `add_argument` options of what stands without a flag.
        recipe_path: The file that the last recipe was read from, for what is wrong in it.
    Returns:
        One instance of each dataclass (and a namespace, with `positional`), and the method's
        options that were given.
    Raises:
        UserError: Naming every unknown flag, with the nearest known one.
    """
    tokens = [token for recipe in recipes for token in recipe_to_flags(recipe)]
    defaults = {name: value for recipe in recipes for name, value in recipe.items()}
    mine = {**recipes[-1], "config": recipe_path} if recipe_path else {}
    instances, rest = parse_known_flags(
        prog, description, dataclass_types, [*tokens, *argv], defaults, positional, mine
    )
    typed = {name for name, _ in _group_tokens(argv, [])}
    method_options = method_options or {}
    known = flag_names(*dataclass_types) | set(method_options)
    options: dict[str, Any] = {}
    faults: list[str] = []
    for name, values in _group_tokens(rest, faults):
        where = f"{recipe_path}: {name}" if name in mine and name not in typed else f"--{name}"
        if name in method_options:
            try:
                options[name] = parse_option(values, method_options[name])
            except ValueError as error:
                faults.append(f"{where}: {error}")
        elif other_flags and name in other_flags:
            faults.append(f"{where}: got an option of {other_flags[name]}; drop it here.")
        else:
            faults.append(f"{where}: got an unknown flag.{closest(name, known)}")
    raise_faults(faults)
    return instances, options


def _group_tokens(tokens: Sequence[str], faults: list[str]) -> list[tuple[str, list[str]]]:
    groups: list[tuple[str, list[str]]] = []
    takes_more = False
    for token in tokens:
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            groups.append((name.replace("-", "_"), [value] if equals else []))
            takes_more = not equals
        elif takes_more:
            groups[-1][1].append(token)
        else:
            faults.append(f"got {token!r}; expected a flag (--NAME VALUE).")
    return groups


def typed_flags(argv: Sequence[str]) -> dict[str, Any]:
    """A command line as a recipe, before it can be parsed: numbers as such, all else as typed."""
    flags: dict[str, Any] = {}
    for name, texts in _group_tokens(argv, []):
        values = [v if type(v := parse_scalar(text)) in (int, float) else text for text in texts]
        flags[name] = values if len(values) > 1 else values[0] if values else True
    return flags


def recipe_to_flags(recipe: Mapping[str, Any]) -> list[str]:
    """Write a recipe as command-line tokens, so that one parser reads both."""
    tokens: list[str] = []
    for name, value in recipe.items():
        if value is None:
            continue
        if isinstance(value, list):
            tokens += [f"--{name}", *map(str, value)]
        elif isinstance(value, Mapping):
            tokens.append(
                f"--{name}={yaml.safe_dump(dict(value), default_flow_style=True).strip()}"
            )
        else:
            tokens.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    return tokens


def load_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of flags.

    Raises:
        UserError: If the file is missing, is not YAML, or is no mapping of names to values.
    """
    recipe = read_yaml(path, "--config", "`name: value` lines, one for each flag")
    if "config" in recipe:
        raise UserError(f"{path}: got a key 'config'; a recipe names no other.")
    return recipe


def read_yaml(path: str | Path, flag: str, expected: str) -> dict[str, Any]:
    """Read a YAML file of names and what they stand for.

    Args:
        path: The file.
        flag: The flag that named it, for the message.
        expected: What it should hold, for the message.
    Raises:
        UserError: If the file is missing, is not YAML, or is no mapping of names.
    """
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{flag}: got {str(path)!r}; expected a readable YAML file. {one_line(error)}"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: expected {expected}.")
    return cast(dict[str, Any], content)


def config_record(*instances: Any) -> dict[str, Any]:
    """All fields of some configs as one JSON-ready mapping, without what is only machinery."""
    record: dict[str, Any] = {}
    for instance in instances:
        values = instance.to_dict() if hasattr(instance, "to_dict") else vars(instance)
        record |= {key: value for key, value in values.items() if not key.startswith("_")}
    for machinery in ("config", "dry_run", "hub_token", "logging_dir", "output_dir", "overwrite"):
        record.pop(machinery, None)
    return record


def record_key(record: Mapping[str, Any]) -> str:
    """A short name for a record: the same only for the same content."""
    text = json.dumps(record, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """The last value given for a flag, before the whole line can be parsed."""
    value = None
    for position, token in enumerate(argv):
        if token == f"--{name}" and position + 1 < len(argv):
            value = argv[position + 1]
        elif token.startswith(f"--{name}="):
            value = token.split("=", 1)[1]
    return value
