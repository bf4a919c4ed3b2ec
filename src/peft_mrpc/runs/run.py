"""A Run: the directory that every strategy ends in, and all that later commands read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.data.examples import UNKNOWN_LABEL, Example
from peft_mrpc.errors import UserError, closest, one_line, raise_faults
from peft_mrpc.runs import schema
from peft_mrpc.serialization import read_json, read_json_lines, write_json_lines

FORMAT_VERSION = 1
RUN_FILE, METRICS_FILE, CARD_FILE = "run.json", "metrics.json", "README.md"
ARTIFACT_FILE = "peft_mrpc.json"
# The labelled pairs that a hard prompt's nearest demonstrations are found among.
POOL_FILE = "pool.jsonl"
# A Run holds one of these: what transformers or PEFT load, or, for a hard prompt, the template.
ARTIFACT_FOLDERS = ("adapter", "model", "prompt")
RUN_CONTENTS = frozenset(
    {RUN_FILE, METRICS_FILE, CARD_FILE, "predictions", "plots", "checkpoints", "seeds"}
    | set(ARTIFACT_FOLDERS)
)


@dataclass(frozen=True)
class Predictions:
    """What a Run answered on one split, in dataset order.

    Attributes:
        idx: Row numbers, [N].
        references: True label indices, [N]; -1 where unknown.
        predictions: Predicted label indices, [N].
        probabilities: [N, C].
    """

    idx: NDArray[np.int64]
    references: NDArray[np.int64]
    predictions: NDArray[np.int64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A written Run; its files are read when they are asked for."""

    path: Path
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """Short name for tables and legends: method and model."""
        model = self.record["model"].removeprefix("builtin:").split("/")[-1]
        return f"{self.record['method']} · {model}"

    @property
    def label_names(self) -> list[str]:
        """Names of the labels, by index."""
        return list(self.record["data"]["label_names"])

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """The content of `metrics.json`: metrics by split."""
        content: dict[str, dict[str, Any]] = read_json(self.path / METRICS_FILE)
        _check_shape(self.path / METRICS_FILE, content, schema.METRICS)
        for split, values in content.items():
            if missing := sorted(set(self.label_names) - set(values["f1"])):
                raise UserError(
                    f"{self.path / METRICS_FILE}: damaged: {split}.f1 lacks {', '.join(missing)}."
                )
        return content

    @cached_property
    def model_run(self) -> "Run":
        """The Run whose model and predictions stand for this one: itself, as a rule.

        Over several seeds it is the first one's: to take the best would be to choose a model on
        the split that is reported.
        """
        return self.seed_runs[0]

    @property
    def seed_runs(self) -> "list[Run]":
        """The Run of each seed: itself, as a rule."""
        seeds = self.record.get("seeds")
        if not seeds:
            return [self]
        return [load_run(self.path / "seeds" / str(seed)) for seed in seeds]

    @property
    def artifact(self) -> Path:
        """The folder that `predict` loads and `push` uploads."""
        for folder in ARTIFACT_FOLDERS:
            if (self.model_run.path / folder).is_dir():
                return self.model_run.path / folder
        raise UserError(f"{self.path}: holds no {' or '.join(ARTIFACT_FOLDERS)} folder.")

    @property
    def num_pool_pairs(self) -> int:
        """How many labelled training pairs the artifact holds, to show the nearest of."""
        path = self.artifact / POOL_FILE
        return len(read_json_lines(path)) if path.is_file() else 0

    def predictions(self, split: str) -> Predictions:
        """Read `predictions/<split>.jsonl`.

        Raises:
            UserError: If the Run did not score the split, or the file is damaged.
        """
        path = self.model_run.path / "predictions" / f"{split}.jsonl"
        index = {name: number for number, name in enumerate(self.label_names)}
        try:
            rows = read_json_lines(path)
            expected = self.record["data"]["splits"][split]["num_examples"]
            if [row["idx"] for row in rows] != list(range(expected)):
                raise ValueError(f"{len(rows)} rows, expected rows 0 to {expected - 1} in order")
            probabilities = np.array(
                [[float(row["probabilities"][name]) for name in index] for row in rows]
            )
            _check_probabilities(probabilities)
            return Predictions(
                np.array([row["idx"] for row in rows]),
                np.array(
                    [index[row["label"]] if "label" in row else UNKNOWN_LABEL for row in rows]
                ),
                np.array([index[row["prediction"]] for row in rows]),
                probabilities,
            )
        except FileNotFoundError as error:
            scored = sorted(file.stem for file in path.parent.glob("*.jsonl"))
            raise UserError(
                f"{self.path}: has no predictions of split {split!r}; it has {', '.join(scored)}."
            ) from error
        except KeyError as error:
            raise UserError(f"{path}: damaged: a row lacks or does not know {error}.") from error
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: damaged: {one_line(error)}.") from error


def _check_probabilities(probabilities: NDArray[np.float64]) -> None:
    """Refuse what no label's probability is, [N, C], as a training that diverged gives.

    Raises:
        ValueError: With the first row that is wrong.
    """
    total = probabilities.sum(axis=1)
    is_right = (probabilities >= 0).all(axis=1) & (np.abs(total - 1) < 1e-3)  # false for NaN
    if not is_right.all():
        row = int((~is_right).argmax())
        raise ValueError(
            f"row {row} has probabilities {probabilities[row].tolist()}; expected 0 to 1, in sum 1"
        )


def load_run(path: str | Path) -> Run:
    """Open a Run.

    Raises:
        UserError: If the directory is missing, is no Run, or was written by a newer version.
    """
    path = Path(path)
    if not path.is_dir():
        near = closest(
            path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        )
        raise UserError(f"RUN: got {str(path)!r}, which is no directory; expected a Run.{near}")
    if not (path / RUN_FILE).is_file():
        raise UserError(f"RUN: got {str(path)!r}, which holds no {RUN_FILE}; expected a Run.")
    record = read_json(path / RUN_FILE)
    if not isinstance(record, dict) or not isinstance(record.get("format_version"), int):
        raise UserError(f"{path / RUN_FILE}: holds no format_version; not a Run's file.")
    if record["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{path}: got format {record['format_version']}; this peft-mrpc reads up to "
            f"{FORMAT_VERSION}. Install a newer one."
        )
    _check_shape(path / RUN_FILE, record, schema.RECORD)
    return Run(path, record)


def _check_shape(path: Path, content: Any, shape: Any) -> None:
    raise_faults([f"{path}: damaged: {f}." for f in schema.shape_faults(content, shape)])


def write_predictions(
    path: Path,
    pairs: Sequence[Example],
    predictions: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    label_names: Sequence[str],
) -> None:
    """Write one JSON line for each pair, in dataset order."""
    rows = []
    for pair, label, row in zip(pairs, predictions, probabilities, strict=True):
        line: dict[str, Any] = {"idx": pair.idx}
        line |= {"sentence1": pair.sentence1, "sentence2": pair.sentence2}
        if pair.label != UNKNOWN_LABEL:
            line["label"] = label_names[pair.label]
        line["prediction"] = label_names[int(label)]
        line["probabilities"] = dict(zip(label_names, map(float, row), strict=True))
        rows.append(line)
    write_json_lines(path, rows)
