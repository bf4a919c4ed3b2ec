"""Labelled training examples for a prompt: demonstrations and the calibration set."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peft_mrpc.config import PromptConfig
from peft_mrpc.data.examples import UNKNOWN_LABEL, DataSplits, Example
from peft_mrpc.errors import UserError
from peft_mrpc.prompting.templates import Demonstration

logger = logging.getLogger(__name__)

DEMONSTRATION_CHOICES = ("balanced", "first")


@dataclass(frozen=True)
class TrainSample:
    """Training examples that a prompt uses.

    Attributes:
        calibration: Labelled examples to fit a calibration on.
        demonstrations: The demonstrations of every prompt.
    """

    calibration: Sequence[Example] = ()
    demonstrations: Sequence[Demonstration] = ()


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
    if not label_uses(config):
        return TrainSample()
    pool = _unscored_examples(config, data, splits)
    calibration: list[Example] = []
    if config.calibration == "affine":
        draw = np.random.default_rng([config.seed, 1])
        rows = sorted(draw.permutation(len(pool))[: config.num_calibration_pairs])
        calibration = [pool[row] for row in rows]
        _check_calibration_set(config, calibration, data.label_names)
        # A demonstration in the calibration set would be scored after its own answer.
        pool = [example for row, example in enumerate(pool) if row not in {*rows}]
    _check_demonstrations(config, pool, len(calibration), data.label_names)
    demonstrations = sample_demonstrations(
        pool, data.label_names, config.num_demonstrations, config.demonstrations, config.seed
    )
    return TrainSample(calibration, demonstrations)


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


def _unscored_examples(
    config: PromptConfig, data: DataSplits, splits: Sequence[str]
) -> list[Example]:
    """The labelled training examples that no split to score contains, swapped or not."""
    labelled = [ex for ex in data.splits["train"] if ex.label != UNKNOWN_LABEL]
    scored = {_sentences(example) for split in splits for example in data.splits[split]}
    unscored = [example for example in labelled if _sentences(example) not in scored]
    if count := len(labelled) - len(unscored):
        logger.warning(
            "%d training examples also occur in the splits to score, and are not used", count
        )
    if not unscored:
        raise UserError(
            f"{label_uses(config)[0]}: every training example also occurs in the splits to score; "
            "expected others."
        )
    return unscored


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


def _check_demonstrations(
    config: PromptConfig, pool: Sequence[Example], num_calibration: int, label_names: Sequence[str]
) -> None:
    """Refuse more demonstrations than there are, of each label if they are balanced."""
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
