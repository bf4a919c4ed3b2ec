"""The registry of metrics: names, labels and properties. Imports neither torch nor evaluate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MetricInfo:
    """One metric.

    Attributes:
        name: Key in `metrics.json`.
        label: Text for tables and plots.
        higher_is_better: Whether a higher value is better.
        needs_probabilities: Whether it is computed from probabilities rather than predicted labels.
        needs_all_labels: Whether it is undefined (None) when a label has no examples.
        per_label: Whether it has one value for each label.
        is_reported: Whether `metrics.json` holds it. The loss exists during training only.
    """

    name: str
    label: str
    higher_is_better: bool = True
    needs_probabilities: bool = False
    needs_all_labels: bool = False
    per_label: bool = False
    is_reported: bool = True


METRICS: Mapping[str, MetricInfo] = {
    metric.name: metric
    for metric in (
        MetricInfo("accuracy", "accuracy"),
        MetricInfo("f1", "F1", per_label=True),
        MetricInfo("macro_f1", "macro F1"),
        MetricInfo("mcc", "MCC"),
        MetricInfo("roc_auc", "ROC-AUC", needs_probabilities=True, needs_all_labels=True),
        MetricInfo(
            "average_precision",
            "average precision",
            needs_probabilities=True,
            needs_all_labels=True,
        ),
        MetricInfo("brier", "Brier score", higher_is_better=False, needs_probabilities=True),
        MetricInfo("ece", "calibration error", higher_is_better=False, needs_probabilities=True),
        MetricInfo(
            "loss", "loss", higher_is_better=False, needs_probabilities=True, is_reported=False
        ),
    )
}
# Metrics of a Run, and those of them with a single value.
REPORTED_METRICS = tuple(metric for metric in METRICS.values() if metric.is_reported)
SCALAR_METRICS = tuple(metric for metric in REPORTED_METRICS if not metric.per_label)
# Names accepted by `metric_for_best_model`, with the registered metric that each stands for.
SELECTION_METRICS = {"loss": "loss", "accuracy": "accuracy", "f1": "macro_f1", "roc_auc": "roc_auc"}
# Metrics that a decision threshold can be tuned for; `f1` is macro F1.
THRESHOLD_METRICS = ("accuracy", "f1")
# Entries of `metrics.json` that describe the examples and not the predictions.
EXAMPLE_STATISTICS = ("num_examples", "majority_accuracy")
# F1 of one label, as in `f1.equivalent`.
F1_OF_LABEL = "f1."


def flatten_metrics(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Flatten the entry of one split in `metrics.json`.

    Args:
        values: The entry.
    Returns:
        Values by metric name, those with one value per label as `f1.LABEL`.
    """
    flat: dict[str, float | None] = {}
    for metric in REPORTED_METRICS:
        if metric.per_label:
            flat |= {f"{metric.name}.{label}": v for label, v in values[metric.name].items()}
        else:
            flat[metric.name] = values[metric.name]
    return flat
