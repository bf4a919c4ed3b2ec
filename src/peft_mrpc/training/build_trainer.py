"""The Hugging Face Trainer over encoded pairs."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import convert_file_size_to_int
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    PretrainedConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from peft_mrpc.config import TrainConfig
from peft_mrpc.data.augmentation import RandomSwapDataset
from peft_mrpc.data.encoding import add_labels
from peft_mrpc.data.examples import DataSplits, label_counts
from peft_mrpc.data.loading import warn_conflicting_labels
from peft_mrpc.errors import UserError, logger, raise_faults
from peft_mrpc.evaluation.thresholds import threshold_faults
from peft_mrpc.models.architecture import describe_trainable, num_virtual_tokens
from peft_mrpc.models.classifier import Classifier
from peft_mrpc.models.collator import ClassificationCollator
from peft_mrpc.models.loading import position_limit
from peft_mrpc.precision import padding_step, trainer_precision
from peft_mrpc.training.activation_cache.callback import (
    ActivationCacheCallback,
    ActivationCacheError,
    cache_refusal,
)
from peft_mrpc.training.activation_cache.store import ActivationCache, CachedCollator
from peft_mrpc.training.callbacks import AttentionCallback, tensorboard_logs, training_attention
from peft_mrpc.training.checkpoints import CheckpointMetadata, RelocateBestCheckpoint
from peft_mrpc.training.losses import build_class_weights, build_loss
from peft_mrpc.training.model_selection import compute_eval_metrics
from peft_mrpc.training.request import TrainJob
from peft_mrpc.training.resuming import training_fingerprint
from peft_mrpc.training.selection import SELECTION
from peft_mrpc.training.trainer import ClassificationTrainer

FINE_TUNING_RATE = 1e-3
# What labels say of two sentences in either order.
SYMMETRIC_WORDS = ("duplicate", "equivalent", "paraphrase", "same", "similar")


def pair_length(request: TrainJob, model_config: PretrainedConfig, tokenizer: Any) -> int:
    """The most tokens that a pair may have, beside virtual ones.

    Raises:
        UserError: If these leave the pair no room.
    """
    virtual = int(getattr(request.options, "num_virtual_tokens", None) or 0)
    limit = position_limit(model_config, tokenizer)
    if virtual + 8 > limit:
        raise UserError(
            f"--num_virtual_tokens: got {virtual}; the model has {limit} positions for these and "
            "the pair together."
        )
    length = min(request.config.max_length, limit) - virtual
    if length < 8:
        raise UserError(
            f"--max_length: got {request.config.max_length}, of which {virtual} are virtual "
            "tokens; expected at least 8 more for the pair."
        )
    return length


def check_against_data(config: TrainConfig, arguments: TrainingArguments, data: DataSplits) -> None:
    """Refuse what these pairs cannot give.

    Raises:
        UserError: If there is nothing to train on, too little for a batch, or the labels are not
            as many as the threshold or the class weights are for.
    """
    faults = threshold_faults(config.threshold, len(data.label_names))
    if "train" not in data.splits:
        faults.append(f"{data.name}: has no train split; give --train_file.")
    elif arguments.dataloader_drop_last:
        size, count = len(data.splits["train"]), arguments.world_size
        if size < arguments.train_batch_size * count:
            each = "" if count == 1 else f" on each of {count} processes"
            faults.append(
                f"--dataloader_drop_last: {size} training pairs fill no batch of "
                f"{arguments.train_batch_size}{each}; lower --per_device_train_batch_size."
            )
    raise_faults(faults)
    _class_weights(config, data)
    counts = label_counts(data.splits["train"], data.label_names)
    warn_conflicting_labels(data.splits["train"])
    if absent := [name for name, count in counts.items() if not count]:
        logger.warning(
            "%s: no training pair is %s, which is never learned", data.name, " or ".join(absent)
        )


def check_activation_cache(config: TrainConfig, arguments: TrainingArguments, model: Any) -> None:
    """Check that a requested activation cache can be used.

    Raises:
        ActivationCacheError: If not.
    """
    if config.activation_cache == "on" and (refusal := cache_refusal(model, arguments)):
        raise ActivationCacheError(refusal)


def _class_weights(config: TrainConfig, data: DataSplits) -> torch.Tensor | None:
    labels = [pair.label for pair in data.splits["train"]]
    return build_class_weights(config.class_weights, labels, data.label_names)


def build_trainer(
    request: TrainJob,
    data: DataSplits,
    classifier: Classifier,
    staging: str,
    activation_cache: ActivationCache | None = None,
) -> tuple[ClassificationTrainer, int]:
    """The Trainer over encoded pairs, and how many training pairs were cut."""
    features, num_cut = classifier.encode(data.splits["train"])
    if num_cut:
        logger.info(
            "%d of %d training pairs (%.1f%%) are longer than %d tokens and were cut",
            *(num_cut, len(features), 100 * num_cut / len(features), classifier.max_length),
        )
    arguments = request.arguments
    arguments.output_dir = f"{staging}/checkpoints"
    # Rows are known by their token types, though the model may name none; scoring has them too.
    arguments.remove_unused_columns = False
    arguments.dataloader_pin_memory &= torch.cuda.is_available()  # only a warning without one
    if getattr(request.options, "is_prompt_learning", False):
        _warn_of_low_rate(arguments.learning_rate, request.config.method)
    loss = build_loss(
        _class_weights(request.config, data),
        request.config.focal_gamma,
        arguments.label_smoothing_factor,
    )
    collator = CachedCollator(_pair_collator(request, classifier))
    train_rows = _training_rows(request, data, classifier, features)
    held_out = _evaluation_rows(data, classifier)
    callbacks = _callbacks(request, collator, train_rows, held_out, activation_cache)
    callbacks.append(CheckpointMetadata(partial(training_fingerprint, request, data)))
    with tensorboard_logs(arguments, request.output_dir):
        trainer = ClassificationTrainer(
            head_learning_rate=request.config.head_learning_rate,
            layer_decay=request.config.layer_decay,
            sam_rho=request.config.sam_rho,
            model=classifier.model,
            args=arguments,
            data_collator=collator,
            train_dataset=train_rows,
            eval_dataset=held_out,
            processing_class=classifier.tokenizer,
            compute_loss_func=loss,
            compute_metrics=partial(compute_eval_metrics, classifier=classifier),
            callbacks=callbacks,
        )
    if not request.method.freezes(request.options):
        logger.info("%s: %s", request.config.method, describe_trainable(classifier.model))
    return trainer, num_cut


def _pair_collator(request: TrainJob, classifier: Classifier) -> ClassificationCollator:
    """What pads a batch, as far as its precision or the user wants it padded."""
    step = request.config.pad_to_multiple_of or padding_step(trainer_precision(request.arguments))
    return ClassificationCollator(
        *(classifier.tokenizer, classifier.model.config, step, classifier.max_length),
        added=num_virtual_tokens(classifier.model),
    )


def trained_model(trainer: Trainer) -> Any:
    """The model without what the Trainer put around it.

    Mixed precision wraps its forward: what is scored must be what will be reloaded.
    """
    return trainer.accelerator.unwrap_model(
        trainer.model_wrapped, keep_fp32_wrapper=False, keep_torch_compile=False
    )


def is_symmetric(label_names: Sequence[str]) -> bool:
    """Whether the last of two labels says what holds of the sentences in either order."""
    return len(label_names) == 2 and any(
        word in SYMMETRIC_WORDS for word in re.split(r"[\W_]+", label_names[-1].lower())
    )


def settle_order(config: TrainConfig, data: DataSplits) -> None:
    """Make `--swap_sentences auto` what it comes to, which is recorded."""
    if config.swap_sentences == "auto":
        config.swap_sentences = str(is_symmetric(data.label_names)).lower()


def _training_rows(
    request: TrainJob,
    data: DataSplits,
    classifier: Classifier,
    features: Dataset,
) -> Any:
    rows = add_labels(features, data.splits["train"])
    settle_order(request.config, data)
    if request.config.swap_sentences == "false":
        return rows
    logger.info("each pair trains in either order, by chance (--swap_sentences false: as it comes)")
    pairs = data.splits["train"]
    swapped, _ = classifier.encode(
        [replace(pair, sentence1=pair.sentence2, sentence2=pair.sentence1) for pair in pairs]
    )
    return RandomSwapDataset(rows, add_labels(swapped, pairs), request.arguments.seed)


def _orders(train_rows: Dataset | RandomSwapDataset) -> list[Any]:
    """Training rows as they come, and with their sentences swapped if they train so too."""
    return list(train_rows.orders) if isinstance(train_rows, RandomSwapDataset) else [train_rows]


def _warn_of_low_rate(learning_rate: float, method: str) -> None:
    if learning_rate < FINE_TUNING_RATE:
        logger.warning(
            "--learning_rate: %g is a rate for fine-tuning; %s learns little below 1e-2",
            *(learning_rate, method),
        )


def _evaluation_rows(data: DataSplits, classifier: Classifier) -> Dataset | None:
    """The held-out pairs for the Trainer's own evaluation; None where nothing is chosen."""
    if SELECTION not in data.splits:
        return None
    features, _ = classifier.encode(data.splits[SELECTION])
    return add_labels(features, data.splits[SELECTION])


def _callbacks(
    request: TrainJob,
    collator: CachedCollator,
    train_rows: Any,
    held_out: Dataset | None,
    activation_cache: ActivationCache | None,
) -> list[TrainerCallback]:
    """The method's own, ours, and what runs frozen layers once over rows in all their orders."""
    callbacks = [*request.method.callbacks(request.options), *_own_callbacks(request)]
    mode = request.config.activation_cache
    if mode != "off" and request.method.freezes(request.options):
        parts = [*_orders(train_rows), *([held_out] if held_out is not None else [])]
        if activation_cache is None:
            activation_cache = build_activation_cache(request)
        callbacks.append(ActivationCacheCallback(mode, activation_cache, collator, parts))
    return callbacks


def build_activation_cache(request: TrainJob, num_trainings: int = 1) -> ActivationCache:
    """An empty cache for this training and others after it."""
    memory = convert_file_size_to_int(request.config.activation_cache_memory)
    return ActivationCache(memory, num_trainings)


def _own_callbacks(request: TrainJob) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [RelocateBestCheckpoint()]
    patience = request.config.early_stopping_patience
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(patience))
    is_bf16 = trainer_precision(request.arguments) == "bf16"
    device = request.arguments.device.type
    if attention := training_attention(request.config.attention, device, is_bf16):
        callbacks.append(AttentionCallback(attention))
    return callbacks
