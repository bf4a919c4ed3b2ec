"""Paired significance tests, equivalence tests and intervals of accuracies.

Two sets of predictions for the same examples are compared example by example. Intervals by
resampling the examples are in `bootstrap`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from peft_mrpc.evaluation.bootstrap import BLOCK_SIZE, NUM_RESAMPLES, Interval


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


def permutation_test(differences: NDArray[np.float64], seed: int = 0) -> float:
    """p value of the paired permutation test of a mean difference of 0 (Fisher, 1935).

    The sign of each difference is random. For differences of -1, 0 and 1 this is McNemar's test;
    means over seeds lie between. The test is exact where `NUM_RESAMPLES` covers all signs.

    Args:
        differences: The first score of each example minus the second, [N].
        seed: Seed of the signs.
    """
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return 1.0
    result = stats.permutation_test(
        (nonzero,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=NUM_RESAMPLES,
        batch=BLOCK_SIZE,
        random_state=seed,
    )
    return float(result.pvalue)


def holm_adjustment(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for multiple comparisons (Holm, 1979), in the same order."""
    count = len(p_values)
    adjusted, largest = [0.0] * count, 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def equivalence_test(differences: NDArray[np.float64], margin: float) -> float:
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
