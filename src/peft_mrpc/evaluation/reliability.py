"""Answers by how sure they are, in bins of equal mass."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_ECE_BINS = 10


@dataclass(frozen=True)
class ConfidenceBin:
    """Answers of like confidence: its mean, the share of them that is right, how many they are."""

    confidence: float
    right: float
    count: int


def confidence_bins(
    references: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> list[ConfidenceBin]:
    """Part answers by the probability of the winning label into bins of equal mass.

    Args:
        references: True label indices, [N].
        probabilities: [N, C].
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == references
    numbers = bin_numbers(probabilities)
    parts = [numbers == number for number in np.unique(numbers)]
    return [
        ConfidenceBin(float(confidence[part].mean()), float(right[part].mean()), int(part.sum()))
        for part in parts
    ]


def bin_numbers(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which of the bins of equal mass each row falls into, [N, C] -> [N].

    Rows of one confidence share a bin, whatever their order: that in which the first of them lies.
    """
    confidence = probabilities.max(axis=1)
    count, num_bins = len(confidence), min(NUM_ECE_BINS, len(confidence))
    sizes = count // num_bins + (np.arange(num_bins) < count % num_bins)
    by_place = np.repeat(np.arange(num_bins), sizes)
    first = np.searchsorted(np.sort(confidence), confidence, side="left")
    return np.asarray(by_place[first], np.int64)
