"""Scores on disk as they come, so that a command that was cut off goes on where it stood."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.config import record_key


class FileScoreCache:
    """The scores of batches, one line each; a file for each process.

    Args:
        folder: Where the files lie.
        process_index: Which of the processes writes here.
        asked: All that the scores depend on. What was asked otherwise is not found again.
    """

    def __init__(self, folder: Path, process_index: int, asked: Mapping[str, Any]) -> None:
        self.path = folder / f"{process_index}.jsonl"
        self.key = record_key(asked)
        self._found: dict[int, list[float]] = {}
        for file in sorted(folder.glob("*.jsonl")):
            for line in file.read_text("utf-8").splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            one = json.loads(line)
        except ValueError:  # the line that was being written when the command was cut off
            return
        if one["key"] == self.key:
            self._found |= dict(zip(one["rows"], one["scores"], strict=True))

    def __len__(self) -> int:
        return len(self._found)

    def find(self, rows: Sequence[int]) -> NDArray[np.float64] | None:
        """The scores of these rows, [B, K], if all of them are there."""
        if not all(row in self._found for row in rows):
            return None
        return np.array([self._found[row] for row in rows])

    def add(self, rows: Sequence[int], scores: NDArray[np.float64]) -> None:
        """Append the scores of a batch, whole and in full precision."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": self.key, "rows": list(rows), "scores": scores.tolist()})
        with self.path.open("a", encoding="utf-8") as file:
            # A line that was cut off must not swallow this one.
            file.write(f"\n{line}\n" if file.tell() else f"{line}\n")
