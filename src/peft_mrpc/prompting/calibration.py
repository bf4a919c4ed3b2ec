"""From label scores to probabilities: remove the model's bias towards some labels.

A prompted model prefers some labels whatever the example is (arXiv:2102.09690). Scores are
log-probabilities of the labels or on their scale, [T, N, C] for T templates, N examples, C labels;
V is the number of features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALIBRATIONS = ("none", "contextual", "batch", "affine")
# Texts without content (arXiv:2102.09690, section 5).
CONTENT_FREE_TEXTS = ("N/A", "[MASK]", "")
# Smaller spreads are rounding.
MIN_SPREAD = 1e-6
# Candidates for the inverse penalty of the affine fit.
INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
MAX_FOLDS = 5
PRIOR_STEPS = 500

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


@dataclass(frozen=True)
class Calibration:
    """Offsets and weights of label scores; linear in the scores.

    An affine calibration weights the features of all templates instead of their centred label
    scores: T is then their number V.

    Attributes:
        kind: One of `CALIBRATIONS`.
        offsets: Added to the scores of each template, [T, C].
        weights: Weight of each template's score of each label in each label's logit, [T, C, C].
        bias: Added to the logits, [C].
    """

    kind: str
    offsets: Array
    weights: Array
    bias: Array

    @property
    def uses_features(self) -> bool:
        """Whether the inputs are the templates' features instead of their label scores."""
        return self.kind == "affine"

    def logits(self, scores: Array) -> Array:
        """Unnormalized log-probabilities of the labels, [T, N, C] -> [N, C]."""
        shifted = scores + self.offsets[:, None, :]
        if not self.uses_features:
            shifted = centred(shifted)
        logits: Array = np.einsum("tnc,tcd->nd", shifted, self.weights) + self.bias
        return logits

    def probabilities(self, scores: Array) -> Array:
        """Probabilities of the labels, [T, N, C] -> [N, C]."""
        return softmax(self.logits(scores))

    def predict_proba(self, scores: Sequence[TemplateScores]) -> Array:
        """Probabilities of the labels by the scores of T templates, [N, C]."""
        stack = stack_features if self.uses_features else stack_label_scores
        return self.probabilities(stack(scores))

    def with_prior(self, scores: Array, prior: Sequence[float]) -> "Calibration":
        """The calibration with a bias that predicts each label as often as in `prior`, [C]."""
        return replace(self, bias=self.bias + match_prior(self.logits(scores), np.array(prior)))

    def to_dict(self) -> dict[str, Any]:
        """The content of `from_dict`, ready for JSON."""
        arrays = {"offsets": self.offsets, "weights": self.weights, "bias": self.bias}
        lists = {name: array.tolist() for name, array in arrays.items()}
        return {"kind": self.kind, **lists}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> "Calibration":
        """Read the result of `to_dict`."""
        arrays = (np.array(record[name], float) for name in ("offsets", "weights", "bias"))
        return Calibration(record["kind"], *arrays)


def fit_calibration(
    kind: str,
    scores: Array,
    content_free: Array | None = None,
    prior: Sequence[float] | None = None,
) -> Calibration:
    """Fit a calibration that needs no labelled examples.

    Args:
        kind: `none`, `contextual` or `batch`.
        scores: Label scores of the examples, [T, N, C].
        content_free: Label scores of examples without content, for `contextual`, [T, K, C].
        prior: How often each label is to be predicted, [C]; None for no such constraint.
    """
    if kind == "contextual":
        assert content_free is not None
        calibration = contextual(content_free)
    else:
        calibration = batch(scores) if kind == "batch" else no_calibration(scores)
    return calibration if prior is None else calibration.with_prior(scores, prior)


def _average(kind: str, offsets: Array, scales: Array | None = None) -> Calibration:
    """Mean over the templates after the offsets, [T, C], each multiplied by its scale, [T]."""
    templates, labels = offsets.shape
    scales = np.ones(templates) if scales is None else scales
    weights = scales[:, None, None] * np.eye(labels) / templates
    return Calibration(kind, offsets, weights, np.zeros(labels))


def no_calibration(scores: Array) -> Calibration:
    """The raw scores; the mean of several templates."""
    return _average("none", np.zeros_like(scores[:, 0]))


def contextual(content_free: Array) -> Calibration:
    """Divide by the probabilities of examples without content (arXiv:2102.09690, section 5).

    Args:
        content_free: Scores of K examples without content, [T, K, C].
    """
    return _average("contextual", -np.log(softmax(content_free).mean(axis=1)))


def batch(scores: Array) -> Calibration:
    """Divide by the mean over the examples themselves (arXiv:2309.17249, section 3); no labels.

    Several templates are scaled to the same spread first, so that none outweighs the others by
    its confidence alone.
    """
    offsets = -np.log(softmax(scores).mean(axis=1))
    if len(scores) == 1:
        return _average("batch", offsets)
    spread = centred(scores).std(axis=1).mean(axis=-1)  # [T]
    # A template with equal scores for all examples has no information.
    scales = np.where(spread > MIN_SPREAD, 1 / np.maximum(spread, MIN_SPREAD), 0.0)
    return _average("batch", offsets, scales)


def affine(features: Array, references: NDArray[np.int64], seed: int = 0) -> Calibration:
    """Logistic regression on the features of labelled examples; penalty by cross-validation.

    Args:
        features: [V, N, C].
        references: Labels, [N].
        seed: Seed of the folds.
    Raises:
        ValueError: If a label has fewer than two examples.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    num_features, count, labels = features.shape
    rarest = int(np.bincount(references, minlength=labels).min())
    if rarest < 2:
        raise ValueError(f"got {rarest} examples of a label; expected at least 2 of each.")
    inputs = features.transpose(1, 0, 2).reshape(count, -1)  # [N, V C]
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scale[scale < MIN_SPREAD] = 1.0
    search = GridSearchCV(
        LogisticRegression(max_iter=2000),
        {"C": list(INVERSE_PENALTIES)},
        scoring="neg_log_loss",
        cv=StratifiedKFold(min(MAX_FOLDS, rarest), shuffle=True, random_state=seed),
    )
    regression = search.fit((inputs - mean) / scale, references).best_estimator_
    coefficients = regression.coef_ / scale
    bias = regression.intercept_ - coefficients @ mean
    if labels == 2:  # one logit, of the second label against the first
        coefficients = np.stack([-coefficients[0] / 2, coefficients[0] / 2])
        bias = np.array([-bias[0] / 2, bias[0] / 2])
    weights = coefficients.T.reshape(num_features, labels, labels)
    return Calibration("affine", np.zeros((num_features, labels)), weights, bias)


def match_prior(logits: Array, prior: Array) -> Array:
    """The bias with which each label is predicted as often as in `prior`, [C].

    Exact for two labels, by the quantile; for more labels in steps towards the prior.
    """
    count, labels = logits.shape
    prior = prior / prior.sum()
    if labels == 2:
        margins = np.sort(logits[:, 1] - logits[:, 0])
        num_first = round(count * float(prior[0]))
        below = margins[num_first - 1] if num_first > 0 else margins[0] - 1
        above = margins[num_first] if num_first < count else margins[-1] + 1
        return np.array([0.0, -(below + above) / 2])
    bias = np.zeros(labels)
    scale = centred(logits).std() or 1.0
    for step in range(PRIOR_STEPS):
        shares = np.bincount((logits + bias).argmax(axis=-1), minlength=labels) / count
        bias += scale * (prior - shares) * (1 - step / PRIOR_STEPS)
    return bias


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
