"""Labelled training examples for a prompt: demonstrations and the calibration set."""

import functools
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from peft_mrpc.config import PromptConfig
from peft_mrpc.data.examples import UNKNOWN_LABEL, DataSplits, Example
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import UserError
from peft_mrpc.models.batched_inference import run_batched
from peft_mrpc.models.loading import load_encoder, load_tokenizer
from peft_mrpc.models.sources import resolve_model
from peft_mrpc.prompting.templates import Demonstration

logger = logging.getLogger(__name__)

DEMONSTRATION_CHOICES = ("balanced", "first", "nearest")
RETRIEVER = "builtin:minilm"
RETRIEVER_MAX_LENGTH = 128


class DemonstrationSelector(Protocol):
    """Selects the demonstrations of each example."""

    def select(self, examples: Sequence[Example]) -> list[list[Demonstration]]:
        """The demonstrations of N examples, in prompt order."""


@dataclass(frozen=True)
class FixedDemonstrations:
    """The same demonstrations for every example.

    Attributes:
        demonstrations: The demonstrations, possibly none.
    """

    demonstrations: Sequence[Demonstration] = ()

    def select(self, examples: Sequence[Example]) -> list[list[Demonstration]]:
        """The demonstrations of N examples."""
        return [list(self.demonstrations) for _ in examples]


class NearestDemonstrations:
    """The most similar labelled examples, as many of each label, the most similar last.

    Similarity is the cosine of the concatenated sentence embeddings. If the labels do not divide
    the count, the rest are the most similar examples of any label. An example is never its own
    demonstration, in either sentence order.

    Args:
        pool: Labelled demonstrations.
        label_names: Names of the C labels.
        count: Number of demonstrations.
        retriever: The embedding model.
    """

    def __init__(
        self,
        pool: Sequence[Demonstration],
        label_names: Sequence[str],
        count: int,
        retriever: str = RETRIEVER,
    ) -> None:
        self.pool = list(pool)
        self.label_names = list(label_names)
        self.count = count
        self.retriever = retriever
        labels = np.array([shot.label for shot in self.pool])
        self._rows_by_label = [np.flatnonzero(labels == label) for label in label_names]
        copies = Counter(frozenset((shot.sentence1, shot.sentence2)) for shot in self.pool)
        self._max_copies = max(copies.values(), default=0)

    def select(self, examples: Sequence[Example]) -> list[list[Demonstration]]:
        """The demonstrations of N examples."""
        embeddings = embed_pairs(
            [(ex.sentence1, str(ex.sentence2)) for ex in examples], self.retriever
        )
        # One example at a time: all similarities at once could be gigabytes.
        return [
            self._nearest(example, self._pool_embeddings @ embedding)
            for example, embedding in zip(examples, embeddings, strict=True)
        ]

    @functools.cached_property
    def _pool_embeddings(self) -> NDArray[np.float64]:
        return embed_pairs([(s.sentence1, s.sentence2) for s in self.pool], self.retriever)

    def _nearest(self, example: Example, similarity: NDArray[np.float64]) -> list[Demonstration]:
        sentences = {example.sentence1, example.sentence2}
        ranked = [
            row
            for row in self._candidates(similarity)
            if {self.pool[row].sentence1, self.pool[row].sentence2} != sentences
        ]
        per_label = self.count // len(self.label_names)
        selected = [
            row
            for label in self.label_names
            for row in [row for row in ranked if self.pool[row].label == label][:per_label]
        ]
        rest = [row for row in ranked if row not in selected]
        selected += rest[: self.count - len(selected)]
        return [self.pool[row] for row in sorted(selected, key=lambda row: similarity[row])]

    def _candidates(self, similarity: NDArray[np.float64]) -> list[int]:
        """Rows of each label that can be selected, the most similar first."""
        candidates: list[int] = []
        for rows in self._rows_by_label:
            # Some of them can be copies of the example itself.
            size = min(self.count + self._max_copies, len(rows))
            nearest = np.argpartition(-similarity[rows], size - 1)[:size]
            candidates += rows[nearest].tolist()
        return sorted(candidates, key=lambda row: (-similarity[row], row))


@functools.cache
def _load_retriever(name: str) -> tuple[Any, Any]:
    """Tokenizer and model, once for the pool and all splits."""
    source = resolve_model(name)
    return load_tokenizer(source), load_encoder(source).to(process_state().device)


def embed_pairs(pairs: Sequence[tuple[str, str]], retriever: str) -> NDArray[np.float64]:
    """Unit vectors of sentence pairs: the mean token states of both sentences, [N, 2 H]."""
    tokenizer, model = _load_retriever(retriever)
    texts = [text for pair in pairs for text in pair]
    encoded = tokenizer(texts, truncation=True, max_length=RETRIEVER_MAX_LENGTH)["input_ids"]

    @torch.inference_mode()
    def embed_batch(rows: list[int]) -> NDArray[np.float64]:
        batch = tokenizer.pad({"input_ids": [encoded[r] for r in rows]}, return_tensors="pt")
        states: Any = model(**batch.to(model.device)).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(1) / mask.sum(1)
        unit: NDArray[np.float64] = torch.nn.functional.normalize(means).double().cpu().numpy()
        return unit

    vectors = run_batched([len(ids) for ids in encoded], 64, embed_batch, "embedding")
    joined: NDArray[np.float64] = vectors.reshape(len(pairs), -1) / np.sqrt(2)
    return joined


def build_selector(
    strategy: str, count: int, demonstrations: Sequence[Demonstration], label_names: Sequence[str]
) -> DemonstrationSelector:
    """The selector of a strategy.

    Args:
        strategy: One of `DEMONSTRATION_CHOICES`.
        count: Number of demonstrations per prompt.
        demonstrations: These, or the pool of `nearest`.
        label_names: Names of the C labels.
    """
    if count and strategy == "nearest":
        return NearestDemonstrations(demonstrations, label_names, count)
    return FixedDemonstrations(demonstrations if count else ())


# ---- sampling from the training split ----


@dataclass(frozen=True)
class TrainSample:
    """Training examples that a prompt uses.

    Attributes:
        calibration: Labelled examples to fit a calibration on.
        demonstrations: The demonstrations of every prompt, or the pool of `nearest`.
    """

    calibration: Sequence[Example] = ()
    demonstrations: Sequence[Demonstration] = ()

    @property
    def references(self) -> NDArray[np.int64]:
        """Labels of the calibration set."""
        return np.array([example.label for example in self.calibration], dtype=np.int64)


def label_uses(config: PromptConfig) -> list[str]:
    """The options that use training labels."""
    uses = {
        f"num_demonstrations {config.num_demonstrations}": config.num_demonstrations > 0,
        "calibration affine": config.calibration == "affine",
        "label_prior train": config.label_prior == "train",
    }
    return [option for option, is_used in uses.items() if is_used]


def sample_train(config: PromptConfig, data: DataSplits, splits: Sequence[str]) -> TrainSample:
    """Sample the calibration set and the demonstrations, disjoint from each other and the splits.

    Args:
        config: Its seed fixes the sample.
        data: The examples.
        splits: The splits to score.
    Raises:
        UserError: If train has too few examples.
    """
    pool = _unscored_pool(config, data, splits)
    calibration: list[Example] = []
    if config.calibration == "affine":
        draw = np.random.default_rng([config.seed, 1])
        rows = sorted(draw.permutation(len(pool))[: config.num_calibration_pairs])
        calibration = [pool[row] for row in rows]
        _check_calibration_set(config, calibration, data.label_names)
        # A demonstration in the calibration set would be scored after its own answer.
        pool = [example for row, example in enumerate(pool) if row not in {*rows}]
    if not config.num_demonstrations:
        return TrainSample(calibration)
    _check_pool(config, pool, len(calibration), data.label_names)
    if config.demonstrations == "nearest":
        shots = [Demonstration.from_example(example, data.label_names) for example in pool]
    else:
        shots = sample_demonstrations(
            *(pool, data.label_names, config.num_demonstrations),
            *(config.demonstrations, config.seed),
        )
    return TrainSample(calibration, shots)


def sample_demonstrations(
    pool: Sequence[Example], label_names: Sequence[str], count: int, strategy: str, seed: int
) -> list[Demonstration]:
    """Sample the demonstrations of every prompt from labelled examples.

    Args:
        pool: Labelled examples.
        label_names: Names of the C labels.
        count: Number of demonstrations.
        strategy: `first` for the first of the pool; `balanced` for a random sample with as many of
            each label as possible, in random order.
        seed: Fixes the sample and the order.
    """
    if strategy == "first":
        examples = list(pool[:count])
    else:
        draw = np.random.default_rng(seed)
        num_labels = len(label_names)
        sizes = np.full(num_labels, count // num_labels)
        sizes[draw.permutation(num_labels)[: count % num_labels]] += 1
        sampled: list[Example] = []
        for label, size in enumerate(sizes):
            candidates = [example for example in pool if example.label == label]
            sampled += [candidates[row] for row in draw.permutation(len(candidates))[:size]]
        examples = [sampled[row] for row in draw.permutation(len(sampled))]
    return [Demonstration.from_example(example, label_names) for example in examples]


def label_prior(config: PromptConfig, data: DataSplits) -> list[float] | None:
    """How often each label is to be predicted, [C]; None for no constraint."""
    count = len(data.label_names)
    if config.label_prior == "train":
        labels = [ex.label for ex in data.splits["train"] if ex.label != UNKNOWN_LABEL]
        return list(np.bincount(labels, minlength=count) / len(labels))
    return [1 / count] * count if config.label_prior == "uniform" else None


def _unscored_pool(config: PromptConfig, data: DataSplits, splits: Sequence[str]) -> list[Example]:
    """The labelled training examples that no split to score contains, in either order."""
    labelled = [ex for ex in data.splits.get("train", ()) if ex.label != UNKNOWN_LABEL]
    if not label_uses(config):
        return labelled
    scored = {_sentences(example) for split in splits for example in data.splits[split]}
    pool = [example for example in labelled if _sentences(example) not in scored]
    if count := len(labelled) - len(pool):
        logger.warning(
            "%d training examples also occur in the splits to score, and are not used", count
        )
    if not pool:
        raise UserError(
            f"{label_uses(config)[0]}: every training example also occurs in the splits to score; "
            "expected others."
        )
    return pool


def _check_calibration_set(
    config: PromptConfig, examples: Sequence[Example], label_names: Sequence[str]
) -> None:
    labels = [example.label for example in examples]
    counts = np.bincount(labels, minlength=len(label_names)).tolist()
    if min(counts) < 2:
        raise UserError(
            f"num_calibration_pairs: got {config.num_calibration_pairs}, and of the "
            f"{len(examples)} sampled {min(counts)} are {label_names[counts.index(min(counts))]}; "
            "expected at least 2 of each label."
        )


def _check_pool(
    config: PromptConfig, pool: Sequence[Example], num_calibration: int, label_names: Sequence[str]
) -> None:
    """Refuse more demonstrations than there are; `balanced` and `nearest` need them by label."""
    count = config.num_demonstrations
    counts = np.bincount([ex.label for ex in pool], minlength=len(label_names)).tolist()
    rarest = min(counts)
    if config.demonstrations == "first":
        is_enough, available = len(pool) >= count, f"{len(pool)} examples"
    else:
        is_enough = rarest >= -(-count // len(label_names))
        available = f"{rarest} examples that are {label_names[counts.index(rarest)]}"
    if not is_enough:
        calibration = f" besides the {num_calibration} of num_calibration_pairs"
        raise UserError(
            f"num_demonstrations: got {count}, but train has {available}"
            f"{calibration if num_calibration else ''}; use fewer."
        )


def _sentences(example: Example) -> frozenset[str | None]:
    return frozenset((example.sentence1, example.sentence2))
