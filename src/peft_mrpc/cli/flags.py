"""Command lines and recipes: flags to dataclasses, YAML files to flags, configs to records."""

import argparse
import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from peft_mrpc.cli.help_format import HelpFormatter, shorten_help
from peft_mrpc.errors import UserError, closest, one_line, raise_faults
from peft_mrpc.methods.peft_options import parse_option
from peft_mrpc.serialization import parse_scalar, read_yaml


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
    stripped = [_without_metadata(kind) for kind in dataclass_types]
    parser = _build_parser(prog, description, stripped, positional)
    raise_faults(_recipe_faults(parser, recipe or {}))
    for action in parser._actions:
        action.default = shown_defaults.get(action.dest, action.default)
    try:
        *instances, rest = parser.parse_args_into_dataclasses(
            list(argv), look_for_args_file=False, return_remaining_strings=True
        )
    except json.JSONDecodeError as error:
        raise UserError(
            f"{prog}: got a mapping that is not JSON: {error}; expected such as "
            "'{\"min_lr\": 1e-6}'."
        ) from error
    except (ValueError, TypeError, ImportError, OSError) as error:  # of a __post_init__
        raise UserError(f"{prog}: {one_line(error)}") from error
    built = [
        instance if kind is same or kind.__name__ == "TrainConfig" else kind(**vars(instance))
        for instance, kind, same in zip(instances, dataclass_types, stripped, strict=False)
    ]
    return [*built, *instances[len(built) :]], rest


def _without_metadata(kind: type) -> type:
    fields = dataclasses.fields(kind)
    if not any("common" in field.metadata for field in fields):
        return kind
    return dataclasses.make_dataclass(
        kind.__name__,
        [
            (
                f.name,
                list[str] | None if f.name == "seeds" else f.type,
                dataclasses.field(default=f.default, metadata={"help": f.metadata["help"]}),
            )
            for f in fields
        ],
    )


def _build_parser(
    prog: str,
    description: str,
    dataclass_types: Sequence[type],
    positional: Mapping[str, Any] | None,
) -> Any:
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
    parser.usage = (
        f"peft-mrpc {prog}{' ' + positional['metavar'] if positional else ''} [--FLAG VALUE ...]"
    )
    if TrainingArguments in dataclass_types:
        parser._optionals.title = "training arguments"
        shorten_help(parser, flag_names(TrainingArguments))
    return parser


def _recipe_faults(parser: argparse.ArgumentParser, recipe: Mapping[str, Any]) -> list[str]:
    faults = []
    for name, value in recipe.items():
        try:
            _, rest = parser.parse_known_args(recipe_to_flags({name: value}))
        except UserError as error:
            said = re.sub(r".*?argument \S+: |\. See .*", "", str(error))
            faults.append(f"{recipe['config']}: {name}: {said}.")
        else:
            if isinstance(value, list) and rest and not rest[0].startswith("--"):
                faults.append(
                    f"{recipe['config']}: {name}: got the list {value}; expected one value."
                )
    return faults


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
    given = [item for recipe in recipes for item in recipe.items()]
    defaults = {name: value for name, value in given if value is not None}
    mine = {**recipes[-1], "config": recipe_path} if recipe_path else {}
    typed = {name for name, _ in _group_tokens(argv, [])}
    mine_alone = {name: f"{recipe_path}: {name}" for name in mine if name not in typed}
    known = flag_names(*dataclass_types)

    def read(rest: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        return _read_options(rest, known, method_options or {}, other_flags or {}, mine_alone)

    whole = [*tokens, *argv]
    try:
        instances, rest = parse_known_flags(
            prog, description, dataclass_types, whole, defaults, positional, mine
        )
    except UserError as error:
        # What is wrong with all other flags is said in the same breath.
        others = [
            token
            for name, values in _group_tokens(whole, [])
            if name.removeprefix("no_") not in known
            for token in (f"--{name}", *values)
        ]
        raise UserError(*error.faults, *read(others)[1]) from error
    options, faults = read(rest)
    known_names = {*known, *(method_options or {})}
    nothing = [f"--{name}" for name, value in given if value is None and name not in known_names]
    raise_faults(faults + read(nothing)[1])
    return instances, options


def _read_options(
    tokens: Sequence[str],
    known: Collection[str],
    method_options: Mapping[str, Any],
    other_flags: Mapping[str, str],
    places: Mapping[str, str],
) -> tuple[dict[str, Any], list[str]]:
    """The method's options among tokens that no dataclass knows, and what is wrong with these.

    Args:
        tokens: Flags and their values.
        known: The flags of the dataclasses.
        method_options: The method's options with their annotations.
        other_flags: Flags known elsewhere, with what they belong to.
        places: Where each flag was written, if not on the command line.
    """
    options: dict[str, Any] = {}
    faults: list[str] = []
    for name, values in _group_tokens(tokens, faults):
        where = places.get(name, f"--{name}")
        if name in method_options:
            try:
                options[name] = parse_option(values, method_options[name])
            except ValueError as error:
                faults.append(f"{where}: {error}")
        elif name in other_flags:
            faults.append(f"{where}: got an option of {other_flags[name]}; drop it here.")
        else:
            near = closest(name, {*known, *method_options})
            faults.append(f"{where}: got an unknown flag.{near}")
    return options, faults


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
            tokens.append(f"--{name}={json.dumps(dict(value))}")  # the Trainer reads JSON alone
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


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """The last value given for a flag, before the whole line can be parsed."""
    value = None
    for position, token in enumerate(argv):
        flag, has_value, own = token.partition("=")
        if not token.startswith("--") or flag[2:].replace("-", "_") != name:
            continue
        if has_value:
            value = own
        elif position + 1 < len(argv):
            value = argv[position + 1]
    return value
