"""How surely what was found on some rows holds: intervals, paired tests, dominance over seeds.

Answers of several runs to the same rows are compared pair by pair: rows are drawn together, so that
what makes a row hard for all of them is in no difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

DRAWS = 10_000
# Draws at once: bounds the memory, 10,000 of them at 1,725 rows would be 70 MB for each array.
BLOCK = 1_000


@dataclass(frozen=True)
class Interval:
    """From where to where a figure is, at 95 %."""

    low: float
    high: float


def wilson_interval(right: int, count: int, level: float = 0.95) -> Interval:
    """Of a share of independent rows (Wilson, 1927)."""
    found = stats.binomtest(right, count).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high))


def bootstrap(
    references: Labels,
    predictions: Sequence[Labels],
    scores: Sequence[Array] | None,
    num_labels: int,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Array]:
    """Draw rows with replacement, the same for every run, and measure again.

    Args:
        references: True labels, [N].
        predictions: Each run's labels, R of [N].
        scores: Each run's score of the last of two labels, R of [N]; None for no ROC-AUC.
        num_labels: How many labels there are.
        draws: How often rows are drawn.
        seed: Fixes the draws.
    Returns:
        For `accuracy`, `f1_0`, `f1_1`, ..., `macro_f1`, `mcc` and `roc_auc` what each draw gives,
        [R, D].
        ROC-AUC is not a number in a draw that has rows of one label alone.
    """
    count = len(references)
    draw = np.random.default_rng(seed)
    cells = [np.eye(num_labels * num_labels)[references * num_labels + p] for p in predictions]
    stacked = np.concatenate(cells, axis=1).astype(np.float32)  # [N, R C C]
    parts = []
    for start in range(0, draws, BLOCK):
        size = min(BLOCK, draws - start)
        rows = draw.integers(count, size=(size, count)) + np.arange(size)[:, None] * count
        weights = np.bincount(rows.ravel(), minlength=size * count).astype(np.float32)
        weights = weights.reshape(size, count)  # how often each row was drawn, [D, N]
        confusion = (weights @ stacked).astype(np.float64)
        measured = _measure(confusion.reshape(size, len(predictions), num_labels, num_labels))
        if scores is not None:
            areas = [weighted_auc(weights, references, own) for own in scores]
            measured["roc_auc"] = np.stack(areas)
        parts.append(measured)
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _measure(confusion: Array) -> dict[str, Array]:
    """Accuracy and F1 of each draw and run, [D, R, C, C] -> each [R, D]."""
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


def weighted_auc(weights: NDArray[np.float32], references: Labels, scores: Array) -> Array:
    """Area under the ROC curve with a weight for each row, [D, N] -> [D]; ties count a half.

    The share of pairs of a positive and a negative row in which the positive scores higher (Mann
    and Whitney, 1947).
    """
    order = np.argsort(scores, kind="stable")
    drawn, ranked = weights[:, order], scores[order]
    is_positive = references[order] == 1
    negative = np.where(is_positive, 0, drawn)
    # Of negatives below a row all count, of those at its own score a half: the mean of the counts
    # before the first and after the last row with that score.
    counted = np.concatenate(
        [np.zeros((len(drawn), 1), np.float32), negative.cumsum(axis=1, dtype=np.float32)], axis=1
    )
    first = np.searchsorted(ranked, ranked[is_positive], side="left")
    last = np.searchsorted(ranked, ranked[is_positive], side="right")
    below = (counted[:, first] + counted[:, last]) / 2
    positive = drawn[:, is_positive]
    wins = np.einsum("dn,dn->d", positive.astype(np.float64), below.astype(np.float64))
    pairs = positive.sum(axis=1, dtype=np.float64) * counted[:, -1]
    areas: Array = np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)
    return areas


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


def percentile_interval(drawn: Array, level: float = 0.95) -> Interval:
    """The middle of what the draws gave (Efron, 1979)."""
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return Interval(float(low), float(high))


def mcnemar(first_right: NDArray[np.bool_], second_right: NDArray[np.bool_]) -> float:
    """Probability of so uneven a split of the rows that one run alone has right, were both as good.

    The exact test (McNemar, 1947, with binomial tails): 1 where the two are right on the same rows.
    """
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def permutation(gaps: Array, draws: int = DRAWS, seed: int = 0) -> float:
    """Probability of so large a mean difference over the rows, were the two runs interchangeable.

    Each row's difference has its sign drawn by chance (Fisher, 1935). Of differences that are -1,
    0 and 1 this is McNemar's test, by drawing; those of means over seeds lie between.

    Args:
        gaps: The first run's score of each row less the second's, [N].
        draws: How often the signs are drawn.
        seed: Fixes the draws.
    """
    moved = gaps[gaps != 0]
    if not len(moved):
        return 1.0
    draw = np.random.default_rng(seed)
    found, as_large = abs(moved.sum()), 0
    for start in range(0, draws, BLOCK):
        signs = draw.choice([-1.0, 1.0], size=(min(BLOCK, draws - start), len(moved)))
        # Sums of like fractions differ in their last bits.
        as_large += int((np.abs(signs @ moved) >= found - 1e-9).sum())
    return (1 + as_large) / (1 + draws)


def holm(p_values: Sequence[float]) -> list[float]:
    """Probabilities adjusted for their number (Holm, 1979), in the order given."""
    count = len(p_values)
    adjusted, largest = [0.0] * count, 0.0
    for place, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def equivalence(gaps: Array, margin: float) -> float:
    """Probability of the data, were the accuracies `margin` or more apart (TOST, Schuirmann, 1987).

    Two one-sided t tests on the rows' differences; small means equivalent.

    Args:
        gaps: The first run's score of each row less the second's, [N].
        margin: The least difference that matters.
    """
    if np.ptp(gaps) == 0:  # the same on every row, or different on every one
        return 0.0 if abs(gaps[0]) < margin else 1.0
    above = stats.ttest_1samp(gaps, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(gaps, margin, alternative="less").pvalue
    return float(max(above, below))


def detectable_difference(
    count: int, discordant: float, power: float = 0.8, level: float = 0.05
) -> float:
    """The least difference of two accuracies that this many rows would show (Connor, 1987).

    Args:
        count: Rows.
        discordant: Share of rows that one of the two alone has right.
        power: How often it would be seen.
        level: Of the two-sided McNemar test.
    Returns:
        The difference, at most `discordant`.
    """
    z_level, z_power = stats.norm.ppf(1 - level / 2), stats.norm.ppf(power)
    low, high = 0.0, discordant
    for _ in range(60):
        middle = (low + high) / 2
        spread = z_level * discordant**0.5 + z_power * max(0.0, discordant - middle**2) ** 0.5
        low, high = (low, middle) if middle * count**0.5 >= spread else (middle, high)
    return high


def almost_stochastic_order(
    first: Sequence[float], second: Sequence[float], draws: int = 1000, seed: int = 0
) -> float:
    """How far the first run's scores over seeds are from dominating the second's, at 95 %.

    Almost stochastic order (del Barrio et al., 2018; Dror et al., ACL 2019): 0 where every quantile
    is higher, 1 where every one is lower; below 0.5 the first is the better, below 0.2 clearly so.
    """
    draw = np.random.default_rng(seed)
    one, two = np.sort(np.asarray(first, float)), np.sort(np.asarray(second, float))
    ratio = _violation(one, two)
    scale = (len(one) * len(two) / (len(one) + len(two))) ** 0.5
    sampled = np.array(
        [
            _violation(np.sort(draw.choice(one, len(one))), np.sort(draw.choice(two, len(two))))
            for _ in range(draws)
        ]
    )
    deviation = np.std(scale * (sampled - ratio), ddof=1)
    return float(np.clip(ratio - stats.norm.ppf(0.05) * deviation / scale, 0, 1))


def _violation(first: Array, second: Array, steps: int = 200) -> float:
    """Share of the squared distance of two samples' quantiles that is the second's lead."""
    at = (np.arange(steps) + 0.5) / steps
    one, two = (sample[(at * len(sample)).astype(int)] for sample in (first, second))
    squares = (one - two) ** 2
    if squares.sum() == 0:
        return 0.5
    return float(squares[two > one].sum() / squares.sum())
