"""A Run: the directory that every strategy writes and all later commands read.

A directory of ordinary Runs `seed_1`, `seed_2`, ... is a Run too, the multi-seed Run: its metrics
are means and deviations, computed when it is read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.data.examples import UNKNOWN_LABEL
from peft_mrpc.errors import UserError, closest, one_line
from peft_mrpc.evaluation.seed_aggregation import aggregate_metrics, aggregate_records
from peft_mrpc.runs.schema import validate_metrics, validate_record
from peft_mrpc.serialization import read_json, read_json_lines

FORMAT_VERSION = 1
RUN_FILE, METRICS_FILE, CARD_FILE = "run.json", "metrics.json", "README.md"
ARTIFACT_FILE = "peft_mrpc.json"
# The labelled training examples from which a hard prompt chooses the nearest demonstrations.
POOL_FILE = "pool.jsonl"
# A Run holds one of these: what transformers or PEFT load or, for a hard prompt, the template.
ARTIFACT_FOLDERS = ("adapter", "model", "prompt")
SEED_FOLDER = "seed_{}"
# Names, or patterns of names, that a Run's directory may hold.
RUN_CONTENTS = frozenset(
    {RUN_FILE, METRICS_FILE, CARD_FILE, "predictions", "plots", "checkpoints"}
    | {SEED_FOLDER.format("*")}
    | set(ARTIFACT_FOLDERS)
)
# Options in which the Runs of one multi-seed Run may differ: they do not affect what is learned.
SEED_INDEPENDENT_OPTIONS = frozenset(
    {"seed", "data_seed", "seeds", "run_name", "disable_tqdm", "report_to", "logging_steps"}
    | {"resume_from_checkpoint", "push_to_hub", "hub_model_id", "hub_private_repo", "local_rank"}
)


@dataclass(frozen=True)
class Predictions:
    """The predictions of a Run for one split, in dataset order.

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

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is correct, [N]."""
        return np.asarray(self.predictions == self.references, np.bool_)


@dataclass(frozen=True)
class Run:
    """A Run on disk. Its files are read when they are needed.

    Attributes:
        path: The directory; of a multi-seed Run that was grouped from several, the first one's.
        record: The content of `run.json`; of a multi-seed Run, aggregated.
        members: The Runs of a multi-seed Run, by seed; empty for an ordinary Run.
    """

    path: Path
    record: dict[str, Any]
    members: "tuple[Run, ...]" = ()

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
        """Metrics by split: the content of `metrics.json`, or means and deviations over seeds.

        Raises:
            UserError: If the file is missing or damaged.
        """
        if self.members:
            seeds = [run.record["seed"] for run in self.members]
            splits = [
                s for s in self.model_run.metrics if all(s in r.metrics for r in self.members)
            ]
            return {
                s: aggregate_metrics([r.metrics[s] for r in self.members], seeds) for s in splits
            }
        content: dict[str, dict[str, Any]] = read_json(self.path / METRICS_FILE)
        validate_metrics(self.path / METRICS_FILE, content, self.label_names)
        return content

    @property
    def model_run(self) -> "Run":
        """The Run whose model and predictions represent this one: itself, or the first seed's.

        The best seed would be a model selected on the split that is reported.
        """
        return self.seed_runs[0]

    @property
    def seed_runs(self) -> "list[Run]":
        """The Run of each seed; of an ordinary Run, itself."""
        return list(self.members) or [self]

    @property
    def artifact(self) -> Path:
        """The folder that `predict` loads and `push` uploads."""
        for folder in ARTIFACT_FOLDERS:
            if (self.model_run.path / folder).is_dir():
                return self.model_run.path / folder
        raise UserError(f"{self.path}: has no {' or '.join(ARTIFACT_FOLDERS)} folder.")

    @property
    def num_pool_examples(self) -> int:
        """Number of labelled training examples that the artifact holds as demonstrations."""
        path = self.artifact / POOL_FILE
        return len(read_json_lines(path)) if path.is_file() else 0

    def predictions_path(self, split: str) -> Path:
        """The file of the predictions for a split."""
        return self.model_run.path / "predictions" / f"{split}.jsonl"

    def predictions(self, split: str) -> Predictions:
        """Read `predictions/<split>.jsonl`.

        Raises:
            UserError: If the Run did not score the split, or the file is damaged.
        """
        path = self.predictions_path(split)
        try:
            rows = read_json_lines(path)
            num_examples = self.record["data"]["splits"][split]["num_examples"]
            return _parse_predictions(rows, self.label_names, num_examples)
        except FileNotFoundError as error:
            scored = ", ".join(sorted(file.stem for file in path.parent.glob("*.jsonl")))
            raise UserError(
                f"{self.path}: has no predictions of split {split!r}; it has {scored}."
            ) from error
        except KeyError as error:
            raise UserError(
                f"{path}: damaged: a row has a missing key or unknown label {error}."
            ) from error
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: damaged: {one_line(error)}.") from error


def _parse_predictions(
    rows: Sequence[Any], label_names: Sequence[str], num_examples: int
) -> Predictions:
    """Convert rows of a predictions file.

    Raises:
        KeyError: If a row lacks a key or has an unknown label.
        ValueError: If rows are missing or out of order, or probabilities are invalid.
    """
    index = {name: number for number, name in enumerate(label_names)}
    if [row["idx"] for row in rows] != list(range(num_examples)):
        raise ValueError(f"{len(rows)} rows, expected rows 0 to {num_examples - 1} in order")
    probabilities = np.array(
        [[float(row["probabilities"][name]) for name in label_names] for row in rows]
    )
    total = probabilities.sum(axis=1)
    # False for NaN, as a diverged training gives.
    is_valid = (probabilities >= 0).all(axis=1) & (np.abs(total - 1) < 1e-3)
    if not is_valid.all():
        row = int((~is_valid).argmax())
        raise ValueError(
            f"row {row} has probabilities {probabilities[row].tolist()}; expected values from 0 to "
            "1 with sum 1"
        )
    labels = [index[row["label"]] if "label" in row else UNKNOWN_LABEL for row in rows]
    return Predictions(
        np.array([row["idx"] for row in rows]),
        np.array(labels),
        np.array([index[row["prediction"]] for row in rows]),
        probabilities,
    )


def load_run(path: str | Path) -> Run:
    """Load a Run, or a directory of Runs `seed_1`, `seed_2`, ... as a multi-seed Run.

    Raises:
        UserError: If the directory is missing, is not a Run, or has a newer format; if the Runs of
            its seeds differ in more than the seed.
    """
    path = Path(path)
    if not path.is_dir():
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UserError(
            f"RUN: got {str(path)!r}, which is not a directory; expected a Run."
            f"{closest(path.name, siblings)}"
        )
    if (path / RUN_FILE).is_file():
        return _load_single_run(path)
    members = [_load_single_run(folder) for folder in seed_folders(path)]
    if not members:
        raise UserError(f"RUN: got {str(path)!r}, which has no {RUN_FILE}; expected a Run.")
    options = [_seed_independent_options(run) for run in members]
    for run, values in zip(members[1:], options[1:], strict=True):
        if different := _different_options(options[0], values):
            raise UserError(
                f"{path}: {members[0].path.name} and {run.path.name} differ in "
                f"{', '.join(different)}; expected Runs that differ in the seed only."
            )
    return aggregate_runs(members, path)


def seed_folders(path: Path) -> list[Path]:
    """The finished Runs `seed_1`, `seed_2`, ... in a directory, by seed."""
    folders = {
        int(match[1]): folder
        for folder in path.glob(SEED_FOLDER.format("*"))
        if (match := re.fullmatch(SEED_FOLDER.format(r"(\d+)"), folder.name))
        and (folder / RUN_FILE).is_file()
    }
    return [folders[seed] for seed in sorted(folders)]


def _load_single_run(path: Path) -> Run:
    file = path / RUN_FILE
    record = read_json(file)
    if not isinstance(record, dict) or not isinstance(record.get("format_version"), int):
        raise UserError(f"{file}: has no format_version; expected the record of a Run.")
    if record["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{path}: got format {record['format_version']}; this version of peft-mrpc reads "
            f"formats up to {FORMAT_VERSION}. Install a newer version."
        )
    validate_record(file, record)
    return Run(path, record)


def aggregate_runs(members: Sequence[Run], path: Path | None = None) -> Run:
    """Combine Runs that differ in the seed only; a single one stays as it is.

    Args:
        members: The Runs, by seed.
        path: Path of the result; by default the path of the first Run.
    """
    if len(members) == 1:
        return members[0]
    record = aggregate_records(
        [run.record for run in members], [run.record["seed"] for run in members]
    )
    return Run(path or members[0].path, record, tuple(members))


def group_seed_runs(runs: Sequence[Run]) -> list[Run]:
    """Combine Runs that differ in the seed only.

    Args:
        runs: Runs; a multi-seed Run stays as it is.
    Returns:
        The Runs, each multi-seed Run at the position of its first member.
    """
    groups: list[list[Run]] = []
    for run in runs:
        group = next((group for group in groups if _belongs(run, group)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return [aggregate_runs(sorted(group, key=lambda run: run.record["seed"])) for group in groups]


def _belongs(run: Run, group: Sequence[Run]) -> bool:
    if run.members or group[0].members:
        return False
    if run.record["seed"] in [member.record["seed"] for member in group]:
        return False
    return not _different_options(
        _seed_independent_options(run), _seed_independent_options(group[0])
    )


def _different_options(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Options with different values; an option that only one of the two has is ignored."""
    return sorted(key for key in first.keys() & second.keys() if first[key] != second[key])


def _seed_independent_options(run: Run) -> dict[str, Any]:
    """What was configured, without the seed and options that do not affect the result."""
    record = run.record
    config = {k: v for k, v in record["config"].items() if k not in SEED_INDEPENDENT_OPTIONS}
    # The seed also draws the training examples that are used, or carved out for model selection.
    is_drawn = bool(record.get("selection") or config.get("max_train_samples"))
    data = {
        name: split["num_examples" if is_drawn and name == "train" else "fingerprint"]
        for name, split in record["data"]["splits"].items()
    }
    keys = ("method", "model", "base_model_id", "method_options")
    return {**config, **{key: record.get(key) for key in keys}, "data": data}
