"""What the held-out part of train decides: the metric watched, the best checkpoint, a threshold."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import TrainerState, TrainingArguments

from peft_mrpc.config import TrainConfig
from peft_mrpc.data.examples import DataSplits
from peft_mrpc.errors import TrainingDiverged, logger
from peft_mrpc.evaluation.metrics import compute_metrics
from peft_mrpc.evaluation.thresholds import predict_labels, tune_threshold
from peft_mrpc.models.batched_inference import classifier_probabilities
from peft_mrpc.models.classifier import Classifier
from peft_mrpc.runs.writer import describe_data
from peft_mrpc.training.selection import SELECTION, selection_seed

# What --metric_for_best_model calls our metrics.
SCORED_METRICS = {"accuracy": "accuracy", "f1": "macro_f1", "roc_auc": "roc_auc"}


def score_logits(prediction: Any, classifier: Classifier) -> dict[str, float]:
    """What `--metric_for_best_model` can name beside the loss, of logits, [N, C]."""
    logits = torch.tensor(prediction.predictions)
    if not logits.isfinite().all():
        raise TrainingDiverged
    probabilities = classifier_probabilities(logits)
    predictions = predict_labels(probabilities, classifier.threshold)
    values = compute_metrics(prediction.label_ids, predictions, probabilities, classifier.labels)
    found = {name: values[key] for name, key in SCORED_METRICS.items()}
    return {name: value for name, value in found.items() if value is not None}


def describe_selection(
    config: TrainConfig, arguments: TrainingArguments, data: DataSplits, state: TrainerState
) -> dict[str, Any] | None:
    """What was chosen on which pairs, for `run.json`; None where all training pairs trained.

    `best_step`, `best_epoch` and `best_metric` are those of the model that was kept; None where it
    is the last one.
    """
    if SELECTION not in data.splits:
        return None
    is_best = arguments.load_best_model_at_end and state.best_model_checkpoint is not None
    best_step = state.best_global_step if is_best else None
    epochs = [row["epoch"] for row in state.log_history if row.get("step") == best_step]
    return {
        "fraction": config.selection_fraction,
        "seed": selection_seed(arguments),
        **describe_data(data, [SELECTION])["splits"][SELECTION],
        "metric": arguments.metric_for_best_model,
        "best_step": best_step,
        "best_epoch": epochs[0] if epochs else None,
        "best_metric": state.best_metric if is_best else None,
        "last_step": state.global_step,
        "stopped_early": state.global_step < state.max_steps,
    }


def say_chosen(found: Mapping[str, Any] | None) -> None:
    """Say which checkpoint was kept, and whether it ended the training.

    Args:
        found: Of `describe_selection`.
    """
    if found is None or found["best_step"] is None:
        return
    metric = found["metric"].removeprefix("eval_")
    logger.info(
        "kept: step %d of %d, with the best %s on %d held-out pairs (%.4f)%s",
        *(found["best_step"], found["last_step"], metric, found["num_examples"]),
        *(found["best_metric"], "; stopped early" if found["stopped_early"] else ""),
    )


def choose_threshold(
    arguments: TrainingArguments, data: DataSplits, classifier: Classifier
) -> float:
    """The threshold that is best on the held-out part of train, for accuracy or, if asked, F1."""
    pairs = data.splits[SELECTION]
    scores = classifier.predict_proba(pairs, arguments.per_device_eval_batch_size)[:, 1]
    wanted = (arguments.metric_for_best_model or "").removeprefix("eval_")
    metric = "f1" if wanted == "f1" else "accuracy"
    threshold = tune_threshold(np.array([pair.label for pair in pairs]), scores, metric)
    logger.info("threshold %.4f: the best %s on %d held-out pairs", threshold, metric, len(pairs))
    return threshold
