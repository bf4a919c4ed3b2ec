"""Build the model and the Trainer of a resolved job."""

import copy
import dataclasses
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, Trainer, TrainerCallback

from peft_mrpc.data.encoding import add_labels
from peft_mrpc.data.examples import DataSplits, Example, label_counts
from peft_mrpc.distributed import is_sharded
from peft_mrpc.errors import UserError, one_line
from peft_mrpc.methods.layer_freeze import describe_schedule, warn_layers_never_unfrozen
from peft_mrpc.methods.peft_adapters import init_from_shapes_only
from peft_mrpc.models.architecture import describe_trainable, num_virtual_tokens
from peft_mrpc.models.classifier import ClassificationCollator, Classifier
from peft_mrpc.models.loading import init_classifier, load_classification_model
from peft_mrpc.training.activation_cache.callback import ActivationCacheCallback, check_cacheable
from peft_mrpc.training.activation_cache.store import ActivationCache, CachedCollator
from peft_mrpc.training.callbacks import (
    ContextCallback,
    attention_implementation,
    log_instead_of_printing,
    tensorboard_logs,
    validate_attention,
)
from peft_mrpc.training.checkpoints import (
    CheckpointMetadata,
    RelocateBestCheckpoint,
    training_fingerprint,
)
from peft_mrpc.training.first_token import first_token_only
from peft_mrpc.training.job import ResolvedJob
from peft_mrpc.training.losses import build_class_weights, build_loss
from peft_mrpc.training.model_selection import SELECTION, compute_eval_metrics
from peft_mrpc.training.samplers import RandomSwapDataset
from peft_mrpc.training.trainer import ClassificationTrainer

logger = logging.getLogger(__name__)

# Learning rates for weights are below this; virtual tokens need higher ones.
MIN_PROMPT_LEARNING_RATE = 1e-3


def build_classifier(
    resolved: ResolvedJob, tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str]
) -> Classifier:
    """Load the model with its head and apply the method.

    Without random numbers of its own: `set_seed` before it determines the head's initial weights.

    Args:
        resolved: The job.
        tokenizer: The base model's.
        label_names: Names of the C labels.
    Raises:
        UserError: If the weights cannot be loaded, or an option does not fit the model.
    """
    config = resolved.config
    model = load_classification_model(
        resolved.source,
        label_names,
        tokenizer,
        str(config.pooling),
        quantization=config.quantization,
        dropout=config.dropout,
        prompt_position=config.prompt_position,
    )
    adapted = resolved.method.apply(model, resolved.method_options)
    if config.activation_cache == "on":
        check_cacheable(adapted, resolved.training_args)
    warn_layers_never_unfrozen(resolved.method_options, resolved.training_args)
    if config.attention is not None and "attention" in resolved.explicit:
        validate_attention(adapted, config.attention)
    return Classifier(
        adapted,
        tokenizer,
        list(label_names),
        resolved.max_length,
        config.quantization,
        # `auto` is selected after the training.
        0.5 if config.threshold == "auto" else float(config.threshold),
        resolved.source.head_layer,
    )


def describe_training_parameters(resolved: ResolvedJob, model: Any) -> str:
    """Describe the trainable parameters of an adapted model."""
    return describe_trainable(model) + describe_schedule(resolved.method_options)


def build_empty_model(resolved: ResolvedJob) -> Any:
    """Build the adapted model without weights (shapes only), to count parameters or check options.

    Raises:
        UserError: If the method's options do not fit the model.
    """
    empty = init_classifier(resolved.model_config, str(resolved.config.pooling))
    return resolved.method.apply(empty, init_from_shapes_only(resolved.method_options))


def build_trainer(
    resolved: ResolvedJob,
    data: DataSplits,
    classifier: Classifier,
    folder: Path | str,
    *,
    checkpoint: str | None = None,
    activation_cache: ActivationCache | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[ClassificationTrainer, int]:
    """Build the Trainer.

    Args:
        resolved: The job.
        data: With the split `selection`, if the model is selected.
        classifier: The model to train.
        folder: Checkpoints go to its subdirectory `checkpoints`.
        checkpoint: The checkpoint that the training continues from.
        activation_cache: A cache to share with other trainings; by default a new one.
        callbacks: More callbacks.
    Returns:
        The Trainer, and the number of training examples that were truncated.
    Raises:
        UserError: If the Trainer rejects its arguments.
    """
    config = resolved.config
    training_args = copy.copy(resolved.training_args)
    training_args.output_dir = f"{folder}/checkpoints"
    training_args.resume_from_checkpoint = checkpoint
    _warn_low_learning_rate(resolved)
    is_swapped = config.swap_sentences == "true"
    datasets, num_truncated = _encode_train(data.splits["train"], classifier, is_swapped)
    eval_dataset = None
    if SELECTION in data.splits:
        encoded, _ = classifier.encode(data.splits[SELECTION])
        eval_dataset = add_labels(encoded, data.splits[SELECTION])
    assert config.pad_to_multiple_of is not None, "resolved"
    collator = CachedCollator(
        ClassificationCollator(
            classifier.tokenizer,
            classifier.model.config,
            config.pad_to_multiple_of,
            classifier.max_length,
            added=num_virtual_tokens(classifier.model),
        )
    )
    all_callbacks = [
        *resolved.method.callbacks(classifier.model, resolved.method_options),
        *_standard_callbacks(resolved, partial(training_fingerprint, resolved, data)),
        *callbacks,
    ]
    if config.activation_cache != "off" and resolved.method.frozen_stages:
        cache = activation_cache or ActivationCache()
        read = [*datasets, *([eval_dataset] if eval_dataset is not None else [])]
        all_callbacks.append(
            ActivationCacheCallback(config.activation_cache, cache, collator, read)
        )
    trainer = _build(
        resolved,
        head_learning_rate=config.head_learning_rate,
        layer_decay=config.layer_decay,
        sam_rho=config.sam_rho,
        model=classifier.model,
        args=training_args,
        data_collator=collator,
        train_dataset=datasets[0]
        if len(datasets) == 1
        else RandomSwapDataset(datasets[0], datasets[1], training_args.seed),
        eval_dataset=eval_dataset,
        processing_class=classifier.tokenizer,
        compute_loss_func=_build_loss(resolved, data),
        compute_metrics=partial(compute_eval_metrics, classifier=classifier),
        callbacks=all_callbacks,
    )
    log_instead_of_printing(trainer)
    logger.info("%s: %s", config.method, describe_training_parameters(resolved, classifier.model))
    return trainer, num_truncated


def unwrap_trained_model(trainer: Trainer) -> Any:
    """Return the model without the Trainer's wrappers.

    Mixed precision wraps its forward; the model that is scored must equal the one that is saved.
    """
    return trainer.accelerator.unwrap_model(
        trainer.model_wrapped, keep_fp32_wrapper=False, keep_torch_compile=False
    )


def _encode_train(
    examples: Sequence[Example], classifier: Classifier, is_swapped: bool
) -> tuple[list[Dataset], int]:
    """Encode the training examples, also with swapped sentences if they are augmented so.

    Returns:
        The examples with their labels, once or in both orders; and how many were truncated.
    """
    encoded, num_truncated = classifier.encode(examples)
    datasets = [add_labels(encoded, examples)]
    if num_truncated:
        logger.info(
            "%d of %d training examples (%.1f%%) are longer than %d tokens and were truncated",
            num_truncated,
            len(examples),
            100 * num_truncated / len(examples),
            classifier.max_length,
        )
    if is_swapped:
        swapped, _ = classifier.encode([_swap(example) for example in examples])
        datasets.append(add_labels(swapped, examples))
        logger.info("the sentences of each training example are swapped with probability 0.5")
    return datasets, num_truncated


def _build(resolved: ResolvedJob, **arguments: Any) -> ClassificationTrainer:
    with tensorboard_logs(resolved.training_args, resolved.output_dir):
        try:
            return ClassificationTrainer(**arguments)
        except UserError:
            raise
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise UserError(f"TrainingArguments: {one_line(error)}") from error


def _build_loss(resolved: ResolvedJob, data: DataSplits) -> Callable[..., torch.Tensor]:
    counts = label_counts(data.splits["train"], data.label_names)
    return build_loss(
        build_class_weights(resolved.config.class_weights, counts),
        resolved.training_args.label_smoothing_factor,
    )


def _swap(example: Example) -> Example:
    if example.sentence2 is None:
        return example
    return dataclasses.replace(example, sentence1=example.sentence2, sentence2=example.sentence1)


def _warn_low_learning_rate(resolved: ResolvedJob) -> None:
    rate = resolved.training_args.learning_rate
    is_prompt = getattr(resolved.method_options, "is_prompt_learning", False)
    if is_prompt and rate < MIN_PROMPT_LEARNING_RATE:
        logger.warning(
            "learning_rate: %g is a rate for fine-tuning; %s learns little below 1e-2",
            rate,
            resolved.config.method,
        )


def _standard_callbacks(
    resolved: ResolvedJob, fingerprint: Callable[[], dict[str, Any]]
) -> list[TrainerCallback]:
    config, args = resolved.config, resolved.training_args
    callbacks: list[TrainerCallback] = [RelocateBestCheckpoint(), CheckpointMetadata(fingerprint)]
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    contexts: list[Callable[[Any], AbstractContextManager[None]]] = []
    if config.attention is not None:
        contexts.append(partial(attention_implementation, name=config.attention))
    if not (is_sharded(args) or args.torch_compile):
        contexts.append(first_token_only)
    return [*callbacks, ContextCallback(contexts)]
