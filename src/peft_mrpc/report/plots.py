"""The pictures of a comparison, and what is said of each to those who do not see it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from peft_mrpc.evaluation.plot_style import run_styles
from peft_mrpc.evaluation.plots import (
    plot_confusion_matrices,
    plot_precision_recall,
    plot_reliability,
    plot_roc_curves,
)
from peft_mrpc.formatting import shorten
from peft_mrpc.report.comparison import Comparison
from peft_mrpc.report.cost_plots import RunPoint, plot_costs
from peft_mrpc.report.run_plots import (
    Whisker,
    plot_accuracies,
    plot_disagreements,
    plot_learning_curves,
    plot_seed_spread,
)
from peft_mrpc.runs.run import Predictions, Run

MAX_NAME = 34
CAPTIONS = {
    "accuracies": "Accuracy of each Run with its 95% interval; ticks below a dot are its seeds",
    "confusion_matrices": "Confusion matrices: counts, and shares of each true label",
    "roc_curves": "ROC curves, with the area under each and a 95% band",
    "precision_recall": "Precision against recall, with average precision",
    "reliability": "How often answers are right against how sure they are, in ten bins",
    "disagreements": "Pairs that one Run (row) has right and another (column) wrong",
    "costs": "Accuracy against trained parameters, training time and time of answers",
    "seed_spread": "Accuracy of each seed, with mean and one standard deviation",
    "learning_curves": "Training loss by epoch of the first seed; dotted: the held-out part",
}


def build_pictures(comparison: Comparison, evidence: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw what there is something to draw of, by file name, in the order of a report."""
    drawn = {
        "accuracies": _accuracies(comparison, evidence),
        "confusion_matrices": plot_confusion_matrices(
            {
                name: confusion(rows, len(comparison.label_names))
                for name, rows in zip(_names(comparison), comparison.predictions, strict=True)
            },
            comparison.label_names,
        ),
        **_curves(comparison),
        "disagreements": _disagreements(comparison),
        "costs": plot_costs(_points(comparison), comparison.where),
        "seed_spread": _seed_spread(comparison),
        "learning_curves": _learning_curves(comparison),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def confusion(rows: Predictions, num_labels: int) -> Any:
    """Counts, [C, C]: row = true label, column = predicted label."""
    counts = np.zeros((num_labels, num_labels), dtype=np.int64)
    np.add.at(counts, (rows.references, rows.predictions), 1)
    return counts


def _names(comparison: Comparison) -> list[str]:
    """The Runs' names as far as a legend has room for them."""
    short = [shorten(name, MAX_NAME) for name in comparison.names]
    return short if len(set(short)) == len(short) else comparison.names


def _styles(comparison: Comparison) -> list[tuple[str, str]]:
    return run_styles([run.record["method"] for run in comparison.runs])


def _accuracies(comparison: Comparison, evidence: Mapping[str, Any]) -> Figure:
    whiskers = []
    for name, run, (color, _), interval in zip(
        *(_names(comparison), comparison.runs, _styles(comparison), evidence["intervals"]),
        strict=True,
    ):
        value = run.metrics[comparison.split]["accuracy"]
        low, high = interval["accuracy"]
        whiskers.append(Whisker(name, color, value, low, high, _seed_accuracies(comparison, run)))
    majority = comparison.runs[0].metrics[comparison.split]["majority_accuracy"]
    return plot_accuracies(whiskers, majority, comparison.where)


def _curves(comparison: Comparison) -> dict[str, Figure]:
    answers = {
        name: (rows.references, rows.probabilities)
        for name, rows in zip(_names(comparison), comparison.predictions, strict=True)
    }
    styles, where = _styles(comparison), comparison.where
    errors = [run.model_run.metrics[comparison.split]["ece"] for run in comparison.runs]
    return {
        "roc_curves": plot_roc_curves(answers, styles, where),
        "precision_recall": plot_precision_recall(answers, styles, where),
        "reliability": plot_reliability(answers, styles, errors, where),
    }


def _disagreements(comparison: Comparison) -> Figure | None:
    if len(comparison.runs) < 2:
        return None
    right = np.array([one.predictions == one.references for one in comparison.predictions])
    alone = right.astype(np.int64) @ (~right).T.astype(np.int64)
    return plot_disagreements(_names(comparison), alone, comparison.where)


def _points(comparison: Comparison) -> list[RunPoint]:
    return [
        RunPoint(
            name=name,
            method=row["method"],
            accuracy=row["accuracy"],
            deviation=row["std"]["accuracy"] if "std" in row else None,
            trained=row["trained_parameters"],
            train_seconds=row["train_seconds"],
            score_seconds=1000 / row["score_pairs_per_second"],
            color=color,
        )
        for name, (color, _), row in zip(
            _names(comparison), _styles(comparison), comparison.rows()[1:], strict=True
        )
    ]


def _seed_accuracies(comparison: Comparison, run: Run) -> tuple[float, ...]:
    seeds = run.metrics[comparison.split].get("seeds", {})
    return tuple(one["accuracy"] for one in seeds.values())


def _seed_spread(comparison: Comparison) -> Figure | None:
    values = {
        name: _seed_accuracies(comparison, run) or (run.metrics[comparison.split]["accuracy"],)
        for name, run in zip(_names(comparison), comparison.runs, strict=True)
    }
    if all(len(one) == 1 for one in values.values()):
        return None
    majority = comparison.runs[0].metrics[comparison.split]["majority_accuracy"]
    return plot_seed_spread(values, _styles(comparison), majority, comparison.where)


def _learning_curves(comparison: Comparison) -> Figure | None:
    curves, styles = {}, []
    for name, run, style in zip(
        _names(comparison), comparison.runs, _styles(comparison), strict=True
    ):
        log = run.model_run.record.get("log_history", [])
        series = {
            kind: [(row["epoch"], row[key]) for row in log if key in row]
            for kind, key in (("train", "loss"), ("held out", "eval_loss"))
        }
        if series["train"]:
            curves[name] = {kind: points for kind, points in series.items() if points}
            styles.append(style)
    return plot_learning_curves(curves, styles, "training") if curves else None
