"""Scores of the labels by template, and the array functions that calibrations share.

T templates, N examples, C labels, V features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TemplateScores:
    """Scores of N examples by one template.

    Attributes:
        labels: Score of each label, [N, C]: log-probabilities, or on their scale.
        features: Inputs of a fitted calibration, V for each example and label, [V, N, C].
    """

    labels: Array
    features: Array

    @staticmethod
    def from_labels(labels: Array) -> "TemplateScores":
        """Scores whose only feature is the centred label scores, [N, C]."""
        return TemplateScores(labels, centred(labels)[None])


def stack_label_scores(scores: Sequence[TemplateScores]) -> Array:
    """The label scores of T templates, [T, N, C]."""
    return np.stack([template.labels for template in scores])


def stack_features(scores: Sequence[TemplateScores]) -> Array:
    """The features of all templates, one after the other, [V, N, C]."""
    return np.concatenate([template.features for template in scores])


def softmax(logits: Array) -> Array:
    """Softmax over the last axis."""
    powers: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Array = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def centred(scores: Array) -> Array:
    """Scores minus their mean over the labels."""
    differences: Array = scores - scores.mean(axis=-1, keepdims=True)
    return differences


def channel_scores(
    log_likelihoods: NDArray[np.float64], num_tokens: NDArray[np.int64]
) -> TemplateScores:
    """Noisy-channel scores of the labels (arXiv:2108.04106).

    A label's score is its log-likelihood of the second sentence, divided by the mean over the
    labels: long and rare sentences have large values under every label. With two sentence orders
    the order counts that favours the last label less: equivalent sentences predict each other.
    The features are these ratios and the log-likelihoods, whole and per token. Those of two
    orders are sorted, so that swapping the sentences changes nothing.

    Args:
        log_likelihoods: Of N examples in O orders under C labels, in nats, [N, O, C].
        num_tokens: Number of tokens in each sum, [N, O, C].
    """
    ratios = log_likelihoods / np.abs(log_likelihoods).mean(axis=-1, keepdims=True)
    margins = ratios[:, :, -1] - ratios.mean(axis=-1)  # [N, O]
    labels = ratios[np.arange(len(ratios)), margins.argmin(axis=1)]  # [N, C]
    parts = [ratios, log_likelihoods, log_likelihoods / num_tokens]
    features = np.concatenate([np.sort(part, axis=1) for part in parts], axis=1)  # [N, V, C]
    return TemplateScores(labels, features.transpose(1, 0, 2))
