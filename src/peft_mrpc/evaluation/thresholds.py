"""Decision thresholds: from probabilities to predicted labels.

Shapes: N examples, C classes, V distinct scores.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Narrower gaps between scores may not survive the rounding of another machine.
NARROWEST_GAP = 1e-9


def predict_labels(probabilities: NDArray[np.float64], threshold: float = 0.5) -> NDArray[np.int64]:
    """Predicted label indices, [N], of probabilities, [N, C].

    Of two classes the positive (last) one is predicted where its probability is above the
    threshold. Of more, the most probable one, which for two is the threshold 0.5.
    """
    if probabilities.shape[1] != 2:
        return np.asarray(probabilities.argmax(axis=1), np.int64)
    return np.asarray(probabilities[:, 1] > threshold, np.int64)


def label_names_of(
    probabilities: NDArray[np.float64], labels: Sequence[str], threshold: float = 0.5
) -> list[str]:
    """Predicted label names, [N], of probabilities, [N, C], whose columns are in label order."""
    return [labels[index] for index in predict_labels(probabilities, threshold)]


def threshold_faults(threshold: str, num_classes: int | None = None) -> list[str]:
    """Errors of the option `threshold`, by itself or for a number of classes."""
    try:
        value = None if threshold == "auto" else float(threshold)
    except ValueError:
        value = math.nan
    if value is not None and not 0 < value < 1:
        return [f"threshold: got {threshold!r}; expected auto or a number between 0 and 1."]
    if num_classes not in (None, 2) and value != 0.5:
        return [
            f"threshold: got {threshold!r} with {num_classes} labels; a threshold needs exactly "
            "two. Remove the option: the most probable label is predicted."
        ]
    return []


def tune_threshold(
    references: NDArray[np.int64], scores: NDArray[np.float64], metric: str = "accuracy"
) -> float:
    """Find the threshold with the best value of a metric.

    Every threshold between two neighbouring scores gives the same predictions. Of all such gaps
    with the best value this chooses the widest, of equally wide ones the nearest to 0.5, and
    returns its middle, which is far from every score.

    Args:
        references: True labels, 0 or 1, [N].
        scores: Probabilities of label 1, [N].
        metric: `accuracy`, or `f1` for the mean of both classes' F1.
    """
    values, inverse = np.unique(scores, return_inverse=True)  # [V], [N]
    counts = np.zeros((2, len(values) + 1))
    np.add.at(counts, (references, inverse + 1), 1)
    # For each gap, the examples of each label at or below its lower end, which it calls negative.
    true_negative, false_negative = counts.cumsum(axis=1)  # [V + 1] each
    false_positive = (references == 0).sum() - true_negative
    true_positive = (references == 1).sum() - false_negative
    errors = false_negative + false_positive
    if metric == "f1":
        value = (_f1(true_negative, errors) + _f1(true_positive, errors)) / 2
    else:
        value = -errors
    lower, upper = np.append(0.0, values), np.append(values, 1.0)
    width = np.round(upper - lower, 12)
    value[width < NARROWEST_GAP] = -np.inf
    middle = (lower + upper) / 2
    best = np.flatnonzero(value >= value.max() - 1e-12)
    gap = min(best, key=lambda gap: (-width[gap], abs(middle[gap] - 0.5)))
    return float(middle[gap])


def _f1(correct: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 of one of two classes: an error is a miss of one and a false alarm of the other."""
    total = 2 * correct + errors
    return np.divide(2 * correct, total, out=np.zeros_like(total), where=total > 0)
