"""A Run as text: the lines that commands print, and metrics for tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from peft_mrpc.data.examples import DataSplits
from peft_mrpc.formatting import format_mean_std
from peft_mrpc.runs.run import Run


def format_metrics(values: Mapping[str, Any], label_names: Sequence[str]) -> list[str]:
    """Accuracy, F1 of each label and ROC-AUC, with standard deviations of several seeds."""
    std = values.get("std")
    return [
        format_mean_std(values["accuracy"], std and std["accuracy"]),
        *(format_mean_std(values["f1"][name], std and std["f1"][name]) for name in label_names),
        format_mean_std(values["roc_auc"], std and std["roc_auc"]),
    ]


def data_line(data: DataSplits, splits: Sequence[str]) -> str:
    """One line for a dry run: the data set, and the splits to report."""
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in data.splits.items())
    labels = ", ".join(data.label_names)
    return f"data: {data.name} ({sizes}; labels {labels}; reports {', '.join(splits)})"


def summary(run: Run) -> str:
    """The printed summary of a finished Run: a line for each split, and its path."""
    lines = []
    for split in run.record["data"]["splits"]:
        if not run.predictions_path(split).is_file():
            continue
        if split in run.metrics:
            lines += [_split_line(run, split), *_constant_prediction_lines(run, split)]
        else:
            lines.append(f"{split}: no labels, so no metrics; the predictions are written")
    if run.members:
        lines.append(f"Model and predictions: those of the first seed, {run.record['seed']}.")
    return "\n".join([*lines, f"Run: {run.path}"])


def seed_line(run: Run) -> str:
    """One line for the Run of one seed, with all splits."""
    parts = []
    for split, values in run.metrics.items():
        accuracy, *f1, roc_auc = format_metrics(values, run.label_names)
        label = constant_prediction(values, run.label_names)
        note = f" (every example is predicted {label!r})" if label is not None else ""
        parts.append(f"{split} accuracy {accuracy}{note}, F1 {' / '.join(f1)}, ROC-AUC {roc_auc}")
    return "; ".join([*parts, f"trained in {run.record['timing']['train_seconds']:,.0f} s"])


def constant_prediction(values: Mapping[str, Any], label_names: Sequence[str]) -> str | None:
    """The label that is predicted for every example, although the examples have several labels.

    Args:
        values: The metrics of one split.
        label_names: C names.
    """
    counts = np.array(values["confusion_matrix"])  # of labelled examples, [C, C]
    predicted = np.flatnonzero(counts.sum(axis=0))
    has_several_labels = np.count_nonzero(counts.sum(axis=1)) > 1
    return label_names[predicted[0]] if has_several_labels and len(predicted) == 1 else None


def _split_line(run: Run, split: str) -> str:
    """Metrics of one split, beside the majority baseline."""
    values = run.metrics[split]
    accuracy, *f1, roc_auc = format_metrics(values, run.label_names)
    baselines = f"majority {values['majority_accuracy']:.3f}"
    size = f"{values['num_examples']} examples"
    if "std" in values:
        worst = values["worst_seed"]
        lowest = values["seeds"][str(worst)]["accuracy"]
        baselines = f"worst {lowest:.3f} with seed {worst}, {baselines}"
        size += f", mean ± sd of {values['num_seeds']} seeds"
    return (
        f"{split}: accuracy {accuracy} ({baselines}), "
        f"F1 {' / '.join(run.label_names)} {' / '.join(f1)}, ROC-AUC {roc_auc}, {size}"
    )


def _constant_prediction_lines(run: Run, split: str) -> list[str]:
    """A warning, with advice, if every example of a split gets the same label."""
    values, threshold = run.metrics[split], run.record.get("threshold", 0.5)
    # The confusion matrix of a multi-seed Run is that of its first seed.
    if "std" in values or (label := constant_prediction(values, run.label_names)) is None:
        return []
    if run.record["strategy"] == "hard_prompt":
        is_calibrated = run.record["config"]["calibration"] != "none"
        advice = "another template" if is_calibrated else "calibration batch"
    elif threshold != 0.5:
        advice = f"another threshold than {threshold:g}, or auto"
    else:
        tune = "threshold auto, " if len(run.label_names) == 2 else ""
        advice = f"{tune}more epochs, or another learning_rate"
    return [f"{split}: every labelled example is predicted {label!r}; try {advice}"]
