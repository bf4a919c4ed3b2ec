"""YAML as a user means it: `2e-5` is a number, `no` and `off` are words, no key stands twice.

Of texts, and of files that hold names and what they stand for.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, cast

import yaml

from peft_mrpc.errors import UserError, one_line

BOOL, FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
EXPONENT = re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
TRUE_OR_FALSE = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")


class NumberLoader(yaml.SafeLoader):
    """PyYAML's, and numbers with an exponent but without a point, which it reads as text."""


NumberLoader.add_implicit_resolver(FLOAT, EXPONENT, list("-+.0123456789"))


class FileLoader(NumberLoader):
    """For files of flags: YAML 1.2's booleans, so that `save_strategy: no` names a strategy.

    PyYAML takes the last of two values of one key without a word; here that is an error.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOL]
        for first, resolvers in NumberLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"got the key {key.value!r} twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


FileLoader.add_implicit_resolver(BOOL, TRUE_OR_FALSE, list("tTfF"))


def load_text(text: str) -> Any:
    """What one value says.

    Raises:
        yaml.YAMLError: If it is not YAML.
    """
    return yaml.load(text, NumberLoader)


def load_file_text(text: str) -> Any:
    """What a file of flags says.

    Raises:
        yaml.YAMLError: If it is not YAML, or has a key twice.
    """
    return yaml.load(text, FileLoader)


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
        content = load_file_text(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{flag}: got {str(path)!r}; expected a readable YAML file. {one_line(error)}"
        ) from error
    except yaml.YAMLError as error:
        said = one_line(error).replace(' in "<unicode string>"', "")
        raise UserError(f"{path}: not valid YAML: {said}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: expected {expected}.")
    return cast(dict[str, Any], content)
