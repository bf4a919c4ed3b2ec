"""How surely what was found on some rows holds: paired tests, equivalence, dominance over seeds.

Answers of several runs to the same rows are compared row by row. Intervals by drawing rows anew are
in `resampling`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from peft_mrpc.evaluation.bootstrap import BLOCK, DRAWS, Array, Interval


def wilson_interval(right: int, count: int, level: float = 0.95) -> Interval:
    """Of a share of independent rows (Wilson, 1927)."""
    found = stats.binomtest(right, count).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high))


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
    ratio = float(violation_ratio(one, two))
    scale = (len(one) * len(two) / (len(one) + len(two))) ** 0.5
    sampled = violation_ratio(
        *(np.sort(draw.choice(own, (draws, len(own))), axis=1) for own in (one, two))
    )
    deviation = np.std(scale * (sampled - ratio), ddof=1)
    return float(np.clip(ratio - stats.norm.ppf(0.05) * deviation / scale, 0, 1))


def violation_ratio(first: Array, second: Array) -> Array:
    """Share of the squared distance of two samples' quantiles that is the second's lead.

    Args:
        first: Sorted samples, [..., M].
        second: Sorted samples, [..., N].
    Returns:
        [...]; a half where the two are the same.
    """
    many, others = first.shape[-1], second.shape[-1]
    # Where one of the two quantile functions steps, in parts of a (many x others)th.
    steps = np.union1d(np.arange(many + 1) * others, np.arange(others + 1) * many)
    leads = second[..., steps[:-1] // many] - first[..., steps[:-1] // others]
    squares = leads**2 * np.diff(steps)
    lost, total = np.where(leads > 0, squares, 0).sum(axis=-1), squares.sum(axis=-1)
    found: Array = np.divide(lost, total, out=np.full_like(total, 0.5), where=total > 0)
    return found
