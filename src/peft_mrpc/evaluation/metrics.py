"""Classification metrics: the registry, and their computation for one split.

The values are scikit-learn's. `evaluate_module` offers the same metrics to the `evaluate` library.
Shapes: N examples, C classes.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

NUM_ECE_BINS = 10


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
# F1 of one label, as in `f1.equivalent`.
F1_OF_LABEL = "f1."


def f1_of_labels(
    references: NDArray[np.int64], predictions: NDArray[np.int64], label_names: Sequence[str]
) -> dict[str, float]:
    """F1 of each label, by name; 0 for a label without examples and predictions."""
    scores = sk.f1_score(
        references, predictions, labels=range(len(label_names)), average=None, zero_division=0
    )
    return dict(zip(label_names, map(float, scores), strict=True))


def macro_f1(
    references: NDArray[np.int64], predictions: NDArray[np.int64], label_names: Sequence[str]
) -> float:
    """Unweighted mean of the F1 values of all labels."""
    return float(np.mean(list(f1_of_labels(references, predictions, label_names).values())))


def matthews_correlation(references: NDArray[np.int64], predictions: NDArray[np.int64]) -> float:
    """Matthews correlation coefficient: 0 for constant predictions, whatever the class balance."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label was found")
        return float(sk.matthews_corrcoef(references, predictions))


def roc_auc(references: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float | None:
    """Area under the ROC curve; for more than two classes the one-vs-rest mean.

    None if a class does not occur in the references, because the area is undefined then.
    """
    if len(np.unique(references)) < probabilities.shape[1]:
        return None
    scores = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
    return float(sk.roc_auc_score(references, scores, multi_class="ovr"))


def average_precision(
    references: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> float | None:
    """Average precision of the positive (last) class; for more than two classes the macro mean.

    None if a class does not occur in the references.
    """
    if len(np.unique(references)) < probabilities.shape[1]:
        return None
    scores = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
    return float(sk.average_precision_score(references, scores))


def brier_score(references: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Brier score: for two classes the mean of (p - y)^2 of the positive class, in [0, 1].

    For any number of classes it is half the squared distance to the one-hot truth, which equals
    that mean for two.
    """
    truth = np.eye(probabilities.shape[1])[references]
    return float(0.5 * np.mean(np.sum((probabilities - truth) ** 2, axis=1)))


@dataclass(frozen=True)
class ConfidenceBin:
    """Predictions of similar confidence: mean confidence, accuracy and number of examples."""

    confidence: float
    accuracy: float
    count: int


def confidence_bins(
    references: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> list[ConfidenceBin]:
    """Group predictions by the probability of the predicted label into bins of equal mass.

    Examples of equal confidence share a bin, whatever their order: the bin of the first of them.
    """
    confidence = probabilities.max(axis=1)
    is_correct = probabilities.argmax(axis=1) == references
    parts = np.array_split(confidence, min(NUM_ECE_BINS, len(confidence)))
    bin_of_rank = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    bin_of_row = bin_of_rank[np.searchsorted(np.sort(confidence), confidence, side="left")]
    return [
        ConfidenceBin(
            float(confidence[inside].mean()), float(is_correct[inside].mean()), int(inside.sum())
        )
        for inside in (bin_of_row == number for number in np.unique(bin_of_row))
    ]


def expected_calibration_error(
    references: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> float:
    """Calibration error of the predicted label over bins of equal mass (arXiv:1909.10155)."""
    bins = confidence_bins(references, probabilities)
    return sum(each.count * abs(each.confidence - each.accuracy) for each in bins) / len(references)


LabelMetric = Callable[[NDArray[np.int64], NDArray[np.int64], Sequence[str]], Any]
ProbabilityMetric = Callable[[NDArray[np.int64], NDArray[np.float64]], Any]
# Metrics of references, predictions and label names.
LABEL_METRICS: Mapping[str, LabelMetric] = {
    "accuracy": lambda truth, predicted, _: float(sk.accuracy_score(truth, predicted)),
    "f1": f1_of_labels,
    "macro_f1": macro_f1,
    "mcc": lambda truth, predicted, _: matthews_correlation(truth, predicted),
    "confusion_matrix": lambda truth, predicted, names: sk.confusion_matrix(
        truth, predicted, labels=range(len(names))
    ).tolist(),
    "classification_report": lambda truth, predicted, names: sk.classification_report(
        truth,
        predicted,
        labels=range(len(names)),
        target_names=names,
        output_dict=True,
        zero_division=0,
    ),
}
# Metrics of references and probabilities.
PROBABILITY_METRICS: Mapping[str, ProbabilityMetric] = {
    "roc_auc": roc_auc,
    "average_precision": average_precision,
    "brier": brier_score,
    "ece": expected_calibration_error,
}


def compute_metrics(
    references: NDArray[np.int64],
    predictions: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    label_names: Sequence[str],
) -> dict[str, Any]:
    """Compute every metric of one split.

    Args:
        references: True label indices, [N].
        predictions: Predicted label indices, [N].
        probabilities: [N, C].
        label_names: Names of the C labels.
    Returns:
        The entry of one split in `metrics.json`. `majority_accuracy` is the accuracy of always
        predicting the most frequent label of these examples.
    """
    counts = np.bincount(references, minlength=len(label_names))
    return {
        "num_examples": len(references),
        "majority_accuracy": float(counts.max() / counts.sum()),
        **{name: f(references, predictions, label_names) for name, f in LABEL_METRICS.items()},
        **{name: f(references, probabilities) for name, f in PROBABILITY_METRICS.items()},
    }


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
