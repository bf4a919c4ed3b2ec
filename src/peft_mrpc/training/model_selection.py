"""Model selection on a validation split carved from train: checkpoint, early stopping, threshold.

The splits that a Run reports are never used for it.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import TrainerState, TrainingArguments

from peft_mrpc.config import TrainConfig
from peft_mrpc.data.examples import DataSplits, label_counts
from peft_mrpc.data.splits import stratified_split
from peft_mrpc.errors import TrainingDiverged, unknown_name
from peft_mrpc.evaluation.metrics import SELECTION_METRICS, compute_metrics
from peft_mrpc.evaluation.thresholds import predict_labels, tune_threshold
from peft_mrpc.models.batched_inference import classifier_probabilities
from peft_mrpc.models.classifier import Classifier
from peft_mrpc.runs.writer import describe_data
from peft_mrpc.serialization import is_true

logger = logging.getLogger(__name__)

# Name of the split that is carved from train.
SELECTION = "selection"


def implied_training_arguments(
    config: TrainConfig, fields: Mapping[str, Any], is_saving_explicit: bool
) -> dict[str, Any]:
    """Return the Trainer's settings that early stopping and the best checkpoint need.

    Args:
        config: Whether the training stops early.
        fields: The fields of `TrainingArguments` that the user or the recipe sets.
        is_saving_explicit: Whether the user set `save_strategy`. If not, the best checkpoint alone
            is kept while training, and none afterwards.
    """
    stops_early = config.early_stopping_patience is not None
    implied: dict[str, Any] = {}
    if stops_early:
        # A resumed training continues to count the evaluations without improvement.
        implied |= {
            "metric_for_best_model": "loss",
            "restore_callback_states_from_checkpoint": True,
        }
    if is_true(fields.get("load_best_model_at_end", stops_early)):
        implied |= {"load_best_model_at_end": True}
        implied |= {} if is_saving_explicit else {"save_strategy": "best", "save_total_limit": 1}
    return {"eval_strategy": "epoch", **implied} if implied else {}


def uses_selection_split(config: TrainConfig, args: TrainingArguments) -> bool:
    """Whether anything is evaluated on a part of train."""
    return bool(args.eval_strategy != "no" or config.threshold == "auto")


def carve_selection_split(
    config: TrainConfig, args: TrainingArguments, data: DataSplits
) -> DataSplits:
    """Move a part of train to the split `selection`.

    The seed of the split is `data_seed`, or `seed` if that is not set. The data must have passed
    `selection_data_faults`.
    """
    train, selection = stratified_split(
        data.splits["train"], config.selection_fraction, selection_seed(args)
    )
    splits = {**data.splits, "train": train, SELECTION: selection}
    return replace(data, splits=splits)


def selection_seed(args: TrainingArguments) -> int:
    """Return the random seed of the split."""
    return int(args.seed if args.data_seed is None else args.data_seed)


def selection_data_faults(
    args: TrainingArguments, reported: Sequence[str], data: DataSplits
) -> list[str]:
    """Return the reasons why no validation split can be carved from these training examples.

    Args:
        args: The Trainer's.
        reported: The splits that the Run reports.
        data: Its `train` is still whole.
    """
    counts = Counter(example.label for example in data.splits["train"])
    faults = [
        f"selection_fraction: got 1 training example with the label {data.label_names[label]}; "
        "expected at least 2 of each label, one to train on and one to select on."
        for label, count in sorted(counts.items())
        if count < 2
    ]
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if metric == "roc_auc" and len(counts) < len(data.label_names):
        faults.append(
            f"metric_for_best_model: got roc_auc, but the training examples have {len(counts)} of "
            f"{len(data.label_names)} labels; expected loss, accuracy or f1."
        )
    if "train" in reported:
        faults.append(
            "split: got train, a part of which is held out for model selection; expected other "
            "splits, or eval_strategy no and a fixed threshold."
        )
    return faults


def selection_faults(config: TrainConfig, args: TrainingArguments) -> list[str]:
    """Return the conflicts among the options of model selection."""
    faults = []
    patience, metric = config.early_stopping_patience, args.metric_for_best_model
    if args.eval_strategy == "no":
        needs = {
            "early_stopping_patience": patience is not None,
            "load_best_model_at_end": args.load_best_model_at_end and patience is None,
            "eval_on_start": args.eval_on_start,
        }
        faults += [
            f"{name}: got eval_strategy no as well; expected epoch or steps. Remove one of the two."
            for name, is_set in needs.items()
            if is_set
        ]
    if args.save_strategy == "best" and not metric:
        faults.append(
            "save_strategy: got best without metric_for_best_model; expected one of "
            f"{', '.join(SELECTION_METRICS)} for it."
        )
    if metric is None:
        return faults
    if args.prediction_loss_only and not metric.endswith("loss"):
        faults.append(
            f"prediction_loss_only: got true, but metric_for_best_model is {metric}. Remove one of "
            "the two."
        )
    if metric.removeprefix("eval_") not in SELECTION_METRICS:
        faults += unknown_name("metric_for_best_model", metric, SELECTION_METRICS).faults
    if args.greater_is_better is not None and args.greater_is_better == metric.endswith("loss"):
        faults.append(
            f"greater_is_better: got {str(args.greater_is_better).lower()} for {metric}, which "
            "would select the worst model. Remove it."
        )
    return faults


def log_training_data(data: DataSplits) -> None:
    """Log the sizes of the training and the selection split, and the label counts."""
    num_train, num_selection = (len(data.splits.get(s, ())) for s in ("train", SELECTION))
    if num_selection:
        logger.info(
            "model selection: %d of %d training examples are held out",
            num_selection,
            num_train + num_selection,
        )
    else:
        logger.info("model selection: none, all %d training examples train", num_train)
    counts = label_counts(data.splits["train"], data.label_names)
    logger.info("training examples: %s", ", ".join(f"{n:,} {name}" for name, n in counts.items()))


def compute_eval_metrics(prediction: Any, classifier: Classifier) -> dict[str, float]:
    """Return the metrics that `metric_for_best_model` accepts besides the loss.

    Args:
        prediction: The Trainer's: `predictions` are logits, [N, C], `label_ids` labels, [N].
        classifier: Its labels and its threshold are used.
    Raises:
        TrainingDiverged: If a logit is not finite.
    """
    logits = torch.tensor(prediction.predictions)
    if not logits.isfinite().all():
        raise TrainingDiverged
    probabilities = classifier_probabilities(logits)
    predictions = predict_labels(probabilities, classifier.threshold)
    values = compute_metrics(prediction.label_ids, predictions, probabilities, classifier.labels)
    metrics = {name: values.get(key) for name, key in SELECTION_METRICS.items()}
    # The Trainer computes the loss; areas are None if a label has no examples.
    return {name: value for name, value in metrics.items() if value is not None}


def describe_selection(
    config: TrainConfig, args: TrainingArguments, data: DataSplits, state: TrainerState
) -> dict[str, Any] | None:
    """Return the entry `selection` of `run.json`; None without a selection split.

    `best_step`, `best_epoch` and `best_metric` are those of the selected checkpoint; None if the
    last model is used.
    """
    if SELECTION not in data.splits:
        return None
    is_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
    best_step = state.best_global_step if is_best else None
    epochs = [row["epoch"] for row in state.log_history if row.get("step") == best_step]
    return {
        "fraction": config.selection_fraction,
        "seed": selection_seed(args),
        **describe_data(data, [SELECTION])["splits"][SELECTION],
        "metric": args.metric_for_best_model,
        "best_step": best_step,
        "best_epoch": epochs[0] if epochs else None,
        "best_metric": state.best_metric if is_best else None,
        "last_step": state.global_step,
        "stopped_early": state.global_step < state.max_steps,
    }


def log_best_checkpoint(selection: Mapping[str, Any] | None) -> None:
    """Log the selected checkpoint, if there is one.

    Args:
        selection: The entry of `describe_selection`.
    """
    if selection is None or selection["best_step"] is None:
        return
    logger.info(
        "best checkpoint: step %d of %d, %s %.4f on %d examples carved from train%s",
        selection["best_step"],
        selection["last_step"],
        selection["metric"].removeprefix("eval_"),
        selection["best_metric"],
        selection["num_examples"],
        "; stopped early" if selection["stopped_early"] else "",
    )


def select_threshold(args: TrainingArguments, data: DataSplits, classifier: Classifier) -> float:
    """Return the threshold with the best accuracy on the selection split.

    With `metric_for_best_model: f1` it is the threshold with the best macro F1.
    """
    examples = data.splits[SELECTION]
    scores = classifier.predict_proba(examples, args.per_device_eval_batch_size)[:, 1]
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    metric = "f1" if name == "f1" else "accuracy"
    labels = np.array([example.label for example in examples])
    threshold = tune_threshold(labels, scores, metric)
    logger.info(
        "threshold: %.4f, the best %s on %d examples carved from train",
        *(threshold, metric, len(examples)),
    )
    return threshold
