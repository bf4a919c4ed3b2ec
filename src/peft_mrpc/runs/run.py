"""A Run: the directory that every strategy writes and all later commands read.

A directory of ordinary Runs `seed_1`, `seed_2`, ... is a Run too, the multi-seed Run: its metrics
are means and deviations, computed when it is read. Every file of a Run is validated when it is
read, by the definitions in `assets/run.schema.json`: damaged files give one clear line each.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator, ValidationError, validators
from numpy.typing import NDArray

from peft_mrpc.data.examples import UNKNOWN_LABEL
from peft_mrpc.errors import UserError, closest, one_line, raise_faults
from peft_mrpc.evaluation.seed_aggregation import aggregate_metrics, aggregate_records
from peft_mrpc.formatting import shorten
from peft_mrpc.serialization import read_asset, read_json, read_json_lines

FORMAT_VERSION = 1
MAX_VALUE_LENGTH = 40
# How messages name a constraint of the schema.
CONSTRAINTS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minItems": "at least {} values",
    "uniqueItems": "different values",
    "pattern": "a file inside of the folder that is not hidden",
    "enum": "one of {}",
    "additionalProperties": "no other keys",
}
RUN_FILE, METRICS_FILE, CARD_FILE = "run.json", "metrics.json", "README.md"
ARTIFACT_FILE = "peft_mrpc.json"
# A Run holds one of these: what transformers or PEFT load or, for a hard prompt, the template.
ARTIFACT_FOLDERS = ("adapter", "model", "prompt")
SEED_FOLDER = "seed_{}"
PLOT_FILES = ("confusion_matrix.png", "roc_curve.png")
# Names, or patterns of names, that a Run's directory may hold.
RUN_CONTENTS = frozenset(
    {RUN_FILE, METRICS_FILE, CARD_FILE, "predictions", "plots", "checkpoints"}
    | {SEED_FOLDER.format("*")}
    | set(ARTIFACT_FOLDERS)
)
# Options that do not affect what is learned.
REPORTING_OPTIONS = frozenset(
    {"run_name", "disable_tqdm", "report_to", "resume_from_checkpoint", "local_rank"}
    | {"log_level", "logging_steps", "logging_strategy", "logging_first_step"}
    | {"push_to_hub", "hub_model_id", "hub_private_repo"}
)
# Options in which the Runs of one multi-seed Run may differ.
SEED_INDEPENDENT_OPTIONS = REPORTING_OPTIONS | {"seed", "data_seed", "seeds"}


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
    """A Run on disk. Its predictions are read when they are needed.

    Attributes:
        path: The directory; of a multi-seed Run that was grouped from several, the first one's.
        record: The content of `run.json`; of a multi-seed Run, aggregated.
        metrics: The content of `metrics.json`, metrics by split; or means and deviations over
            seeds.
        members: The Runs of a multi-seed Run, by seed; empty for an ordinary Run.
    """

    path: Path
    record: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
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
            for number, row in enumerate(rows):
                if faults := schema_faults(row, "prediction"):
                    raise ValueError(f"row {number}: {faults[0]}")
            num_examples = self.record["data"]["splits"][split]["num_examples"]
            return _parse_predictions(rows, self.label_names, num_examples)
        except FileNotFoundError as error:
            scored = ", ".join(sorted(file.stem for file in path.parent.glob("*.jsonl")))
            raise UserError(
                f"{self.path}: has no predictions of split {split!r}; it has {scored}."
            ) from error
        except KeyError as error:
            raise UserError(f"{path}: damaged: a row has an unknown label {error}.") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: damaged: {one_line(error)}.") from error


def _parse_predictions(
    rows: Sequence[Any], label_names: Sequence[str], num_examples: int
) -> Predictions:
    """Convert rows of a predictions file.

    Raises:
        KeyError: If a row has an unknown label.
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
        siblings = [p.name for p in path.parent.glob("*/")] if path.parent.is_dir() else []
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
    record = read_valid_json(path / RUN_FILE, "run")
    metrics = read_valid_json(path / METRICS_FILE, "metrics")
    label_names = record["data"]["label_names"]
    raise_faults(
        [
            f"{path / METRICS_FILE}: damaged: {split}.{fault}."
            for split, values in metrics.items()
            for fault in _label_faults(values, label_names)
        ]
    )
    return Run(path, record, metrics)


def _label_faults(values: Mapping[str, Any], label_names: Sequence[str]) -> list[str]:
    """Parts of a split's metrics that do not fit the labels."""
    faults = []
    if missing := sorted(set(label_names) - set(values["f1"])):
        faults.append(f"f1 lacks {', '.join(missing)}")
    if [len(row) for row in values["confusion_matrix"]] != [len(label_names)] * len(label_names):
        faults.append(f"confusion_matrix has another size than {len(label_names)} labels")
    return faults


def read_artifact_record(folder: Path) -> dict[str, Any]:
    """Read `peft_mrpc.json`: how to classify with the folder of a model, an adapter or a prompt.

    Raises:
        UserError: If it is missing or damaged, or a file that it lists is missing.
    """
    info: dict[str, Any] = read_valid_json(folder / ARTIFACT_FILE, "artifact")
    missing = [name for name in info.get("files", ()) if not (folder / name).is_file()]
    raise_faults([f"{folder}: damaged: {name} is missing." for name in missing])
    raise_faults([f"{folder / ARTIFACT_FILE}: damaged: {fault}." for fault in _prompt_faults(info)])
    return info


def _prompt_faults(info: Mapping[str, Any]) -> list[str]:
    """Parts of a hard prompt's record that do not fit its labels and templates."""
    label_names = info["label_names"]
    shots = (info.get("demonstrations") or {"shown": ()})["shown"]
    faults = [
        f"demonstrations has the label {shot['label']!r}; expected one of {', '.join(label_names)}"
        for shot in shots
        if shot["label"] not in label_names
    ]
    if calibration := info.get("calibration"):
        size, count = len(label_names), len(info.get("templates", ()))
        if calibration["kind"] == "affine":  # of the templates' features
            count = len(calibration["offsets"])
        square = [[size] * size] * count
        sizes = {
            "offsets": ([len(row) for row in calibration["offsets"]], [size] * count),
            "weights": ([[len(r) for r in matrix] for matrix in calibration["weights"]], square),
            "bias": (len(calibration["bias"]), size),
        }
        faults += [
            f"calibration.{name} has another size than {count} templates or {size} labels"
            for name, (actual, expected) in sizes.items()
            if actual != expected
        ]
    return faults


def read_valid_json(path: Path, part: str) -> Any:
    """Read a JSON file of a Run.

    Args:
        path: The file.
        part: Its definition in the schema.
    Raises:
        UserError: With one line for each fault.
    """
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{path}: got format {version}; this version of peft-mrpc reads formats up to "
            f"{FORMAT_VERSION}. Install a newer version."
        )
    raise_faults([f"{path}: damaged: {fault}." for fault in schema_faults(content, part)])
    return content


def schema_faults(content: Any, part: str) -> list[str]:
    """Compare JSON with a part of the schema.

    Args:
        content: Parsed JSON.
        part: `run`, `metrics`, `prediction` or `artifact`.
    Returns:
        One text for each fault, such as `data.splits.test lacks fingerprint`.
    """
    errors = _validator(part).iter_errors(content)
    ordered = sorted(errors, key=lambda error: list(map(str, error.path)))
    # Each missing key is an error of its own, with the same text.
    return list(dict.fromkeys(map(_format_error, ordered)))


@cache
def _validator(part: str) -> Any:
    # Python reads NaN and Infinity, which are not JSON, and integers of any size.
    numbers = Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "number": lambda _, value: _is_number(value, int | float),
            "integer": lambda _, value: _is_number(value, int),
        }
    )
    validator = validators.extend(Draft202012Validator, type_checker=numbers)
    return validator(json.loads(read_asset("assets/run.schema.json"))["$defs"][part])


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and -1e18 < value < 1e18


def _format_error(error: ValidationError) -> str:
    where = ".".join(map(str, error.path)) or "the content"
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"{where} lacks {', '.join(missing)}"
    value = shorten(json.dumps(error.instance, ensure_ascii=False), MAX_VALUE_LENGTH)
    if error.validator == "type":
        types = error.validator_value
        expected = types if isinstance(types, str) else " or ".join(types)
        return f"{where} is {value}; expected {expected}"
    expected = CONSTRAINTS[str(error.validator)].format(error.validator_value)
    return f"{where} is {value}; expected {expected}"


def aggregate_runs(members: Sequence[Run], path: Path | None = None) -> Run:
    """Combine Runs that differ in the seed only; a single one stays as it is.

    Args:
        members: The Runs, by seed.
        path: Path of the result; by default the path of the first Run.
    """
    if len(members) == 1:
        return members[0]
    seeds = [run.record["seed"] for run in members]
    record = aggregate_records([run.record for run in members], seeds)
    splits = [split for split in members[0].metrics if all(split in r.metrics for r in members)]
    metrics = {s: aggregate_metrics([run.metrics[s] for run in members], seeds) for s in splits}
    return Run(path or members[0].path, record, metrics, tuple(members))


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
