"""Values of a method's options, read as the option's own annotation says.

PEFT's configs annotate a field with all that it takes: `bool | Literal["gaussian", "pissa"]`,
`list[int] | int | None`, another config. What is typed becomes the first of these that it fits.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from peft_mrpc.serialization import parse_scalar

# What nothing else matches: None may be a value.
NO_MATCH = object()


def option_types(kind: type) -> dict[str, Any]:
    """The annotation of each field that a dataclass can be built with."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}


def parse_option(words: Sequence[str], annotation: Any) -> Any:
    """Read what stood after a flag.

    Args:
        words: As they were typed; none for a switch.
        annotation: What the option takes.
    Returns:
        The value; a mapping where the option is a config of its own (see `build_nested`).
    Raises:
        ValueError: Saying what was got and what was expected.
    """
    if _members(annotation) == [str]:  # as it was typed: `Same: yes or no?` is no mapping
        if len(words) != 1:
            raise ValueError(f"got {len(words)} words; expected one text, in quotes.")
        return words[0]
    values = [parse_scalar(word) for word in words]
    value = True if not words else values[0] if len(values) == 1 else values
    text = words[0] if len(words) == 1 else None
    # A lone word is a list of one only where no text is taken: `all-linear`, a pattern.
    members = sorted(_members(annotation), key=_is_list, reverse=isinstance(value, list))
    for member in members:
        matched = _match(member, value, text)
        if matched is not NO_MATCH:
            return matched
    raise ValueError(f"got {_shown(value, words)}; expected {_describe(annotation)}.")


def build_nested(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are configs of their own, built of the mappings that were given."""
    hints = option_types(kind)
    built = {}
    for name, value in given.items():
        members = _members(hints.get(name, Any))
        nested = next((m for m in members if dataclasses.is_dataclass(m)), None)
        if nested is not None and isinstance(value, Mapping):
            built[name] = typing.cast(Any, nested)(**value)
    return built


def _members(annotation: Any) -> list[Any]:
    """The kinds that an annotation names, without None."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if is_union else (annotation,)
    kinds = [kind for kind in members if kind is not types.NoneType]
    # PEFT writes `Enum | str` and `Config | dict` for the same thing, of which the first says more.
    if any(_is_enum(kind) for kind in kinds):
        kinds = [kind for kind in kinds if kind is not str]
    if any(dataclasses.is_dataclass(kind) for kind in kinds):
        kinds = [kind for kind in kinds if kind is not dict]
    return kinds


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is list


def _is_enum(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, Enum)


def _match(kind: Any, value: Any, text: str | None = None) -> Any:
    """The value as this kind takes it, or NO_MATCH."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if kind is bool:
        return value if isinstance(value, bool) else NO_MATCH
    if kind is int:
        return value if type(value) is int else NO_MATCH
    if kind is float:
        return value if type(value) in (int, float) else NO_MATCH
    if kind is str:
        said = value if isinstance(value, str) else text
        return NO_MATCH if said is None else said
    if origin is typing.Literal:
        said = value if isinstance(value, str) else text
        return said if said and any(_fits(said, str(word)) for word in parts) else NO_MATCH
    if _is_enum(kind):
        return value if value in [member.value for member in kind] else NO_MATCH
    if origin in (list, tuple):
        return _match_each(origin, parts, value)
    if origin is dict or kind is dict:
        return _match_mapping(parts, value)
    if dataclasses.is_dataclass(kind):
        return _match_config(kind, value)
    return NO_MATCH


def _match_each(origin: type, parts: Sequence[Any], value: Any) -> Any:
    if origin is list:
        values = value if isinstance(value, list) else [value]
        parts = [*parts] * len(values) if parts else [Any] * len(values)
    else:
        values = value if isinstance(value, list) and len(value) == len(parts) else []
        if not values:
            return NO_MATCH
    matched = [_match_any(part, one) for part, one in zip(parts, values, strict=True)]
    return NO_MATCH if any(one is NO_MATCH for one in matched) else matched


def _match_mapping(parts: Sequence[Any], value: Any) -> Any:
    if not isinstance(value, dict):
        return NO_MATCH
    if not parts:
        return value
    matched = {key: _match_any(parts[1], one) for key, one in value.items()}
    return NO_MATCH if any(one is NO_MATCH for one in matched.values()) else matched


def _match_config(kind: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        return NO_MATCH
    hints = option_types(kind)
    if any(name not in hints for name in value):
        return NO_MATCH
    return _match_mapping([str, Any], {n: _match_any(hints[n], one) for n, one in value.items()})


def _match_any(annotation: Any, value: Any) -> Any:
    matches = (_match(member, value) for member in _members(annotation))
    return next((one for one in matches if one is not NO_MATCH), NO_MATCH)


def _fits(said: str, word: str) -> bool:
    """Whether a word is this literal, or of its pattern: `pissa_niter_[number of iters]`."""
    before, bracket, _ = word.partition("[")
    return bool(re.fullmatch(re.escape(before) + r"\d+", said)) if bracket else said == word


def _describe(annotation: Any) -> str:
    """What an option takes, in words."""
    said: list[str] = []
    for kind in _members(annotation):
        origin, parts = typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Literal:
            said += [str(word) for word in parts]
        elif _is_enum(kind):
            said += [str(member.value) for member in kind]
        elif origin in (list, tuple):
            inside = " and ".join(map(_describe, parts)) or "values"
            said.append("names" if parts == (str,) else f"a list of {inside}")
        elif origin is dict or kind is dict:
            said.append("a mapping {name: value}")
        elif dataclasses.is_dataclass(kind):
            said.append(f"a mapping of {', '.join(option_types(kind))}")  # type: ignore[arg-type]
        else:
            names = {str: "text", bool: "true or false"}
            said.append(names.get(kind, getattr(kind, "__name__", str(kind))))
    return " or ".join([*([", ".join(said[:-1])] if said[:-1] else []), said[-1]])


def _shown(value: Any, words: Sequence[str]) -> str:
    return repr(value) if words else "nothing"
