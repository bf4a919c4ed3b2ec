"""Classification metrics as `evaluate` modules that work offline.

Each metric is an `evaluate.Metric` that can be used by itself, loaded by its path, or combined with
`evaluate.combine`. The values are scikit-learn's. `compute_metrics` computes all of them for one
split.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from peft_mrpc.errors import unknown_name
from peft_mrpc.evaluation.reliability import confidence_bins


class LabelMetric(evaluate.Metric):  # type: ignore[misc]
    """A metric of predicted labels: `predictions` and `references` are label indices, [N]."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="",
            features=datasets.Features(features),
        )


class ProbabilityMetric(evaluate.Metric):  # type: ignore[misc]
    """A metric of probabilities: `prediction_scores` is [N, C], `references` label indices, [N]."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "prediction_scores": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="",
            features=datasets.Features(features),
        )


def _names(label_names: Sequence[str] | None, *labels: Any) -> list[str]:
    """Names of the labels, by default their indices."""
    if label_names is not None:
        return list(label_names)
    return [str(index) for index in range(1 + max(int(np.max(array)) for array in labels))]


class Accuracy(LabelMetric):
    """Share of examples with a correct predicted label."""

    def _compute(self, predictions: Any, references: Any, **_: Any) -> dict[str, Any]:
        return {"accuracy": float(sk.accuracy_score(references, predictions))}


class F1PerClass(LabelMetric):
    """F1 of each class, by label name, and their unweighted mean (`macro_f1`)."""

    def _compute(
        self, predictions: Any, references: Any, label_names: Sequence[str] | None = None, **_: Any
    ) -> dict[str, Any]:
        names = _names(label_names, predictions, references)
        labels = list(range(len(names)))
        scores = sk.f1_score(references, predictions, labels=labels, average=None, zero_division=0)
        return {
            "f1": dict(zip(names, map(float, scores), strict=True)),
            "macro_f1": float(np.mean(scores)),
        }


class MatthewsCorrelation(LabelMetric):
    """Matthews correlation coefficient: 0 for constant predictions, whatever the class balance."""

    def _compute(self, predictions: Any, references: Any, **_: Any) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="A single label was found")
            return {"mcc": float(sk.matthews_corrcoef(references, predictions))}


class ConfusionMatrix(LabelMetric):
    """Counts, [C, C]: row = true label, column = predicted label."""

    def _compute(
        self, predictions: Any, references: Any, label_names: Sequence[str] | None = None, **_: Any
    ) -> dict[str, Any]:
        labels = list(range(len(_names(label_names, predictions, references))))
        counts = sk.confusion_matrix(references, predictions, labels=labels)
        return {"confusion_matrix": counts.tolist()}


class ClassificationReport(LabelMetric):
    """Precision, recall, F1 and support of each class and their averages."""

    def _compute(
        self, predictions: Any, references: Any, label_names: Sequence[str] | None = None, **_: Any
    ) -> dict[str, Any]:
        names = _names(label_names, predictions, references)
        report = sk.classification_report(
            references,
            predictions,
            labels=list(range(len(names))),
            target_names=names,
            output_dict=True,
            zero_division=0,
        )
        return {"classification_report": report}


class RocAuc(ProbabilityMetric):
    """Area under the ROC curve; for more than two classes the one-vs-rest mean.

    None if a class does not occur in the references, because the area is undefined then.
    """

    def _compute(self, prediction_scores: Any, references: Any, **_: Any) -> dict[str, Any]:
        scores, references = np.asarray(prediction_scores), np.asarray(references)
        if len(np.unique(references)) < scores.shape[1]:
            return {"roc_auc": None}
        positive = scores[:, 1] if scores.shape[1] == 2 else scores
        return {"roc_auc": float(sk.roc_auc_score(references, positive, multi_class="ovr"))}


class AveragePrecision(ProbabilityMetric):
    """Average precision of the positive (last) class; for more than two classes the macro mean.

    None if a class does not occur in the references.
    """

    def _compute(self, prediction_scores: Any, references: Any, **_: Any) -> dict[str, Any]:
        scores, references = np.asarray(prediction_scores), np.asarray(references)
        if len(np.unique(references)) < scores.shape[1]:
            return {"average_precision": None}
        if scores.shape[1] == 2:
            return {
                "average_precision": float(sk.average_precision_score(references, scores[:, 1]))
            }
        truth = np.eye(scores.shape[1])[references]
        return {"average_precision": float(sk.average_precision_score(truth, scores))}


class Brier(ProbabilityMetric):
    """Brier score: for two classes the mean of (p - y)^2 of the positive class, in [0, 1].

    For any number of classes it is half the squared distance to the one-hot truth, which equals
    that mean for two.
    """

    def _compute(self, prediction_scores: Any, references: Any, **_: Any) -> dict[str, Any]:
        scores = np.asarray(prediction_scores)
        truth = np.eye(scores.shape[1])[np.asarray(references)]
        return {"brier": float(0.5 * np.mean(np.sum((scores - truth) ** 2, axis=1)))}


class ExpectedCalibrationError(ProbabilityMetric):
    """Calibration error of the predicted label over bins of equal mass (arXiv:1909.10155)."""

    def _compute(self, prediction_scores: Any, references: Any, **_: Any) -> dict[str, Any]:
        bins = confidence_bins(np.asarray(references), np.asarray(prediction_scores))
        gaps = sum(each.count * abs(each.confidence - each.accuracy) for each in bins)
        return {"ece": float(gaps / sum(each.count for each in bins))}


MODULES: dict[str, type[evaluate.Metric]] = {
    "accuracy": Accuracy,
    "f1_per_class": F1PerClass,
    "roc_auc": RocAuc,
    "average_precision": AveragePrecision,
    "matthews_correlation": MatthewsCorrelation,
    "brier": Brier,
    "expected_calibration_error": ExpectedCalibrationError,
    "confusion_matrix": ConfusionMatrix,
    "classification_report": ClassificationReport,
}


def module_path(name: str) -> str:
    """Path of a metric for `evaluate.load`, as in `evaluate.load(module_path("brier"))`.

    Raises:
        UserError: If the name is unknown.
    """
    if name not in MODULES:
        raise unknown_name("metric", name, MODULES)
    return str(Path(__file__).parents[1] / "evaluate_modules" / f"{name}.py")


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
    results: dict[str, Any] = {"num_examples": len(references)}
    counts = np.bincount(references, minlength=len(label_names))
    results["majority_accuracy"] = float(counts.max() / counts.sum())
    for metric_type in MODULES.values():
        inputs = (
            {"predictions": predictions}
            if issubclass(metric_type, LabelMetric)
            else {"prediction_scores": probabilities}
        )
        # In memory: one process holds all examples, so no file is shared.
        metric = metric_type(keep_in_memory=True)
        results |= metric.compute(references=references, label_names=list(label_names), **inputs)
    return results
