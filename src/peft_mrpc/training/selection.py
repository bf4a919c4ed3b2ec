"""What is chosen on: a part of the training pairs, never a split that is reported."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainingArguments

from peft_mrpc.config import TrainConfig
from peft_mrpc.data.examples import DataSplits, Example, label_counts
from peft_mrpc.errors import logger, raise_faults, unknown_name
from peft_mrpc.evaluation.thresholds import threshold_faults
from peft_mrpc.serialization import is_true

SELECTION = "selection"  # the held-out part, as a split beside the others
SELECTION_METRICS = ("loss", "accuracy", "f1", "roc_auc")


def hold_out(
    pairs: Sequence[Example], fraction: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Part the training pairs into those to train on and those to choose on.

    Each label gives its share, and at least one pair to each part.

    Args:
        pairs: Labelled training pairs.
        fraction: Share to choose on, between 0 and 1.
        seed: Fixes which pairs are held out.
    Returns:
        The pairs to train on and the pairs to choose on, each in the order they came in.
    """
    rows_of: defaultdict[int, list[int]] = defaultdict(list)
    for row, pair in enumerate(pairs):
        rows_of[pair.label].append(row)
    draw = random.Random(seed)
    held: set[int] = set()
    for _, rows in sorted(rows_of.items()):
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held.update(draw.sample(rows, count))
    kept = tuple(pair for row, pair in enumerate(pairs) if row not in held)
    return kept, tuple(pairs[row] for row in sorted(held))


def hold_out_selection(
    config: TrainConfig, arguments: TrainingArguments, splits: Sequence[str], data: DataSplits
) -> DataSplits:
    """Make the split `selection` of a part of train, where something is chosen or watched on it.

    Args:
        config: The share, and the threshold wanted.
        arguments: Whether the Trainer evaluates as it trains.
        splits: The splits that are reported.
        data: The data as it came.
    Raises:
        UserError: As `split_selection`.
    """
    if "train" not in data.splits:
        return data
    if arguments.eval_strategy == "no" and config.threshold != "auto":
        return data
    return split_selection(config, arguments, splits, data)


def split_selection(
    config: TrainConfig, arguments: TrainingArguments, splits: Sequence[str], data: DataSplits
) -> DataSplits:
    """Make the split `selection` of a part of train.

    Which pairs these are is fixed by `--data_seed`, or `--seed` where that is not given.

    Raises:
        UserError: If the training pairs are too few, or train itself is reported.
    """
    pairs = data.splits["train"]
    raise_faults(_data_faults(arguments, splits, data))
    kept, held = hold_out(pairs, config.selection_fraction, selection_seed(arguments))
    return DataSplits(data.name, data.label_names, {**data.splits, "train": kept, SELECTION: held})


def say_held_out(data: DataSplits) -> None:
    """Say how many training pairs are chosen on, and how many of each label train."""
    kept, held = (len(data.splits.get(split, ())) for split in ("train", SELECTION))
    if held:
        logger.info("%d of %d training pairs are held out to choose on", held, kept + held)
    else:
        logger.info("all %d training pairs train: nothing is chosen on a part of them", kept)
    counts = label_counts(data.splits["train"], data.label_names)
    logger.info("training pairs: %s", ", ".join(f"{n:,} {name}" for name, n in counts.items()))


def _data_faults(
    arguments: TrainingArguments, splits: Sequence[str], data: DataSplits
) -> list[str]:
    """What keeps a part of these training pairs from being chosen on."""
    counts = Counter(pair.label for pair in data.splits["train"])
    faults = [
        f"--selection_fraction: got 1 training pair that is {data.label_names[label]}; expected at "
        "least 2 of each label, to train on and to choose on."
        for label, count in sorted(counts.items())
        if count < 2
    ]
    is_area = (arguments.metric_for_best_model or "").removeprefix("eval_") == "roc_auc"
    if is_area and len(counts) < len(data.label_names):
        faults.append(
            f"--metric_for_best_model: got roc_auc, but the training pairs have {len(counts)} of "
            f"{len(data.label_names)} labels; expected loss, accuracy or f1."
        )
    if "train" in splits:
        faults.append(
            "--split: got train, of which a part is held out to choose on; expected other splits, "
            "or --eval_strategy no and no --threshold auto."
        )
    return faults


def selection_seed(arguments: TrainingArguments) -> int:
    """What fixes which pairs are held out, and which train together."""
    return int(arguments.seed if arguments.data_seed is None else arguments.data_seed)


def implied_arguments(given: Mapping[str, Any], is_saving_asked: bool) -> dict[str, Any]:
    """What early stopping and the best checkpoint need of the Trainer, weaker than what was given.

    Args:
        given: Flags and recipe.
        is_saving_asked: Whether the user gave `--save_strategy`. If not, only the best checkpoint
            is kept while training, and nothing after.
    """
    stops_early = given.get("early_stopping_patience") is not None
    implied: dict[str, Any] = {}
    if stops_early:
        # Its count of evaluations without progress goes on in a resumed run.
        implied |= {
            "metric_for_best_model": "loss",
            "restore_callback_states_from_checkpoint": True,
        }
    if is_true(given.get("load_best_model_at_end", stops_early)):
        implied |= {"load_best_model_at_end": True}
        implied |= {} if is_saving_asked else {"save_strategy": "best", "save_total_limit": 1}
    return {"eval_strategy": "epoch", **implied} if implied else {}


def selection_faults(config: TrainConfig, arguments: TrainingArguments) -> list[str]:
    """What is wrong with the flags of choosing, whatever the data."""
    faults = threshold_faults(config.threshold)
    if not (math.isfinite(config.selection_fraction) and 0 < config.selection_fraction < 1):
        faults.append(
            f"--selection_fraction: got {config.selection_fraction}; expected a number between 0 "
            "and 1."
        )
    patience = config.early_stopping_patience
    if patience is not None and patience < 1:
        faults.append(f"--early_stopping_patience: got {patience}; expected at least 1.")
    asked = "--early_stopping_patience" if patience is not None else "--load_best_model_at_end"
    if arguments.eval_strategy == "no" and (patience or arguments.load_best_model_at_end):
        faults.append(f"{asked}: got --eval_strategy no; expected epoch or steps. Drop one.")
    metric = arguments.metric_for_best_model
    if arguments.save_strategy == "best" and not metric:
        faults.append(
            "--save_strategy: got best, but no --metric_for_best_model; expected one of "
            f"{', '.join(SELECTION_METRICS)} beside it."
        )
    if arguments.prediction_loss_only and metric and not metric.endswith("loss"):
        faults.append(
            f"--prediction_loss_only: got true, but {metric} is looked for at every evaluation; "
            "drop one of them."
        )
    if arguments.eval_on_start and arguments.eval_strategy == "no":
        faults.append("--eval_on_start: got --eval_strategy no; expected epoch or steps beside it.")
    if metric and metric.removeprefix("eval_") not in SELECTION_METRICS:
        faults += unknown_name("--metric_for_best_model", metric, SELECTION_METRICS).faults
    is_greater = arguments.greater_is_better
    if metric and is_greater is not None and is_greater == metric.endswith("loss"):
        faults.append(
            f"--greater_is_better: got {str(is_greater).lower()} for {metric}, of which the worst "
            "would be kept; drop it."
        )
    return faults
