"""What a hard prompt takes from the training pairs: those shown, those chosen and fitted on."""

from collections.abc import Sequence

import numpy as np

from peft_mrpc.config import PromptConfig
from peft_mrpc.data.examples import UNKNOWN_LABEL, DataSplits, Example
from peft_mrpc.errors import UserError, logger
from peft_mrpc.prompting.demonstrations import choose_demonstrations
from peft_mrpc.prompting.templates import Demonstration, as_demonstration
from peft_mrpc.prompting.validation import train_uses


def draw_from_train(
    config: PromptConfig, data: DataSplits, splits: Sequence[str]
) -> tuple[list[Example], list[Demonstration]]:
    """Draw what the flags ask for; no pair that is scored, and none for both uses.

    Args:
        config: The flags of the prompt; its seed fixes what is drawn.
        data: The pairs.
        splits: Which of them are scored.
    Returns:
        The labelled pairs to choose a template and to fit a calibration on, and the
        demonstrations: those shown to every pair, or all that the nearest are found among.
    Raises:
        UserError: If train has too few pairs for it.
    """
    pool = _pool(config, data, splits)
    held: list[Example] = []
    if config.calibration == "affine" or config.combine == "best":
        draw = np.random.default_rng([config.seed, 1])
        rows = sorted(draw.permutation(len(pool))[: config.num_calibration_pairs])
        held = [pool[row] for row in rows]
        _check_held(config, held, data.label_names)
        # What is fitted on is not shown: it would be fitted to its own answers.
        kept = set(rows)
        pool = [pair for row, pair in enumerate(pool) if row not in kept]
    count, how = config.num_demonstrations, config.demonstrations
    if not count:
        return held, []
    _check_shown(config, pool, len(held), data.label_names)
    if how == "nearest":
        return held, [as_demonstration(pair, data.label_names) for pair in pool]
    return held, choose_demonstrations(pool, data.label_names, count, how, config.seed)


def _check_shown(
    config: PromptConfig, pool: Sequence[Example], num_held: int, label_names: Sequence[str]
) -> None:
    """Refuse to show more than there are; `balanced` and `nearest` want so many of each label."""
    count = config.num_demonstrations
    counts = np.bincount([pair.label for pair in pool], minlength=len(label_names)).tolist()
    if config.demonstrations == "first":
        has_enough, has = len(pool) >= count, f"{len(pool)} pairs"
    else:
        fewest = min(counts)
        has_enough = fewest >= -(-count // len(label_names))
        has = f"{fewest} pairs that are {label_names[counts.index(fewest)]}"
    if not has_enough:
        fitted = f" beside the {num_held} fitted on (--num_calibration_pairs)" if num_held else ""
        raise UserError(
            f"--num_demonstrations: got {count}, but train has {has}{fitted}; lower it."
        )


def label_prior(config: PromptConfig, data: DataSplits) -> list[float] | None:
    """How often each label is to be predicted, [C]; None for as it comes."""
    count = len(data.label_names)
    if config.label_prior == "train":
        labels = [pair.label for pair in data.splits["train"] if pair.label != UNKNOWN_LABEL]
        return list(np.bincount(labels, minlength=count) / len(labels))
    return [1 / count] * count if config.label_prior == "uniform" else None


def _pool(config: PromptConfig, data: DataSplits, splits: Sequence[str]) -> list[Example]:
    """The labelled training pairs, without those that are scored, in either order."""
    labelled = [pair for pair in data.splits.get("train", ()) if pair.label != UNKNOWN_LABEL]
    if not train_uses(config):
        return labelled
    scored = {_sentences(pair) for split in splits for pair in data.splits[split]}
    pool = [pair for pair in labelled if _sentences(pair) not in scored]
    if dropped := len(labelled) - len(pool):
        logger.warning(
            "%d training pairs are among those that are scored, and are not used", dropped
        )
    if not pool:
        raise UserError(
            f"{train_uses(config)[0]}: every training pair is among those that are scored; "
            "expected others."
        )
    return pool


def _check_held(config: PromptConfig, held: Sequence[Example], label_names: Sequence[str]) -> None:
    labels = [pair.label for pair in held]
    counts = np.bincount(labels, minlength=len(label_names)).tolist()
    least = min(counts)
    if least < 2:
        raise UserError(
            f"--num_calibration_pairs: got {config.num_calibration_pairs}, and of the {len(held)} "
            f"drawn {least} are {label_names[counts.index(least)]}; expected at least 2 of each "
            "label."
        )


def _sentences(pair: Example) -> frozenset[str]:
    return frozenset((pair.sentence1, pair.sentence2))
