"""Scores on disk as they are computed, so that an interrupted command can continue."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.config import record_key
from peft_mrpc.errors import UserError
from peft_mrpc.serialization import load_json


class FileScoreCache:
    """The scores of batches, one line each, in one file per process.

    Args:
        folder: Directory of the files.
        process_index: Process that writes.
        inputs: Everything that the scores depend on; scores of other inputs are ignored.
    """

    def __init__(self, folder: Path, process_index: int, inputs: Mapping[str, Any]) -> None:
        self.path = folder / f"{process_index}.jsonl"
        self.key = record_key(inputs)
        self._scores: dict[int, list[float]] = {}
        for file in sorted(folder.glob("*.jsonl")):
            for line in file.read_text("utf-8", errors="replace").splitlines():
                self._load(line)

    def _load(self, line: str) -> None:
        try:
            record = load_json(line)
            if record["key"] == self.key:
                scores = np.array(record["scores"], np.float64)
                if scores.ndim == 2 and np.isfinite(scores).all():
                    self._scores |= dict(zip(record["rows"], scores.tolist(), strict=True))
        except (ValueError, TypeError, KeyError):
            return  # a line that was being written when the command was interrupted, or damaged

    def __len__(self) -> int:
        return len(self._scores)

    def find(self, rows: Sequence[int]) -> NDArray[np.float64] | None:
        """The scores of these rows, [B, K]; None if some are missing."""
        if not all(row in self._scores for row in rows):
            return None
        return np.array([self._scores[row] for row in rows])

    def add(self, rows: Sequence[int], scores: NDArray[np.float64]) -> None:
        """Append the scores of a batch in full precision.

        Raises:
            UserError: If a score is not finite. The same command would fail for ever.
        """
        if not np.isfinite(scores).all():
            raise UserError(
                "the model's scores are not finite: NaN or infinite. Use another precision, or "
                "check the server."
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": self.key, "rows": list(rows), "scores": scores.tolist()})
        with self.path.open("a", encoding="utf-8") as file:
            # The last line can be incomplete: begin a new one.
            file.write(f"\n{line}\n" if file.tell() else f"{line}\n")
