"""Predictions grouped by confidence into bins of equal mass, for calibration errors and plots."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_ECE_BINS = 10


@dataclass(frozen=True)
class ConfidenceBin:
    """Predictions of similar confidence: mean confidence, accuracy and number of examples."""

    confidence: float
    accuracy: float
    count: int


def confidence_bins(
    references: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> list[ConfidenceBin]:
    """Group predictions by the probability of the predicted label into bins of equal mass.

    Args:
        references: True label indices, [N].
        probabilities: [N, C].
    """
    confidence = probabilities.max(axis=1)
    is_correct = probabilities.argmax(axis=1) == references
    numbers = assign_bins(probabilities)
    masks = [numbers == number for number in np.unique(numbers)]
    return [
        ConfidenceBin(
            float(confidence[mask].mean()), float(is_correct[mask].mean()), int(mask.sum())
        )
        for mask in masks
    ]


def assign_bins(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Assign each example to a confidence bin, [N, C] -> [N].

    Examples of equal confidence share a bin, whatever their order: the bin of the first of them.
    """
    confidence = probabilities.max(axis=1)
    count, num_bins = len(confidence), min(NUM_ECE_BINS, len(confidence))
    sizes = count // num_bins + (np.arange(num_bins) < count % num_bins)
    bin_by_rank = np.repeat(np.arange(num_bins), sizes)
    first_rank = np.searchsorted(np.sort(confidence), confidence, side="left")
    return np.asarray(bin_by_rank[first_rank], np.int64)
