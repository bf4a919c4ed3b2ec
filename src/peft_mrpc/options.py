"""Convert the values of options to the types of their fields.

PEFT annotates the fields of its configs with the values that they accept, such as `bool |
Literal["gaussian", "pissa"]` or `list[int] | int | None`. pydantic validates a value against such
an annotation; this module converts text of the command line and of YAML files first.
"""

import dataclasses
import functools
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from peft_mrpc.errors import closest
from peft_mrpc.formatting import shorten
from peft_mrpc.serialization import FALSE_WORDS, TRUE_WORDS, load_yaml, parse_scalar, read_asset

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

# Options of other tools, such as the example scripts of transformers and PEFT, and ours.
OPTIONS_OF_OTHER_TOOLS = {
    "model_name_or_path": "model",
    "model_name": "model",
    "task_name": "dataset",
    "dataset_name": "dataset",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "lora_r": "r",
    "lora_rank": "r",
    "load_in_4bit": "quantization nf4",
    "load_in_8bit": "quantization int8",
    "prompt_length": "num_virtual_tokens",
    "num_shots": "num_demonstrations",
    "num_fewshot": "num_demonstrations",
    "hub_model_id": "repo_id",
}
# TrainingArguments and the libraries store integers in 64 bits.
MAX_INTEGER = 2**63 - 1


def option_types(kind: type) -> dict[str, Any]:
    """The annotation of each field of a dataclass that its constructor accepts."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}


@dataclass(frozen=True)
class Argument:
    """One option: words of the command line, or a value of a YAML file or of a Python caller."""

    name: str
    value: Any
    place: str
    is_typed: bool


def convert_arguments(
    arguments: Sequence[Argument],
    annotations: Mapping[str, Any],
    owners: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Convert each option to its type.

    Args:
        arguments: The options; a later one wins.
        annotations: The types of the known options.
        owners: Options that belong to something else (to `vera and lora`), for the message.
    Returns:
        The values by name, and the faults.
    """
    values: dict[str, Any] = {}
    faults: list[str] = []
    last = {argument.name: argument for argument in arguments}
    for name, argument in last.items():
        if name in annotations:
            if argument.value is None:
                continue
            if dataclasses.is_dataclass(argument.value):  # such as a config that a caller built
                values[name] = argument.value
                continue
            try:
                convert_one = parse_option if argument.is_typed else convert
                values[name] = convert_one(argument.value, annotations[name])
            except ValueError as error:
                faults.append(f"{argument.place}: {error}")
        elif name.startswith("no_") and annotations.get(name[3:]) in (bool, bool | None):
            values[name[3:]] = False
        elif owners and name in owners:
            faults.append(f"{argument.place}: got an option of {owners[name]}; remove it.")
        else:
            known = {*annotations, *(owners or {})}
            near = closest(name, known)
            ours = OPTIONS_OF_OTHER_TOOLS.get(name, "")
            if ours.partition(" ")[0] in known:
                near = f" Use {'--' if argument.is_typed else ''}{ours}."
            faults.append(f"{argument.place}: got an unknown option.{near}")
    return values, faults


def parse_option(words: Sequence[str], annotation: Any) -> Any:
    """Convert the words after an option of the command line.

    Args:
        words: The words; none for a switch.
        annotation: The type of the option.
    Raises:
        ValueError: With the value and the expected type.
    """
    if _members(annotation) == [str]:  # `Same: yes or no?` is text, not a mapping
        if len(words) != 1:
            raise ValueError(f"got {len(words)} words; expected one text, in quotes.")
        return words[0]
    if len(words) == 1:
        value = parse_scalar(words[0])
        forms = [value] if isinstance(value, list | dict) else [value, words[0]]
        return convert(words[0], annotation, forms)
    return convert([parse_scalar(word) for word in words] or True, annotation)


def convert(value: Any, annotation: Any, forms: Sequence[Any] | None = None) -> Any:
    """Convert a value of a YAML file or of the Python API to the type of its option.

    Args:
        value: The value.
        annotation: The type of the option.
        forms: Forms of the value to try first.
    Returns:
        The value; a mapping if the option is a config of its own (see `build_nested`).
    Raises:
        ValueError: With the value and the expected type.
    """
    adapter = _adapter(annotation)
    error: ValueError | None = None
    for form in forms or [value]:
        for candidate in _candidates(form, is_list=isinstance(value, list)):
            try:
                # JSON mode: enums by their values, tuples as lists, configs as mappings. Strict:
                # `true` is not a number.
                result = adapter.validate_json(json.dumps(candidate, default=_plain), strict=True)
            except ValueError as problem:
                error = error or problem
            else:
                if isinstance(result, int) and abs(result) > MAX_INTEGER:
                    raise ValueError(f"got {_shown(result)}; expected an integer of 64 bits.")
                if isinstance(result, float) and math.isnan(result):
                    raise ValueError("got nan; expected a number.")
                is_plain = isinstance(candidate, list | dict | str) and type(result) is not tuple
                return candidate if is_plain else result
    shown = "nothing" if value is True else _shown(parse_scalar(value) if forms else value)
    raise ValueError(f"got {shown}; {_expected(typing.cast('ValidationError', error))}.")


def _shown(value: Any) -> str:
    return shorten(repr(value), 80)


def _plain(value: Any) -> Any:
    """A value that JSON does not know: NumPy's as a number, a set as a list, others as text."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.item() if hasattr(value, "item") else str(value)


def packaged_recipe(method: str) -> dict[str, Any]:
    """The options of a method's recipe, as they are in its file."""
    recipe: dict[str, Any] = load_yaml(read_asset(f"recipes/{method}.yaml"))
    return recipe


def build_nested(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Build the options that are configs of their own from the mappings that were given."""
    hints = option_types(kind)
    nested = {}
    for name, value in options.items():
        configs = [m for m in _members(hints.get(name, Any)) if dataclasses.is_dataclass(m)]
        if configs and isinstance(value, Mapping):
            nested[name] = typing.cast(Any, configs[0])(**value)
    return nested


def _candidates(value: Any, is_list: bool) -> Iterator[Any]:
    """The forms of a value to validate, in this order."""
    yield value
    if isinstance(value, str):
        yield parse_scalar(value)
        if value.lower() in (*TRUE_WORDS, *FALSE_WORDS):
            yield value.lower() in TRUE_WORDS
        if "," in value:
            yield [parse_scalar(part.strip()) for part in value.split(",")]
    elif isinstance(value, bool | int | float):
        yield str(value).lower()
    if not is_list:
        yield [value]


@functools.cache
def _adapter(annotation: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(_simplify(annotation))


def _simplify(annotation: Any) -> Any:
    """The annotation as pydantic can check it: with patterns, and configs as mappings."""
    return typing.Union[tuple(map(_simplify_member, _members(annotation)))]  # noqa: UP007


def _simplify_member(member: Any) -> Any:
    from pydantic import ConfigDict, StringConstraints, create_model

    if typing.get_origin(member) is typing.Literal:
        # PEFT writes a pattern as a literal: "pissa_niter_[number of iters]".
        literals = [word for word in typing.get_args(member) if "[" not in str(word)]
        prefixes = [str(w).partition("[")[0] for w in typing.get_args(member) if "[" in str(w)]
        patterns = [
            typing.Annotated[str, StringConstraints(pattern=rf"^{re.escape(prefix)}\d+$")]
            for prefix in prefixes
        ]
        return typing.Union[(typing.Literal[tuple(literals)], *patterns)]
    if dataclasses.is_dataclass(member):
        hints = option_types(typing.cast(type, member))
        fields: dict[str, Any] = {name: (_simplify(hint), None) for name, hint in hints.items()}
        forbid = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
        return create_model("Config", __config__=forbid, **fields)
    return member


def _members(annotation: Any) -> list[Any]:
    """The types of a union, without None."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if is_union else (annotation,)
    kinds = [kind for kind in members if kind is not types.NoneType]
    # Of `Enum | str` and `Config | dict` the first names the values that are allowed.
    if any(inspect.isclass(kind) and issubclass(kind, Enum) for kind in kinds):
        kinds = [kind for kind in kinds if kind is not str]
    if any(dataclasses.is_dataclass(kind) for kind in kinds):
        kinds = [kind for kind in kinds if kind is not dict]
    return kinds


def _expected(error: "ValidationError") -> str:
    """pydantic's messages as one: `expected a valid integer or a valid list`."""
    messages = list(dict.fromkeys(detail["msg"] for detail in error.errors()))
    types_ = [m.removeprefix("Input should be ") for m in messages if m.startswith("Input should")]
    text = f"expected {' or '.join(types_)}" if types_ else "; ".join(messages)
    return text.replace("an object", "a mapping {name: value}")
