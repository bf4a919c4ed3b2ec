"""YAML as a user means it: `2e-5` is a number, `no` and `off` are words, no key stands twice."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

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
