"""From probabilities to predictions: the one place where a label is decided.

Shapes: N pairs, C classes, V distinct scores.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# A threshold in a gap narrower than this would not survive another machine's rounding.
NARROWEST_GAP = 1e-9
# What a threshold can be best for.
THRESHOLD_METRICS = ("accuracy", "f1")


def predict_labels(probabilities: NDArray[np.float64], threshold: float = 0.5) -> NDArray[np.int64]:
    """Predicted label indices, [N], of probabilities, [N, C].

    Of two classes the positive (last) one where its probability is above the threshold; of more
    the most probable, which for two is the threshold 0.5.
    """
    if probabilities.shape[1] != 2:
        return np.asarray(probabilities.argmax(axis=1), np.int64)
    return np.asarray(probabilities[:, 1] > threshold, np.int64)


def label_names_of(
    probabilities: NDArray[np.float64], labels: Sequence[str], threshold: float = 0.5
) -> list[str]:
    """Predicted label names, [N], of probabilities, [N, C], whose columns are in label order."""
    return [labels[index] for index in predict_labels(probabilities, threshold)]


def threshold_faults(wanted: str, num_classes: int | None = None) -> list[str]:
    """What is wrong with `--threshold`, alone or for so many classes."""
    try:
        value = None if wanted == "auto" else float(wanted)
    except ValueError:
        value = math.nan
    if value is not None and not 0 < value < 1:
        return [f"--threshold: got {wanted!r}; expected auto or a number between 0 and 1."]
    if num_classes not in (None, 2) and value != 0.5:
        return [
            f"--threshold: got {wanted}, but there are {num_classes} labels, of which the most "
            "probable is predicted; expected two. Drop it."
        ]
    return []


def tune_threshold(
    references: NDArray[np.int64], scores: NDArray[np.float64], metric: str = "accuracy"
) -> float:
    """The threshold that is best on some pairs.

    Between two neighbouring scores every threshold predicts the same. Of all such gaps that reach
    the best value the widest is taken, of equally wide ones that nearest 0.5, and of it the middle:
    far from every score that it was chosen on.

    Args:
        references: True labels, 0 or 1, [N].
        scores: Probabilities of label 1, [N].
        metric: One of THRESHOLD_METRICS; `f1` is the mean of both classes' F1.
    """
    values, inverse = np.unique(scores, return_inverse=True)  # [V], [N]
    counts = np.zeros((2, len(values) + 1))
    np.add.at(counts, (references, inverse + 1), 1)
    # Of each label, the pairs at or below gap g's lower end: those that it calls negative.
    true_negative, false_negative = counts.cumsum(axis=1)  # [V + 1] each
    false_positive = (references == 0).sum() - true_negative
    true_positive = (references == 1).sum() - false_negative
    wrong = false_negative + false_positive
    if metric == "f1":
        reached = (_f1(true_negative, wrong) + _f1(true_positive, wrong)) / 2
    else:
        reached = -wrong
    lower, upper = np.append(0.0, values), np.append(values, 1.0)
    width = np.round(upper - lower, 12)
    reached[width < NARROWEST_GAP] = -np.inf
    middle = (lower + upper) / 2
    best = np.flatnonzero(reached >= reached.max() - 1e-12)
    chosen = min(best, key=lambda gap: (-width[gap], abs(middle[gap] - 0.5)))
    return float(middle[chosen])


def _f1(right: NDArray[np.float64], wrong: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 of one of two classes: each wrong call is a miss of one and a false alarm of the other."""
    total = 2 * right + wrong
    return np.divide(2 * right, total, out=np.zeros_like(total), where=total > 0)
