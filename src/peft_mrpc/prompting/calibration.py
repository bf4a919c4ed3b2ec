"""From label scores to probabilities: what of a language model's preference is not the pair's.

A prompted model prefers some labels whatever it is asked (arXiv:2102.09690). Scores here are
log-probabilities of the labels or on their scale, [T, N, C] for T wordings, N pairs, C labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

KINDS = ("none", "contextual", "batch", "affine")
# Pairs without content (arXiv:2102.09690, section 5).
CONTENT_FREE = ("N/A", "[MASK]", "")
# Strengths of the affine fit's penalty to choose from, by cross-validation.
LEAST_SPREAD = 1e-6
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Scores:
    """What a model says of N pairs by one wording.

    Attributes:
        labels: Score of each label, [N, C].
        evidence: What a fit reads of it, V figures for each pair and label, [V, N, C].
    """

    labels: Array
    evidence: Array

    @staticmethod
    def of_labels(labels: Array) -> "Scores":
        """Of a wording that says nothing beside its label scores, [N, C]."""
        return Scores(labels, centred(labels)[None])


@dataclass(frozen=True)
class Calibration:
    """What is added to label scores, and how wordings are weighed; linear in the scores.

    Attributes:
        kind: One of `KINDS`.
        offsets: Added to each wording's scores, [T, C].
        weights: Of each wording's score of each label in each label's logit, [T, C, C].
        bias: Added to the logits, [C].
        reads_evidence: Whether it reads each wording's evidence, as it is, and not its label
            scores; T then counts all figures of all wordings.
    """

    kind: str
    offsets: Array
    weights: Array
    bias: Array
    reads_evidence: bool = False

    def logits(self, scores: Array) -> Array:
        """Unnormalized log-probabilities of the labels, [T, N, C] -> [N, C]."""
        shifted = scores + self.offsets[:, None, :]
        if not self.reads_evidence:
            shifted = centred(shifted)
        logits: Array = np.einsum("tnc,tcd->nd", shifted, self.weights) + self.bias
        return logits

    def probabilities(self, scores: Array) -> Array:
        """Probabilities of the labels, [T, N, C] -> [N, C]."""
        return softmax(self.logits(scores))

    def classify(self, scores: Sequence[Scores]) -> Array:
        """Probabilities of the labels by what T wordings say, [N, C]."""
        return self.probabilities((evidence_of if self.reads_evidence else labels_of)(scores))

    def with_prior(self, scores: Array, prior: Sequence[float]) -> "Calibration":
        """The same with each label predicted as often on these pairs as `prior` says, [C]."""
        bias = self.bias + match_shares(self.logits(scores), np.asarray(prior))
        return replace(self, bias=bias)

    def record(self) -> dict[str, Any]:
        """What `from_record` reads, ready for JSON."""
        arrays = {"offsets": self.offsets, "weights": self.weights, "bias": self.bias}
        record = {name: array.tolist() for name, array in arrays.items()}
        return {"kind": self.kind, "reads_evidence": self.reads_evidence, **record}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "Calibration":
        """What `record` gave."""
        names = ("offsets", "weights", "bias")
        offsets, weights, bias = (np.array(record[name], float) for name in names)
        reads_evidence = bool(record.get("reads_evidence", False))
        return Calibration(record["kind"], offsets, weights, bias, reads_evidence)


def labels_of(scores: Sequence[Scores]) -> Array:
    """The label scores of T wordings, [T, N, C]."""
    return np.stack([one.labels for one in scores])


def evidence_of(scores: Sequence[Scores]) -> Array:
    """All that wordings say, one after the other, [V of all, N, C]."""
    return np.concatenate([one.evidence for one in scores])


def softmax(logits: Array) -> Array:
    """Along the last axis."""
    powers: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def centred(scores: Array) -> Array:
    """Scores less their mean over the labels: what alone tells labels apart."""
    differences: Array = scores - scores.mean(axis=-1, keepdims=True)
    return differences


def _averaging(scores: Array, kind: str, offsets: Array, scales: Array) -> Calibration:
    """Mean over the wordings, each weighed by its scale, [T]."""
    wordings, _, labels = scores.shape
    weights = np.stack([np.eye(labels) * scale for scale in scales]) / wordings
    return Calibration(kind, offsets, weights, np.zeros(labels))


def no_calibration(scores: Array) -> Calibration:
    """The scores as they are; of several wordings the mean."""
    wordings, _, labels = scores.shape
    return _averaging(scores, "none", np.zeros((wordings, labels)), np.ones(wordings))


def contextual(scores: Array, content_free: Array) -> Calibration:
    """Divide by what the wording says of pairs without content (arXiv:2102.09690, section 5).

    Args:
        scores: [T, N, C].
        content_free: The scores of pairs without content, [T, K, C].
    """
    offsets = -np.log(softmax(content_free).mean(axis=1))
    return _averaging(scores, "contextual", offsets, np.ones(len(scores)))


def batch(scores: Array) -> Calibration:
    """Divide by the mean over the pairs themselves (arXiv:2309.17249, section 3); no labels.

    Several wordings are put on one scale first, so that none outweighs the others by its
    confidence alone.
    """
    offsets = -np.log(softmax(scores).mean(axis=1))
    scales = np.ones(len(scores))
    if len(scores) > 1:
        spread = centred(scores).std(axis=1).mean(axis=-1)  # [T]
        # A wording that says the same of every pair says nothing but rounding.
        scales = np.where(spread > LEAST_SPREAD, 1 / np.maximum(spread, LEAST_SPREAD), 0.0)
    return _averaging(scores, "batch", offsets, scales)


def affine(evidence: Array, references: NDArray[np.int64], seed: int = 0) -> Calibration:
    """Logistic regression on what wordings say of labelled pairs, its penalty by cross-validation.

    Args:
        evidence: [V, N, C].
        references: Labels, [N].
        seed: Of the folds.
    Raises:
        ValueError: If a label has fewer than two pairs.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    figures, count, labels = evidence.shape
    fewest = np.bincount(references, minlength=labels).min()
    if fewest < 2:
        raise ValueError(f"got {fewest} pairs of a label; expected at least 2 of each.")
    features = evidence.transpose(1, 0, 2).reshape(count, -1)  # [N, V C]
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale < LEAST_SPREAD] = 1.0
    folds = StratifiedKFold(min(5, int(fewest)), shuffle=True, random_state=seed)
    search = GridSearchCV(
        LogisticRegression(max_iter=2000), {"C": list(PENALTIES)}, scoring="neg_log_loss", cv=folds
    )
    fit = search.fit((features - mean) / scale, references).best_estimator_
    coefficients = fit.coef_ / scale
    bias = fit.intercept_ - coefficients @ mean
    if labels == 2:  # one logit, of the second label against the first
        coefficients = np.stack([-coefficients[0] / 2, coefficients[0] / 2])
        bias = np.array([-bias[0] / 2, bias[0] / 2])
    weights = coefficients.T.reshape(figures, labels, labels)
    return Calibration("affine", np.zeros((figures, labels)), weights, bias, True)


def affine_out_of_fold(evidence: Array, references: NDArray[np.int64], seed: int = 0) -> Array:
    """Probabilities of labelled pairs by fits that have not seen them, [V, N, C] -> [N, C]."""
    from sklearn.model_selection import StratifiedKFold

    found = np.zeros(evidence.shape[1:])
    folds = StratifiedKFold(
        min(5, int(np.bincount(references).min())), shuffle=True, random_state=seed
    )
    for seen, unseen in folds.split(found, references):
        if np.bincount(references[seen], minlength=evidence.shape[2]).min() < 2:
            fit = affine(evidence, references, seed)  # too few for that
        else:
            fit = affine(evidence[:, seen], references[seen], seed)
        found[unseen] = fit.probabilities(evidence[:, unseen])
    return found


def match_shares(logits: Array, shares: Array, steps: int = 500) -> Array:
    """What to add to each label's logit, so that each is predicted as often as wanted, [C].

    Of two labels exactly, by the quantile; of more, by steps towards it.
    """
    count, labels = logits.shape
    if labels == 2:
        gap = np.sort(logits[:, 1] - logits[:, 0])
        first = round(count * float(shares[0] / shares.sum()))  # so many are to be label 0
        below = gap[first - 1] if first > 0 else gap[0] - 1
        above = gap[first] if first < count else gap[-1] + 1
        return np.array([0.0, -(below + above) / 2])
    bias = np.zeros(labels)
    scale = centred(logits).std() or 1.0
    for step in range(steps):
        found = np.bincount((logits + bias).argmax(axis=-1), minlength=labels) / count
        bias += scale * (shares / shares.sum() - found) * (1 - step / steps)
    return bias
