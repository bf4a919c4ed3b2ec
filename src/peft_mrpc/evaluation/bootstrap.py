"""Rows drawn anew: what figures, their differences and ROC curves would be on other rows.

Answers of several runs to the same rows are drawn together, so that what makes a row hard for all
of them is in no difference. Shapes: N rows, R runs, C labels, D draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.evaluation.reliability import NUM_ECE_BINS, bin_numbers

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

DRAWS = 10_000
# Draws at once: their weights stay in a cache where 10,000 of 1,725 rows would be 138 MB.
BLOCK = 1_000


@dataclass(frozen=True)
class Interval:
    """From where to where a figure is, at 95 %."""

    low: float
    high: float


def bootstrap(
    references: Labels,
    predictions: Sequence[Labels],
    probabilities: Sequence[Array] | None,
    num_labels: int,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Array]:
    """Draw rows with replacement, the same for every run, and measure again.

    Args:
        references: True labels, [N].
        predictions: Each run's labels, R of [N].
        probabilities: Each run's probabilities, R of [N, C]; None for what is said by labels alone.
        num_labels: How many labels there are.
        draws: How often rows are drawn.
        seed: Fixes the draws.
    Returns:
        For `accuracy`, `f1_0`, `f1_1`, ..., `macro_f1`, `mcc`, and of probabilities `roc_auc`,
        `average_precision`, `brier` and `ece`, what each draw gives, [R, D]. The areas are not a
        number in a draw that lacks a label. ECE keeps the bins of all the rows.
    """
    count = len(references)
    draw = np.random.default_rng(seed)
    cells = [np.eye(num_labels * num_labels)[references * num_labels + p] for p in predictions]
    counted = np.concatenate(cells, axis=1)  # [N, R C C]
    losses = [row_losses(references, own) for own in probabilities or ()]
    sweeps = [[Sweep.of(*view) for view in _views(references, own)] for own in probabilities or ()]
    parts = []
    for start in range(0, draws, BLOCK):
        weights = _draw_weights(draw, count, min(BLOCK, draws - start))
        confusion = (counted.T @ weights).T
        measured = _measure(confusion.reshape(-1, len(predictions), num_labels, num_labels))
        if probabilities is not None:
            areas = [np.mean([one.areas(weights) for one in own], axis=0) for own in sweeps]
            measured["roc_auc"], measured["average_precision"] = np.stack(areas, axis=1)
            lost = [own.T @ weights / count for own in losses]
            measured["brier"] = np.stack([own[0] for own in lost])
            measured["ece"] = np.stack([np.abs(own[1:]).sum(axis=0) for own in lost])
        parts.append(measured)
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _draw_weights(draw: np.random.Generator, count: int, size: int) -> Array:
    """How often each row is drawn, [N, D]."""
    rows = draw.integers(count, size=(size, count))
    rows += np.arange(size)[:, None] * count
    times = np.bincount(rows.ravel(), minlength=size * count).reshape(size, count)
    return np.ascontiguousarray(times.T, dtype=np.float64)


def row_losses(references: Labels, probabilities: Array) -> Array:
    """What each row adds to the Brier score and to the gap of its ECE bin, [N, 1 + bins]."""
    rows = np.arange(len(references))
    truth = np.eye(probabilities.shape[1])[references]
    losses = np.zeros((len(references), 1 + NUM_ECE_BINS))
    losses[:, 0] = 0.5 * ((probabilities - truth) ** 2).sum(axis=1)
    right = probabilities.argmax(axis=1) == references
    losses[rows, 1 + bin_numbers(probabilities)] = probabilities.max(axis=1) - right
    return losses


def _views(references: Labels, probabilities: Array) -> list[tuple[NDArray[np.bool_], Array]]:
    """Truth and score of the last of two labels; of more, of each against the rest."""
    labels = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return [(references == label, probabilities[:, label]) for label in labels]


@dataclass(frozen=True)
class Sweep:
    """Rows from the highest score down, as the areas under their curves are added up.

    Every draw weighs the same rows in the same order: one pass over the rows serves all draws.

    Attributes:
        groups: Of each score the positive and the negative rows that have it.
    """

    groups: list[tuple[list[int], list[int]]]

    @classmethod
    def of(cls, is_positive: NDArray[np.bool_], scores: Array) -> "Sweep":
        """Order rows by their scores, [N] each."""
        order = np.argsort(-scores, kind="stable")
        starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
        groups = []
        for rows in np.split(order, starts[1:]):
            positive = is_positive[rows]
            groups.append((rows[positive].tolist(), rows[~positive].tolist()))
        return cls(groups)

    def areas(self, weights: Array) -> Array:
        """ROC-AUC and average precision with a weight for each row, [N, D] -> [2, D].

        ROC-AUC is the share of pairs of a positive and a negative row in which the positive scores
        higher, ties counting a half (Mann and Whitney, 1947); average precision the mean of the
        precision over the positives, those of one score found together, as scikit-learn has it.
        """
        size = weights.shape[1]
        wins, gained, positive, changed = (np.zeros(size) for _ in range(4))
        # Nothing yet is nearly nothing: it divides, and is gone when a whole number is added.
        passed = np.full(size, 1e-300)
        for is_right, is_wrong in self.groups:
            for row in is_right:
                passed += weights[row]
                positive += weights[row]
            for row in is_wrong:
                passed += weights[row]
                wins += np.multiply(weights[row], positive, out=changed)
            if is_right and is_wrong:  # ties: each counted as won above, a half of it is not
                tied = weights[is_right].sum(axis=0) * weights[is_wrong].sum(axis=0)
                wins -= tied / 2
            if is_right:
                is_one = len(is_right) == 1
                found = weights[is_right[0]] if is_one else weights[is_right].sum(axis=0)
                np.multiply(found, positive, out=changed)
                changed /= passed
                gained += changed
        negative = np.rint(passed - positive)
        pairs = positive * negative
        has_both = pairs > 0
        return np.stack(
            [
                np.divide(own, of, out=np.full(size, np.nan), where=has_both)
                for own, of in ((wins, pairs), (gained, positive))
            ]
        )


def _measure(confusion: Array) -> dict[str, Array]:
    """Accuracy, F1 and MCC of each draw and run, [D, R, C, C] -> each [R, D]."""
    hits = np.diagonal(confusion, axis1=2, axis2=3)  # [D, R, C]
    total = confusion.sum(axis=(2, 3))
    sizes = confusion.sum(axis=3) + confusion.sum(axis=2)
    f1 = np.divide(2 * hits, sizes, out=np.zeros_like(hits), where=sizes > 0)
    measured = {
        "accuracy": (hits.sum(axis=2) / total).T,
        "macro_f1": f1.mean(axis=2).T,
        "mcc": _matthews(confusion).T,
    }
    return measured | {f"f1_{label}": f1[:, :, label].T for label in range(f1.shape[2])}


def _matthews(confusion: Array) -> Array:
    """Matthews correlation, [D, R, C, C] -> [D, R]; 0 for a constant answer (Gorodkin, 2004)."""
    count = confusion.sum(axis=(2, 3))
    right = np.trace(confusion, axis1=2, axis2=3)
    true, said = confusion.sum(axis=3), confusion.sum(axis=2)  # [D, R, C]
    shared = count * right - (true * said).sum(axis=2)
    spread = (count**2 - (true**2).sum(axis=2)) * (count**2 - (said**2).sum(axis=2))
    found: Array = np.divide(
        shared, np.sqrt(np.maximum(spread, 0)), out=np.zeros_like(shared), where=spread > 0
    )
    return found


def percentile_interval(drawn: Array, level: float = 0.95) -> Interval:
    """The middle of what the draws gave (Efron, 1979)."""
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return Interval(float(low), float(high))


def reflected_interval(drawn: Array, found: float, level: float = 0.95) -> Interval:
    """The middle of the draws, mirrored at what was found (Davison and Hinkley, 1997, 5.2).

    For a calibration error: drawing adds the noise of its bins once more, so draws lie too high by
    as much as what was found does (arXiv:1909.10155, section 4).
    """
    middle = percentile_interval(drawn, level)
    return Interval(2 * found - middle.high, 2 * found - middle.low)


def roc_band(
    references: Labels, scores: Array, draws: int = 1000, points: int = 101, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Where 95 % of ROC curves lie when the rows are drawn anew.

    Args:
        references: True labels, 0 or 1, [N].
        scores: Score of label 1, [N].
        draws: How often rows are drawn.
        points: False positive rates at which the curves are read.
        seed: Fixes the draws.
    Returns:
        The rates, and from where to where the true positive rate is at each, [P] each.
    """
    order = np.argsort(-scores, kind="stable")
    truth, ranked = references[order], scores[order]
    # Rows of one score are passed together: the curve has a point after the last of them.
    ends = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    grid = np.linspace(0, 1, points)
    draw = np.random.default_rng(seed)
    curves = []
    for _ in range(draws):
        weights = np.bincount(draw.integers(len(truth), size=len(truth)), minlength=len(truth))
        positive = np.append(0, (weights * (truth == 1)).cumsum()[ends])
        negative = np.append(0, (weights * (truth == 0)).cumsum()[ends])
        if positive[-1] and negative[-1]:
            curves.append(np.interp(grid, negative / negative[-1], positive / positive[-1]))
    low, high = np.percentile(curves, [2.5, 97.5], axis=0)
    return grid, low, high
