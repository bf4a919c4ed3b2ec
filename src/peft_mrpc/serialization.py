"""Read and write JSON, JSON lines and YAML 1.2, from sources that may be hostile.

All YAML of the package goes through this module: recipes, search spaces, templates and values on
the command line. In YAML 1.2 `2e-5` is a number, `no` and `off` are words, and a duplicate key is
an error. The depth of JSON and YAML, and the size of YAML with its aliases expanded, are limited.
"""

import io
import json
import math
import os
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from peft_mrpc.errors import UserError, one_line

LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
DUPLICATE_KEY = re.compile(r'found duplicate key "(.*?)" with value')
TRUE_WORDS = ("true", "yes", "t", "y", "1")
FALSE_WORDS = ("false", "no", "f", "n", "0")
# Limits of foreign content; files of options and templates are far smaller.
MAX_DEPTH = 100
MAX_YAML_CHARACTERS = 100_000
MAX_YAML_VALUES = 100_000


def user_path(path: str | Path) -> Path:
    """A path with `~` replaced; the home directory of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path's own raises for such a user


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: If the file is missing or is not JSON.
    """
    try:
        return load_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; expected a finished Run.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {one_line(error)}") from error


def load_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: If the text is not JSON, is nested more than MAX_DEPTH levels deep, or has a
            number of more digits than Python reads (4,300).
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from error
    except ValueError as error:  # Python's limit of the digits of an integer
        raise ValueError("a number with too many digits") from error
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_size(content)
    return content


def _check_size(content: Any, max_values: float = math.inf) -> None:
    """Raise ValueError for content that is too deep, or that has too many values."""
    values, depth = [content], 0
    count = 0
    while values:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        nested: list[Any] = []
        for value in values:
            if isinstance(value, dict):
                nested += [*value, *value.values()]
            elif isinstance(value, list | tuple | set):
                nested += value
            if count + len(nested) > max_values:
                raise ValueError(f"more than {max_values:,} values, aliases expanded")
        count += len(nested)
        values, depth = nested, depth + 1


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, indented, with a newline at its end."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_bytes(encode_text(text + "\n"))


def encode_text(text: str) -> bytes:
    """UTF-8, with each lone surrogate as an escape such as `\\ud800`.

    JSON reads the escape as the same character. File names that are not UTF-8 contain such
    characters.
    """
    return text.encode("utf-8", errors="backslashreplace")


def format_json_lines(rows: Iterable[Any]) -> str:
    """One line for each row; values that JSON does not know are written as text."""
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value per line; create the directory if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_text(format_json_lines(rows)))


def read_json_lines(path: Path) -> list[Any]:
    """Read a file with one JSON value per line.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If a line is not JSON, or the file is not UTF-8.
    """
    # Not splitlines: sentences may contain U+2028 and other characters that end a line there.
    return [load_json(line) for line in path.read_text("utf-8").split("\n") if line]


def load_yaml(text: str) -> Any:
    """Parse YAML 1.2.

    Raises:
        ValueError: If the text is not YAML, has a duplicate key, or exceeds a limit; the message
            names the line.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise ValueError(f"more than {MAX_YAML_CHARACTERS:,} characters")
    if LONE_SURROGATE.search(text):  # no tokenizer and no file encodes it
        raise ValueError("got a lone surrogate, such as \\ud800")
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        if duplicate := DUPLICATE_KEY.match(problem):
            problem = f"got the key {duplicate[1]!r} twice"
        raise ValueError(f"{problem}{line}") from error
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from error
    except Exception as error:  # for values such as `!!bool x`, ruamel raises KeyErrors and others
        raise ValueError(one_line(error)) from error
    _check_size(content, MAX_YAML_VALUES)
    return content


def dump_yaml(content: Any) -> str:
    """Format a mapping as YAML 1.2, in block style and in its own order."""
    yaml = YAML()
    yaml.default_flow_style = False
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def read_yaml(path: str | Path, argument: str, expected: str) -> dict[str, Any]:
    """Read a YAML file that contains a mapping with text keys.

    Args:
        path: The file.
        argument: The argument that named the file, for the error message.
        expected: The content that the file must have, for the error message.
    Raises:
        UserError: If the file is missing, is not YAML, or is not a mapping of names.
    """
    try:
        text = user_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{argument}: got {str(path)!r}; expected a readable YAML file. {one_line(error)}"
        ) from error
    try:
        content = load_yaml(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: expected {expected}.")
    return cast(dict[str, Any], content)


def read_asset(name: str) -> str:
    """Read a text file of this package, such as `recipes/lora.yaml`."""
    return (resources.files("peft_mrpc") / name).read_text("utf-8")


def parse_scalar(text: str) -> Any:
    """Parse one value of a command line as YAML; text that is not YAML stays text."""
    try:
        value = load_yaml(text)
    except ValueError:
        return text
    if isinstance(value, str):
        try:
            return float(value)  # `nan` and `inf`, which YAML spells `.nan` and `.inf`
        except ValueError:
            return value
    return value


def is_true(value: Any) -> bool:
    """Whether a boolean option is on, given as a bool or as a word (as in HfArgumentParser)."""
    return str(value).lower() in TRUE_WORDS
