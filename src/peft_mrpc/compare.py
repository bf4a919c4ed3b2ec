"""Compare Runs on the same rows: one table, pictures, and a report in HTML, Markdown and JSON."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peft_mrpc import config as cfg
from peft_mrpc.bars import find_baseline, missed_bars, parse_bars
from peft_mrpc.errors import Missed, UserError, raise_faults, run_verb
from peft_mrpc.flags import parse_flags
from peft_mrpc.pairs import UNKNOWN_LABEL
from peft_mrpc.plots import DPI, plot_confusion_matrices, plot_roc_curves, run_styles
from peft_mrpc.report import write_report
from peft_mrpc.runs import (
    Predictions,
    Run,
    check_output_dir,
    load_run,
    staged_directory,
)

DESCRIPTION = "Compare Runs on the same rows: peft-mrpc compare RUN... --output_dir DIR"
REPORT_FILE = "report.html"
REPORT_CONTENTS = frozenset({REPORT_FILE, "report.md", "report.json", "plots"})


@dataclass
class CompareConfig:
    """What the comparison is about and where it goes."""

    output_dir: str = cfg.option("comparison", "directory of the report")
    split: str | None = cfg.option(
        None, "split to compare on (default: test where every Run has it labelled, else validation)"
    )
    fail_under: str | None = cfg.option(
        None, "end with exit code 3 where a Run is below: accuracy=0.80,roc_auc=0.85"
    )
    baseline: str | None = cfg.option(
        None, "one of the Runs; end with exit code 3 where another is worse than --no_worse_than"
    )
    no_worse_than: float = cfg.option(
        0.0, "by how much accuracy may lie below the --baseline's (0.01: a point)"
    )
    overwrite: bool = cfg.option(False, "replace the report in --output_dir")


@dataclass(frozen=True)
class Comparison:
    """Runs and their answers on the same rows, labels in one order.

    Attributes:
        names: One for each Run, all different.
        runs: The Runs.
        split: The split compared on.
        label_names: Names of the C labels, in the first Run's order.
        predictions: Each Run's answers.
    """

    names: list[str]
    runs: list[Run]
    split: str
    label_names: list[str]
    predictions: list[Predictions]

    def rows(self) -> list[dict[str, Any]]:
        """The table: the majority baseline first, then a row for each Run, in the order given."""
        first = self.runs[0].metrics[self.split]
        baseline = _majority_row(self.predictions[0].references, self.label_names)
        baseline["accuracy"] = first["majority_accuracy"]
        return [baseline] + [
            _table_row(name, run, run.metrics[self.split])
            for name, run in zip(self.names, self.runs, strict=True)
        ]


def main(argv: Sequence[str]) -> None:
    (config, names), _ = parse_flags(
        "compare",
        DESCRIPTION,
        (CompareConfig,),
        argv,
        positional={"dest": "runs", "nargs": "+", "metavar": "RUN", "help": "directories of Runs"},
    )
    bars = parse_bars(config)
    output_dir = Path(config.output_dir)
    comparison = open_comparison(names.runs, output_dir, config.split, config.overwrite)
    baseline = find_baseline(config, comparison)
    sys.stdout.write(f"{write_comparison(comparison, output_dir)}\n")
    missed = missed_bars(comparison, bars, baseline, config.no_worse_than)
    if missed:
        raise Missed(*missed)


def compare(
    paths: Sequence[str], output_dir: Path, split: str | None = None, overwrite: bool = False
) -> str:
    """Write the report of a comparison.

    Returns:
        The table and the report's path, for the terminal.
    Raises:
        UserError: If the Runs were not scored on the same rows, or a report is there already.
    """
    comparison = open_comparison(paths, output_dir, split, overwrite)
    return write_comparison(comparison, output_dir)


def open_comparison(
    paths: Sequence[str], output_dir: Path, split: str | None, overwrite: bool
) -> Comparison:
    """Load Runs, and make sure that a report may be written."""
    check_output_dir(output_dir, overwrite, REPORT_CONTENTS, "report")
    return load_comparison([load_run(path) for path in paths], split)


def write_comparison(comparison: Comparison, output_dir: Path) -> str:
    """Write the report; the table and its path, for the terminal."""
    figures = build_figures(comparison)
    with staged_directory(output_dir) as staging:
        (staging / "plots").mkdir()
        for name, figure in figures.items():
            figure.savefig(staging / "plots" / f"{name}.png", dpi=DPI)
        table = write_report(staging, comparison, list(figures))
    return f"{table}\n\nReport: {output_dir / REPORT_FILE}"


def load_comparison(runs: Sequence[Run], split: str | None) -> Comparison:
    """Align Runs, or say why they cannot be.

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
    split = split or _common_split(runs)
    faults = [
        f"{run.path}: has no labelled split {split!r}; it has {', '.join(run.metrics) or 'none'}."
        for run in runs
        if split not in run.metrics
    ]
    raise_faults(faults)
    first = runs[0]
    for run in runs[1:]:
        mine, theirs = (r.record["data"]["splits"][split]["fingerprint"] for r in (first, run))
        if mine != theirs:
            faults.append(
                f"{run.path}: was scored on other rows of {split!r} than {first.path} "
                f"({_rows_text(run, split)} against {_rows_text(first, split)}); "
                "expected the same data set and limits."
            )
        elif set(run.label_names) != set(first.label_names):
            faults.append(f"{run.path}: has labels {run.label_names}, {first.path} others.")
    raise_faults(faults)
    predictions = [_align(run.predictions(split), run, first.label_names) for run in runs]
    return Comparison(_unique_names(runs), list(runs), split, first.label_names, predictions)


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
    names = [run.name for run in runs]
    for label in (lambda path: path.name, str):  # the directory's name, or all of its path
        names = [
            f"{run.name} ({label(run.path)})" if names.count(name) > 1 else name
            for name, run in zip(names, runs, strict=True)
        ]
    return names


def _majority_row(references: Any, label_names: Sequence[str]) -> dict[str, Any]:
    counts = np.bincount(references, minlength=len(label_names))
    winner = int(counts.argmax())
    share = counts[winner] / counts.sum()
    # All rows get the winner: its precision is its share, its recall 1; every other F1 is 0.
    f1 = [2 * share / (1 + share) if i == winner else 0.0 for i in range(len(label_names))]
    return {
        "name": f"always “{label_names[winner]}”",
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
        **{key: values[key] for key in ("accuracy", "f1", "macro_f1", "roc_auc", "mcc", "ece")},
        "trained_parameters": trainable["trained"] if trainable else 0,
        "trained_share": trainable["trained"] / trainable["total"] if trainable else 0.0,
        "train_seconds": timing.get("train_seconds"),
        "score_pairs_per_second": timing["score_pairs_per_second"],
        "peak_memory_bytes": run.record["peak_memory"]["resident_bytes"],
        "seed": run.record["seed"],
        **({"std": values["std"], "seeds": run.record["seeds"]} if "std" in values else {}),
    }


def build_figures(comparison: Comparison) -> dict[str, Any]:
    """The pictures of a comparison, by file name."""
    methods = [run.record["method"] for run in comparison.runs]
    where = f"{comparison.runs[0].record['data']['name']} {comparison.split}"
    matrices = {
        name: np.array(_matrix(rows, len(comparison.label_names)))
        for name, rows in zip(comparison.names, comparison.predictions, strict=True)
    }
    curves = {
        name: (rows.references, rows.probabilities)
        for name, rows in zip(comparison.names, comparison.predictions, strict=True)
    }
    size = f"{len(comparison.predictions[0].idx)} pairs"
    return {
        "confusion_matrices": plot_confusion_matrices(matrices, comparison.label_names),
        "roc_curves": plot_roc_curves(curves, run_styles(methods), f"{where}, {size}"),
    }


def _matrix(rows: Predictions, num_labels: int) -> Any:
    counts = np.zeros((num_labels, num_labels), dtype=np.int64)
    np.add.at(counts, (rows.references, rows.predictions), 1)
    return counts


if __name__ == "__main__":
    sys.exit(run_verb(main))
