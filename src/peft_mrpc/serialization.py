"""Files of one JSON object a line."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def format_json_lines(rows: Iterable[Any]) -> str:
    """One line for each row; what JSON does not know is written as text."""
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write a file of them; its directory is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(format_json_lines(rows), encoding="utf-8")


def read_json_lines(path: Path) -> list[Any]:
    """Read a file of them.

    Raises:
        OSError: If it cannot be read.
        ValueError: If a line is no JSON, or it is not UTF-8.
    """
    # Not splitlines: sentences may hold U+2028 and other characters that end a line there.
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
