"""Runs brought together: the same rows, labels in one order, seeds joined."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peft_mrpc.data.examples import UNKNOWN_LABEL
from peft_mrpc.errors import UserError, raise_faults
from peft_mrpc.runs.run import Predictions, Run

FIGURES = ("accuracy", "f1", "macro_f1", "roc_auc", "average_precision", "mcc", "brier", "ece")


@dataclass(frozen=True)
class Comparison:
    """Runs and their answers on the same rows, labels in one order.

    Attributes:
        names: One for each Run, all different.
        runs: The Runs.
        split: The split compared on.
        label_names: Names of the C labels, in the first Run's order.
        answers: Each Run's answers, for each of its seeds.
    """

    names: list[str]
    runs: list[Run]
    split: str
    label_names: list[str]
    answers: list[list[Predictions]]

    @property
    def predictions(self) -> list[Predictions]:
        """Each Run's answers, of a Run over seeds the first seed's: those that it stands for."""
        return [seeds[0] for seeds in self.answers]

    @property
    def where(self) -> str:
        """What was scored: data set, split, size."""
        name = self.runs[0].record["data"]["name"]
        return f"{name} {self.split}, {len(self.predictions[0].idx):,} pairs"

    def rows(self) -> list[dict[str, Any]]:
        """The table: the majority baseline first, then a row for each Run, in the order given."""
        first = self.runs[0].metrics[self.split]
        baseline = _majority_row(self.predictions[0].references, self.label_names)
        baseline["accuracy"] = first["majority_accuracy"]
        return [baseline] + [
            _table_row(name, run, run.metrics[self.split])
            for name, run in zip(self.names, self.runs, strict=True)
        ]


def load_comparison(
    runs: Sequence[Run],
    split: str | None,
    join: Callable[[Sequence[Run]], list[Run]] | None = None,
) -> Comparison:
    """Align Runs, or say why they cannot be.

    Args:
        runs: The Runs.
        split: Split to compare on; None for test where all have it, else validation.
        join: Makes one of Runs that differ by their seed alone, if they are to be.

    Raises:
        UserError: If a Run lacks the split or its labels, or was scored on other rows.
    """
    places = [run.path.resolve() for run in runs]
    faults = [
        f"RUN: got {run.path} twice; name each Run once."
        for position, run in enumerate(runs)
        if run.path.resolve() in places[:position]
    ]
    raise_faults(faults)
    runs = join(runs) if join else runs
    split = split or _common_split(runs)
    faults = [
        f"{run.path}: has no labelled split {split!r}; it has {', '.join(run.metrics) or 'none'}."
        for run in runs
        if split not in run.metrics
    ]
    raise_faults(faults)
    first = runs[0]
    for run in runs[1:]:
        mine, theirs = (_fingerprint(r, split) for r in (first, run))
        if set(run.label_names) != set(first.label_names):
            faults.append(
                f"{run.path}: has the labels {', '.join(run.label_names)}; expected those of "
                f"{first.path}, {', '.join(first.label_names)}. Compare Runs of one data set."
            )
        elif mine != theirs:
            faults.append(
                f"{run.path}: was scored on other rows of {split!r} than {first.path} "
                f"({_rows_text(run, split)} against {_rows_text(first, split)}); "
                "expected the same data set and limits."
            )
    raise_faults(faults)
    answers = [
        [_align(one.predictions(split), one, first.label_names) for one in run.seed_runs]
        for run in runs
    ]
    _check_answers(runs, split, answers)
    return Comparison(_unique_names(runs), list(runs), split, first.label_names, answers)


def _fingerprint(run: Run, split: str) -> str:
    try:
        return str(run.record["data"]["splits"][split]["fingerprint"])
    except KeyError as error:
        raise UserError(
            f"{run.path}: damaged: run.json knows no split {split!r}, metrics.json does."
        ) from error


def _check_answers(
    runs: Sequence[Run], split: str, answers: Sequence[Sequence[Predictions]]
) -> None:
    """Make sure that predictions are those that were measured, and of rows with the same labels.

    Raises:
        UserError: If a file was changed since, or was mixed up with another Run's.
    """
    faults, first = [], answers[0][0]
    for run, seeds in zip(runs, answers, strict=True):
        for one, rows in zip(run.seed_runs, seeds, strict=True):
            path = one.path / "predictions" / f"{split}.jsonl"
            if not np.array_equal(rows.idx, first.idx):
                faults.append(f"{path}: damaged: has other labelled rows than {runs[0].path}.")
            elif not np.array_equal(rows.references, first.references):
                row = int(rows.idx[(rows.references != first.references).argmax()])
                faults.append(f"{path}: damaged: row {row} has another label in {runs[0].path}.")
            elif not len(rows.idx):
                faults.append(f"{path}: holds no labelled row; expected some to compare on.")
            else:
                measured = one.metrics[split]["accuracy"]
                found = float((rows.predictions == rows.references).mean())
                if abs(found - measured) > 1e-6:
                    faults.append(
                        f"{path}: damaged: its accuracy is {found:.4f}, metrics.json has "
                        f"{measured:.4f}. Write the Run anew."
                    )
    raise_faults(faults)


def _common_split(runs: Sequence[Run]) -> str:
    for split in ("test", "validation"):
        if all(split in run.metrics for run in runs):
            return split
    shared = set.intersection(*(set(run.metrics) for run in runs))
    if not shared:
        have = "; ".join(f"{run.path}: {', '.join(run.metrics) or 'none'}" for run in runs)
        raise UserError(f"compare: the Runs share no labelled split ({have}).")
    return sorted(shared)[0]


def _rows_text(run: Run, split: str) -> str:
    record = run.record["data"]
    return f"{record['name']}, {record['splits'][split]['num_examples']} rows"


def _align(rows: Predictions, run: Run, label_names: Sequence[str]) -> Predictions:
    """Bring a Run's labels into the order of `label_names`, and leave out unlabelled rows."""
    columns = [run.label_names.index(name) for name in label_names]
    position = np.argsort(columns)
    known = rows.references != UNKNOWN_LABEL
    return Predictions(
        rows.idx[known],
        position[rows.references[known]],
        position[rows.predictions[known]],
        rows.probabilities[known][:, columns],
    )


def _unique_names(runs: Sequence[Run]) -> list[str]:
    """Each Run's name, where two have one with as much of their paths' ends as tells them apart."""
    names = [run.name for run in runs]
    parts = [run.path.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(own[-depth:]) for own in parts]
        told = [
            f"{run.name} ({end})" if names.count(run.name) > 1 else run.name
            for run, end in zip(runs, ends, strict=True)
        ]
        if len(set(told)) == len(told):
            break
    return told


def _majority_row(references: Any, label_names: Sequence[str]) -> dict[str, Any]:
    counts = np.bincount(references, minlength=len(label_names))
    winner = int(counts.argmax())
    share = counts[winner] / counts.sum()
    # All rows get the winner: its precision is its share, its recall 1; every other F1 is 0.
    f1 = [2 * share / (1 + share) if i == winner else 0.0 for i in range(len(label_names))]
    return {
        "name": f"always “{label_names[winner].replace('_', ' ')}”",
        "method": "majority",
        "accuracy": float(share),
        "f1": dict(zip(label_names, map(float, f1), strict=True)),
        "macro_f1": float(np.mean(f1)),
        "roc_auc": 0.5,
    }


def _table_row(name: str, run: Run, values: dict[str, Any]) -> dict[str, Any]:
    trainable = run.record.get("trainable")
    timing = run.record["timing"]
    return {
        "name": name,
        "method": run.record["method"],
        "model": run.record["model"],
        **{key: values[key] for key in FIGURES},
        "trained_parameters": trainable["trained"] if trainable else 0,
        "trained_share": trainable["trained"] / trainable["total"] if trainable else 0.0,
        "train_seconds": timing.get("train_seconds"),
        "score_pairs_per_second": timing["score_pairs_per_second"],
        "peak_memory_bytes": run.record["peak_memory"]["resident_bytes"],
        "seed": run.record["seed"],
        **({"std": values["std"], "seeds": run.record["seeds"]} if "std" in values else {}),
    }
