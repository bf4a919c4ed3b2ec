"""Paired bootstrap over examples: intervals of metrics and of their differences.

All Runs are resampled together, so that the difficulty of the examples cancels in differences.
Shapes: N examples, R runs, C labels, D resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

NUM_RESAMPLES = 10_000
# Resamples computed at a time: their weights fit in a cache; 10,000 of 1,725 examples are 138 MB.
BLOCK_SIZE = 1_000


class Interval(NamedTuple):
    """A 95% interval, unless the function that returns it states another level."""

    low: float
    high: float


def bootstrap(
    references: Labels,
    predictions: Sequence[Labels],
    probabilities: Sequence[Array],
    num_labels: int,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Array]:
    """Draw examples with replacement, the same for every run, and compute the metrics.

    Args:
        references: True labels, [N].
        predictions: Predicted labels of each run, R of [N].
        probabilities: Probabilities of each run, R of [N, C].
        num_labels: Number of labels, C.
        num_resamples: Number of resamples, D.
        seed: Seed of the draws.
    Returns:
        Values of each resample, [R, D], of `accuracy`, `f1_0`, `f1_1`, ..., `macro_f1`, `mcc`,
        `roc_auc`, `average_precision` and `brier`. The areas are NaN in a resample that lacks a
        label. The calibration error is not among them: each resample adds the noise of its bins a
        second time, so its percentiles are biased (arXiv:1909.10155).
    """
    count = len(references)
    rng = np.random.default_rng(seed)
    cells = [np.eye(num_labels * num_labels)[references * num_labels + p] for p in predictions]
    one_hot_cells = np.concatenate(cells, axis=1)  # [N, R C C]
    squared_errors = np.stack([_squared_errors(references, rows) for rows in probabilities])
    rankings = [
        [WeightedRankMetrics.build(*view) for view in _binary_views(references, rows)]
        for rows in probabilities
    ]
    blocks = []
    for start in range(0, num_resamples, BLOCK_SIZE):
        weights = _draw_weights(rng, count, min(BLOCK_SIZE, num_resamples - start))
        confusion = (one_hot_cells.T @ weights).T
        values = _label_metrics(confusion.reshape(-1, len(predictions), num_labels, num_labels))
        areas = [np.mean([view.areas(weights) for view in run], axis=0) for run in rankings]
        values["roc_auc"], values["average_precision"] = np.stack(areas, axis=1)
        values["brier"] = squared_errors @ weights / count
        blocks.append(values)
    return {name: np.concatenate([block[name] for block in blocks], axis=1) for name in blocks[0]}


def _draw_weights(rng: np.random.Generator, count: int, size: int) -> Array:
    """How often each resample draws each example, [N, D]."""
    rows = rng.integers(count, size=(size, count))
    rows += np.arange(size)[:, None] * count
    times = np.bincount(rows.ravel(), minlength=size * count).reshape(size, count)
    return np.ascontiguousarray(times.T, dtype=np.float64)


def _squared_errors(references: Labels, probabilities: Array) -> Array:
    """Contribution of each example to the Brier score, [N]."""
    truth = np.eye(probabilities.shape[1])[references]
    return np.asarray(0.5 * ((probabilities - truth) ** 2).sum(axis=1))


def _binary_views(
    references: Labels, probabilities: Array
) -> list[tuple[NDArray[np.bool_], Array]]:
    """Truth and score of the positive label; of more than two labels, of each against the rest."""
    labels = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return [(references == label, probabilities[:, label]) for label in labels]


@dataclass(frozen=True)
class WeightedRankMetrics:
    """ROC-AUC and average precision of weighted examples, for many weightings in one pass.

    Attributes:
        groups: Indices of the positive and of the negative examples of each distinct score, highest
            score first.
    """

    groups: list[tuple[list[int], list[int]]]

    @classmethod
    def build(cls, is_positive: NDArray[np.bool_], scores: Array) -> "WeightedRankMetrics":
        """Sort examples by their scores, [N] each."""
        order = np.argsort(-scores, kind="stable")
        starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
        groups = []
        for rows in np.split(order, starts[1:]):
            positive = is_positive[rows]
            groups.append((rows[positive].tolist(), rows[~positive].tolist()))
        return cls(groups)

    def areas(self, weights: Array) -> Array:
        """ROC-AUC and average precision for each column of weights, [N, D] -> [2, D].

        ROC-AUC is the share of pairs of a positive and a negative example in which the positive one
        has the higher score, ties counting one half (Mann and Whitney, 1947). Average precision is
        the mean precision at each positive example, with ties as in scikit-learn.
        """
        size = weights.shape[1]
        wins, precision_sum, num_positive, scratch = (np.zeros(size) for _ in range(4))
        # Avoids 0 / 0 at the start, and vanishes when a whole number is added.
        num_seen = np.full(size, 1e-300)
        for positives, negatives in self.groups:
            for row in positives:
                num_seen += weights[row]
                num_positive += weights[row]
            for row in negatives:
                num_seen += weights[row]
                wins += np.multiply(weights[row], num_positive, out=scratch)
            if positives and negatives:  # ties were counted as wins: take one half back
                tied = weights[positives].sum(axis=0) * weights[negatives].sum(axis=0)
                wins -= tied / 2
            if positives:
                is_single = len(positives) == 1
                drawn = weights[positives[0]] if is_single else weights[positives].sum(axis=0)
                np.multiply(drawn, num_positive, out=scratch)
                scratch /= num_seen
                precision_sum += scratch
        num_negative = np.rint(num_seen - num_positive)
        num_pairs = num_positive * num_negative
        has_both = num_pairs > 0
        return np.stack(
            [
                np.divide(total, divisor, out=np.full(size, np.nan), where=has_both)
                for total, divisor in ((wins, num_pairs), (precision_sum, num_positive))
            ]
        )


def _label_metrics(confusion: Array) -> dict[str, Array]:
    """Accuracy, F1 and MCC of each resample and run, [D, R, C, C] -> each [R, D]."""
    hits = np.diagonal(confusion, axis1=2, axis2=3)  # [D, R, C]
    total = confusion.sum(axis=(2, 3))
    sizes = confusion.sum(axis=3) + confusion.sum(axis=2)
    f1 = np.divide(2 * hits, sizes, out=np.zeros_like(hits), where=sizes > 0)
    values = {
        "accuracy": (hits.sum(axis=2) / total).T,
        "macro_f1": f1.mean(axis=2).T,
        "mcc": _matthews(confusion).T,
    }
    return values | {f"f1_{label}": f1[:, :, label].T for label in range(f1.shape[2])}


def _matthews(confusion: Array) -> Array:
    """Matthews correlation, [D, R, C, C] -> [D, R]; 0 for constant predictions (Gorodkin, 2004)."""
    count = confusion.sum(axis=(2, 3))
    correct = np.trace(confusion, axis1=2, axis2=3)
    true, predicted = confusion.sum(axis=3), confusion.sum(axis=2)  # [D, R, C]
    covariance = count * correct - (true * predicted).sum(axis=2)
    variance = (count**2 - (true**2).sum(axis=2)) * (count**2 - (predicted**2).sum(axis=2))
    mcc: Array = np.divide(
        covariance,
        np.sqrt(np.maximum(variance, 0)),
        out=np.zeros_like(covariance),
        where=variance > 0,
    )
    return mcc


def percentile_interval(resampled: Array, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval (Efron, 1979)."""
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(resampled, [tail, 100 - tail])
    return Interval(float(low), float(high))
