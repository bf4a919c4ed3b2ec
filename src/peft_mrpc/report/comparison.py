"""Runs aligned for comparison: the same examples, labels in one order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.data.examples import UNKNOWN_LABEL
from peft_mrpc.errors import UserError, raise_faults
from peft_mrpc.evaluation.metrics import REPORTED_METRICS
from peft_mrpc.formatting import escape_control
from peft_mrpc.runs.run import Predictions, Run, group_seed_runs


@dataclass(frozen=True)
class Comparison:
    """Runs and their predictions for the same examples, labels in one order.

    Attributes:
        names: A unique name for each Run, on one line and without control characters.
        runs: The Runs.
        split: The split that is compared.
        label_names: Names of the C labels, in the first Run's order.
        seed_predictions: The predictions of each Run, for each of its seeds.
    """

    names: list[str]
    runs: list[Run]
    split: str
    label_names: list[str]
    seed_predictions: list[list[Predictions]]

    @property
    def label_texts(self) -> list[str]:
        """Names of the labels for tables and pages."""
        return [as_text(name.replace("_", " ")) for name in self.label_names]

    @property
    def predictions(self) -> list[Predictions]:
        """The predictions of each Run; of a multi-seed Run, the first seed's."""
        return [seeds[0] for seeds in self.seed_predictions]

    @property
    def references(self) -> NDArray[np.int64]:
        """True label indices, [N]."""
        return self.predictions[0].references

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of each Run for the split."""
        return [run.metrics[self.split] for run in self.runs]

    @property
    def data(self) -> dict[str, Any]:
        """The data set as the first Run recorded it."""
        return dict(self.runs[0].record["data"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the examples."""
        return str(self.data["splits"][self.split]["fingerprint"])

    @property
    def title(self) -> str:
        """Data set and split."""
        return as_text(f"{self.data['name']}: {self.split} split")

    @property
    def description(self) -> str:
        """Data set, split and number of examples."""
        return as_text(f"{self.data['name']} {self.split}, {len(self.references):,} examples")

    def rows(self) -> list[dict[str, Any]]:
        """Rows of the results: the majority baseline, then each Run in its order."""
        return [self._baseline_row()] + [
            _run_row(name, run, run.metrics[self.split])
            for name, run in zip(self.names, self.runs, strict=True)
        ]

    def _baseline_row(self) -> dict[str, Any]:
        """Metrics of always predicting the most frequent label."""
        counts = np.bincount(self.references, minlength=len(self.label_names))
        majority = int(counts.argmax())
        share = float(counts[majority] / counts.sum())
        # The majority label has precision `share` and recall 1; the F1 of the others is 0.
        f1 = dict.fromkeys(self.label_names, 0.0)
        f1[self.label_names[majority]] = 2 * share / (1 + share)
        return {
            "name": f"always “{self.label_texts[majority]}”",
            "method": "majority",
            "accuracy": share,
            "f1": f1,
            "macro_f1": float(np.mean(list(f1.values()))),
            "roc_auc": 0.5,
        }


def as_text(text: str) -> str:
    """Text from a Run on one line, with control characters as escapes."""
    return " ".join(escape_control(text).split())


def build_comparison(
    runs: Sequence[Run], split: str | None = None, aggregate_seeds: bool = True
) -> Comparison:
    """Align Runs.

    Args:
        runs: The Runs.
        split: Split to compare; None for test if all Runs have it, else validation.
        aggregate_seeds: Whether Runs that differ in the seed only become one multi-seed Run.
    Raises:
        UserError: If a Run occurs twice, lacks the split or its labels, is damaged, or was scored
            on other examples.
    """
    paths = [run.path.resolve() for run in runs]
    raise_faults(
        [
            f"RUN: got {run.path} twice; name each Run once."
            for position, run in enumerate(runs)
            if paths[position] in paths[:position]
        ]
    )
    if aggregate_seeds:
        runs = group_seed_runs(runs)
    split = split or _common_split(runs)
    raise_faults(
        [
            f"{run.path}: has no labelled split {split!r}; it has "
            f"{', '.join(run.metrics) or 'none'}."
            for run in runs
            if split not in run.metrics
        ]
    )
    _check_same_examples(runs, split)
    label_names = runs[0].label_names
    seed_predictions = [
        [_align(seed.predictions(split), seed.label_names, label_names) for seed in run.seed_runs]
        for run in runs
    ]
    _check_predictions(runs, split, seed_predictions)
    return Comparison(_unique_names(runs), list(runs), split, label_names, seed_predictions)


def _check_same_examples(runs: Sequence[Run], split: str) -> None:
    """Refuse Runs with other labels or examples than the first."""
    faults, first = [], runs[0]
    for run in runs[1:]:
        if set(run.label_names) != set(first.label_names):
            faults.append(
                f"{run.path}: has the labels {', '.join(run.label_names)}; expected those of "
                f"{first.path}, {', '.join(first.label_names)}. Compare Runs of one data set."
            )
        elif _fingerprint(run, split) != _fingerprint(first, split):
            faults.append(
                f"{run.path}: was scored on other examples of {split!r} than {first.path} "
                f"({_describe_split(run, split)}; {_describe_split(first, split)}); expected the "
                "same data set and limits."
            )
    raise_faults(faults)


def _fingerprint(run: Run, split: str) -> str:
    splits = run.record["data"]["splits"]
    if split not in splits:
        raise UserError(
            f"{run.path}: damaged: run.json has no split {split!r}, but metrics.json has."
        )
    return str(splits[split]["fingerprint"])


def _describe_split(run: Run, split: str) -> str:
    data = run.record["data"]
    return f"{data['name']}, {data['splits'][split]['num_examples']} examples"


def _check_predictions(
    runs: Sequence[Run], split: str, seed_predictions: Sequence[Sequence[Predictions]]
) -> None:
    """Refuse predictions that do not fit to the metrics, or to the first Run's examples.

    Raises:
        UserError: If a file was changed or exchanged.
    """
    faults, first = [], seed_predictions[0][0]
    for run, seeds in zip(runs, seed_predictions, strict=True):
        for seed_run, rows in zip(run.seed_runs, seeds, strict=True):
            path = seed_run.predictions_path(split)
            if not np.array_equal(rows.idx, first.idx):
                faults.append(f"{path}: damaged: has other labelled rows than {runs[0].path}.")
            elif not np.array_equal(rows.references, first.references):
                row = int(rows.idx[(rows.references != first.references).argmax()])
                faults.append(f"{path}: damaged: row {row} has another label in {runs[0].path}.")
            elif not len(rows.idx):
                faults.append(f"{path}: has no labelled row; expected at least one.")
            else:
                recorded = seed_run.metrics[split]["accuracy"]
                accuracy = float(rows.is_correct.mean())
                if abs(accuracy - recorded) > 1e-6:
                    faults.append(
                        f"{path}: damaged: its accuracy is {accuracy:.4f}, metrics.json has "
                        f"{recorded:.4f}. Write the Run again."
                    )
    raise_faults(faults)


def _common_split(runs: Sequence[Run]) -> str:
    common = set.intersection(*(set(run.metrics) for run in runs))
    for split in ("test", "validation", *sorted(common)):
        if split in common:
            return split
    splits = "; ".join(f"{run.path}: {', '.join(run.metrics) or 'none'}" for run in runs)
    raise UserError(f"RUN: the Runs have no labelled split in common ({splits}).")


def _align(rows: Predictions, run_labels: Sequence[str], label_names: Sequence[str]) -> Predictions:
    """Reorder a Run's labels as in `label_names`, and drop unlabelled examples."""
    columns = [run_labels.index(name) for name in label_names]
    position = np.argsort(columns)
    labelled = rows.references != UNKNOWN_LABEL
    return Predictions(
        rows.idx[labelled],
        position[rows.references[labelled]],
        position[rows.predictions[labelled]],
        rows.probabilities[labelled][:, columns],
    )


def _unique_names(runs: Sequence[Run]) -> list[str]:
    """The name of each Run; equal names get the shortest distinct ends of their paths."""
    names = [as_text(run.name) for run in runs]
    parts = [run.path.resolve().parts for run in runs]
    unique = names
    for depth in range(1, max(map(len, parts)) + 1):
        unique = [
            f"{name} ({as_text('/'.join(path[-depth:]))})" if names.count(name) > 1 else name
            for name, path in zip(names, parts, strict=True)
        ]
        if len(set(unique)) == len(unique):
            break
    return unique


def _run_row(name: str, run: Run, values: dict[str, Any]) -> dict[str, Any]:
    trainable = run.record.get("trainable")
    timing = run.record["timing"]
    return {
        "name": name,
        "method": run.record["method"],
        "model": run.record["model"],
        **{metric.name: values[metric.name] for metric in REPORTED_METRICS},
        "trained_parameters": trainable["trained"] if trainable else 0,
        "trained_share": trainable["trained"] / trainable["total"] if trainable else 0.0,
        "train_seconds": timing.get("train_seconds"),
        "score_pairs_per_second": timing["score_pairs_per_second"],
        "peak_memory_bytes": run.record["peak_memory"]["resident_bytes"],
        "seed": run.record["seed"],
        **({"std": values["std"], "seeds": run.record["seeds"]} if "std" in values else {}),
    }
