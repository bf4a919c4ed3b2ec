"""Paired significance tests, equivalence tests and intervals of accuracies.

Two sets of predictions for the same examples are compared example by example. Intervals by
resampling the examples are in `bootstrap`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from peft_mrpc.evaluation.bootstrap import BLOCK_SIZE, NUM_RESAMPLES, Array, Interval


def wilson_interval(num_correct: int, count: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson, 1927)."""
    interval = stats.binomtest(num_correct, count).proportion_ci(level, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def mcnemar_test(first_correct: NDArray[np.bool_], second_correct: NDArray[np.bool_]) -> float:
    """p value of the exact McNemar test of equal accuracy (McNemar, 1947, with binomial tails).

    Args:
        first_correct: Whether the first prediction of each example is correct, [N].
        second_correct: The same of the second.
    Returns:
        The two-sided p value; 1 where both are correct on the same examples.
    """
    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def permutation_test(
    differences: Array, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> float:
    """p value of the paired permutation test of a mean difference of 0 (Fisher, 1935).

    The sign of each difference is drawn at random. For differences of -1, 0 and 1 this is a Monte
    Carlo version of McNemar's test. Means over seeds lie between.

    Args:
        differences: The first score of each example minus the second, [N].
        num_resamples: How often the signs are drawn.
        seed: Seed of the draws.
    """
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return 1.0
    rng = np.random.default_rng(seed)
    observed, num_as_large = abs(nonzero.sum()), 0
    for start in range(0, num_resamples, BLOCK_SIZE):
        size = min(BLOCK_SIZE, num_resamples - start)
        signs = rng.choice([-1.0, 1.0], size=(size, len(nonzero)))
        # Equal sums of fractions differ in their last bits.
        num_as_large += int((np.abs(signs @ nonzero) >= observed - 1e-9).sum())
    return (1 + num_as_large) / (1 + num_resamples)


def holm_adjustment(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for multiple comparisons (Holm, 1979), in the same order."""
    count = len(p_values)
    adjusted, largest = [0.0] * count, 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def equivalence_test(differences: Array, margin: float) -> float:
    """p value of two one-sided t tests (TOST) of equivalence (Schuirmann, 1987).

    Args:
        differences: The first score of each example minus the second, [N].
        margin: The smallest mean difference that matters.
    Returns:
        The p value; small values show that the mean difference is smaller than `margin`.
    """
    if np.ptp(differences) == 0:  # constant: t is undefined
        return 0.0 if abs(differences[0]) < margin else 1.0
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    return float(max(above, below))


def detectable_difference(
    count: int, discordant: float, power: float = 0.8, level: float = 0.05
) -> float:
    """Smallest difference of two accuracies that McNemar's test detects (Connor, 1987).

    Args:
        count: Number of examples.
        discordant: Share of examples that exactly one of the two predicts correctly.
        power: Probability of detection.
        level: Significance level of the two-sided test.
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
