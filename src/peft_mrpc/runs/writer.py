"""What every strategy ends in: the files of a Run, and the few lines that a user reads first."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.data.examples import UNKNOWN_LABEL, DataSplits, label_counts
from peft_mrpc.environment import describe_environment, peak_memory
from peft_mrpc.evaluation.metrics import compute_metrics
from peft_mrpc.evaluation.plot_style import on_page, run_styles, save_picture
from peft_mrpc.evaluation.plots import plot_confusion_matrix, plot_roc_curves
from peft_mrpc.evaluation.thresholds import predict_labels
from peft_mrpc.runs.model_card import build_card, figure_texts
from peft_mrpc.runs.run import (
    CARD_FILE,
    FORMAT_VERSION,
    METRICS_FILE,
    RUN_FILE,
    Run,
    load_run,
    write_predictions,
)
from peft_mrpc.serialization import write_json


def describe_data(data: DataSplits, splits: Sequence[str]) -> dict[str, Any]:
    """Name, label names, and of each split used its size, label counts and fingerprint.

    Of a split to report, also how many of its pairs are training pairs, if any.
    """
    return {
        "name": data.name,
        "label_names": list(data.label_names),
        "splits": {
            split: {
                "num_examples": len(data.splits[split]),
                "labels": label_counts(data.splits[split], data.label_names),
                "fingerprint": data.fingerprint(split),
                **({"num_leaked": count} if (count := data.num_leaked.get(split)) else {}),
            }
            for split in splits
        },
    }


def data_line(data: DataSplits, splits: Sequence[str]) -> str:
    """What a dry run says of the data, of which these splits would be reported."""
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in data.splits.items())
    labels = ", ".join(data.label_names)
    return f"data: {data.name} ({sizes}; labels {labels}; reports {', '.join(splits)})"


def write_run(
    folder: Path,
    record: Mapping[str, Any],
    data: DataSplits,
    probabilities: Mapping[str, NDArray[np.float64]],
    threshold: float = 0.5,
) -> Run:
    """Write all files of a Run but its artifact, which is there already.

    Args:
        folder: The staging directory.
        record: What is particular to the strategy, for `run.json`.
        data: The pairs that were scored.
        probabilities: For each split scored [N, C], in dataset order.
        threshold: Probability above which the last of two labels is predicted.
    """
    common = {
        "format_version": FORMAT_VERSION,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "peak_memory": peak_memory(),
    }
    write_json(folder / RUN_FILE, {**common, **record, **describe_environment()})
    metrics = {}
    for split, rows in probabilities.items():
        pairs = data.splits[split]
        predicted = predict_labels(rows, threshold)
        path = folder / "predictions" / f"{split}.jsonl"
        write_predictions(path, pairs, predicted, rows, data.label_names)
        known = [number for number, pair in enumerate(pairs) if pair.label != UNKNOWN_LABEL]
        if known:
            references = np.array([pairs[number].label for number in known])
            metrics[split] = compute_metrics(
                references, predicted[known], rows[known], data.label_names
            )
    write_json(folder / METRICS_FILE, metrics)
    run = load_run(folder)
    _write_plots(run)
    (folder / CARD_FILE).write_text(build_card(run), encoding="utf-8")
    return run


def _write_plots(run: Run) -> None:
    """Draw the last scored split: test where it is labelled, else validation."""
    if not run.metrics:
        return
    split = list(run.metrics)[-1]
    values, rows = run.metrics[split], run.predictions(split)
    known = rows.references != UNKNOWN_LABEL
    title = f"{run.name}\n{run.record['data']['name']} {split}, {values['num_examples']} pairs"
    folder = run.path / "plots"
    folder.mkdir(exist_ok=True)
    with on_page():
        matrix = plot_confusion_matrix(
            np.array(values["confusion_matrix"]),
            run.label_names,
            f"{title}, accuracy {values['accuracy']:.3f}",
        )
        curve = plot_roc_curves(
            {run.record["method"]: (rows.references[known], rows.probabilities[known])},
            run_styles([run.record["method"]]),
            title,
        )
        save_picture(matrix, folder / "confusion_matrix.png")
        save_picture(curve, folder / "roc_curve.png")


def summary(run: Run) -> str:
    """What the terminal shows of a finished Run: a line for each split, and where it lies."""
    lines = []
    for split in run.record["data"]["splits"]:
        if not (run.model_run.path / "predictions" / f"{split}.jsonl").is_file():
            continue
        if split in run.metrics:
            lines += [_summary_line(run, split), *_one_answer_lines(run, split)]
        else:
            lines.append(
                f"{split}: has no labels, so there are no metrics; its predictions are written"
            )
    if run.model_run is not run:
        lines.append(f"Model and predictions are those of the first seed, {run.record['seed']}.")
    return "\n".join([*lines, f"Run: {run.path}"])


def _summary_line(run: Run, split: str) -> str:
    """What was reached on a split, beside the majority baseline."""
    values = run.metrics[split]
    accuracy, *f1, area = figure_texts(values, run.label_names)
    beside = f"majority {values['majority_accuracy']:.3f}"
    size = f"{values['num_examples']} pairs"
    if "std" in values:
        worst = values["worst_seed"]
        lowest = values["seeds"][str(worst)]["accuracy"]
        beside = f"worst {lowest:.3f} with seed {worst}, {beside}"
        size += f", mean ± sd of {values['num_seeds']} seeds"
    return (
        f"{split}: accuracy {accuracy} ({beside}), "
        f"F1 {' / '.join(run.label_names)} {' / '.join(f1)}, ROC-AUC {area}, {size}"
    )


def _one_answer(values: Mapping[str, Any], label_names: Sequence[str]) -> str | None:
    """The label that pairs of several labels all got, if they did: an accuracy can look like more.

    Args:
        values: The metrics of one split.
        label_names: C names.
    """
    counts = np.array(values["confusion_matrix"])  # of labelled pairs, [C, C]
    predicted = np.flatnonzero(counts.sum(axis=0))
    has_several = np.count_nonzero(counts.sum(axis=1)) > 1
    return label_names[predicted[0]] if has_several and len(predicted) == 1 else None


def _one_answer_lines(run: Run, split: str) -> list[str]:
    """Where a split's pairs all got one answer, that they did, and what to do about it."""
    values, threshold = run.metrics[split], run.record.get("threshold", 0.5)
    if "std" in values or (label := _one_answer(values, run.label_names)) is None:
        return []  # the matrix of several seeds is the first one's
    if run.record["strategy"] == "hard_prompt":
        is_calibrated = run.record["config"]["calibration"] != "none"
        advice = "another --template" if is_calibrated else "--calibration batch"
    elif threshold != 0.5:
        advice = f"another --threshold than {threshold:g}, or auto"
    else:
        threshold_too = "--threshold auto, " if len(run.label_names) == 2 else ""
        advice = f"{threshold_too}more epochs, or another --learning_rate"
    return [f"{split}: every labelled pair is predicted {label!r}; try {advice}"]


def seed_line(run: Run) -> str:
    """What one seed reached, on one line with all splits."""
    seconds = run.record["timing"]["train_seconds"]
    said = []
    for split, values in run.metrics.items():
        accuracy, *f1, area = figure_texts(values, run.label_names)
        label = _one_answer(values, run.label_names)
        alike = f" (every pair is predicted {label!r})" if label is not None else ""
        said.append(f"{split} accuracy {accuracy}{alike}, F1 {' / '.join(f1)}, ROC-AUC {area}")
    return "; ".join([*said, f"trained in {seconds:,.0f} s"])
