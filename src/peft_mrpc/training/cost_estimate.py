"""The parameters and the cost of a training on this machine, without the model's weights.

Time and memory are measured in a few steps on random weights and synthetic examples.
"""

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from peft_mrpc.config import DataConfig
from peft_mrpc.data.columns import PARAPHRASE_NAMES, split_class_names
from peft_mrpc.data.encoding import encode_examples
from peft_mrpc.data.examples import DataSplits, Example
from peft_mrpc.data.loading import load_data
from peft_mrpc.environment import available_memory, peak_memory, reset_peak_memory
from peft_mrpc.errors import UserError
from peft_mrpc.formatting import format_bytes, format_duration
from peft_mrpc.models.architecture import head_parameter_ids, parameter_counts
from peft_mrpc.models.classifier import Classifier
from peft_mrpc.models.loading import init_classifier
from peft_mrpc.training.activation_cache.bypass import CacheUnavailableError
from peft_mrpc.training.activation_cache.callback import ActivationCacheCallback
from peft_mrpc.training.build import build_empty_model, build_trainer
from peft_mrpc.training.callbacks import package_log_level
from peft_mrpc.training.job import TrainJob
from peft_mrpc.training.resolve import BaseModel, describe_head, resolve
from peft_mrpc.training.validation import prepare_data, validate

WARM_UP_STEPS, TIMED_STEPS = 2, 4
# Bytes of an fp32 parameter, and of its gradient and Adam's two moments if it trains.
BYTES_WEIGHT, BYTES_TRAINING = 4, 12
WORDS = "the company said on monday that its shares rose after the report".split()
# Options of the timed steps: nothing is evaluated, saved or reported.
TIMING_OPTIONS: dict[str, Any] = {
    "max_steps": WARM_UP_STEPS + TIMED_STEPS,
    **dict.fromkeys(("eval_strategy", "save_strategy"), "no"),
    **dict.fromkeys(("eval_on_start", "load_best_model_at_end"), False),
    **{"report_to": "none", "disable_tqdm": True, "early_stopping_patience": None},
    **{"threshold": "0.5", "class_weights": "none"},
}


@dataclass(frozen=True)
class TrainingSet:
    """Size of a training set.

    Attributes:
        num_examples: Number of training examples.
        mean_tokens: Mean length in tokens, special tokens included.
        label_names: Names of the labels, which decide on sentence-swap augmentation.
    """

    num_examples: int
    mean_tokens: int
    label_names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.num_examples:,} examples of {self.mean_tokens} tokens"


@dataclass(frozen=True)
class CostEstimate:
    """Time and memory of a training on this machine.

    Attributes:
        epoch_seconds: Time of one epoch.
        start_seconds: Time before the first step, without the activation cache.
        cache_seconds: Time to compute the cached activations; 0 without the activation cache.
        peak_bytes: Peak memory of the GPU, or of the process on a CPU.
    """

    epoch_seconds: float
    start_seconds: float
    cache_seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        epoch, start, cache = map(
            format_duration, (self.epoch_seconds, self.start_seconds, self.cache_seconds)
        )
        start += f" and {cache} for the activation cache" if self.cache_seconds else ""
        memory = format_bytes(self.peak_bytes)
        return f"about {epoch} per epoch, after {start} to start; peak memory about {memory}"


class StepTimer(TrainerCallback):
    """Record the time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def describe_methods(job: TrainJob, base: BaseModel, methods: Sequence[str]) -> list[str]:
    """Return for each method whether it works on the model, and how many parameters train.

    Args:
        job: The training; its method is replaced.
        base: The base model; its weights are not needed.
        methods: Names of methods.
    Raises:
        UserError: If there is only one method, and it does not work.
    """
    lines = []
    for method in methods:
        try:
            resolved = resolve(job.with_options(method=method), base, PARAPHRASE_NAMES)
            validate(resolved)
            model = build_empty_model(resolved)
        except UserError as error:
            if len(methods) == 1:
                raise
            lines += [f"{method}: rejected. {fault}" for fault in error.faults]
            continue
        trained, total = parameter_counts(model)
        head = head_parameter_ids(model)
        in_head = sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) in head)
        lines.append(
            f"{method}: works; {trained:,} of {total:,} parameters train ({trained / total:.2%}), "
            f"{in_head:,} of them in the head; "
            f"{describe_head(resolved.config.pooling, resolved.source.head_layer)}"
        )
    return lines


def measure_training_set(
    job: TrainJob,
    base: BaseModel,
    num_examples: int | None = None,
    mean_tokens: int | None = None,
) -> TrainingSet:
    """Load a job's data to get the size of its training set.

    MRPC, the default, is not loaded.

    Args:
        job: The training.
        base: Its base model.
        num_examples: Replaces the number of training examples.
        mean_tokens: Replaces their mean length.
    Raises:
        UserError: If the data cannot be loaded, or the job does not fit it.
    """
    data = job.data
    if isinstance(data, DataConfig) and data.dataset == DataConfig.dataset and not data.train_file:
        labels = split_class_names(data.class_names) if data.class_names else PARAPHRASE_NAMES
        return TrainingSet(num_examples or 3668, mean_tokens or 53, tuple(labels))
    splits = load_data(data, job.seed)
    resolved = resolve(job, base, splits.label_names)
    validate(resolved)
    train = prepare_data(resolved, splits).splits["train"]
    if mean_tokens is None:
        encoded, _ = encode_examples(base.tokenizer, train, resolved.max_length)
        mean_tokens = round(sum(encoded["length"]) / len(encoded))
    return TrainingSet(num_examples or len(train), mean_tokens, splits.label_names)


def estimate_cost(job: TrainJob, base: BaseModel, training_set: TrainingSet) -> CostEstimate:
    """Time a few training steps, and extrapolate to the training set.

    A method that freezes layers is assumed to use the activation cache, unless it is off.

    Args:
        job: The training.
        base: The base model; its weights are not needed.
        training_set: Size of the training set. Tokens beyond `max_length` do not count.
    Raises:
        UserError: If the job cannot be estimated: with several processes, a quantized model, or
            more memory than is available.
    """
    resolved = resolve(job, base, training_set.label_names)
    args, config = resolved.training_args, resolved.config
    if args.world_size > 1:
        raise UserError("estimate: got several processes; start doctor as one process.")
    if config.quantization != "none":
        raise UserError("estimate: needs a model that is not quantized.")
    trained, total = parameter_counts(build_empty_model(resolved))
    required = total * BYTES_WEIGHT + trained * BYTES_TRAINING
    available = available_memory(args.device.type == "cuda")
    if required > available:
        raise UserError(
            f"estimate: weights and optimizer need {format_bytes(required)}, and "
            f"{format_bytes(available)} are available."
        )
    # Two batches per step are enough to see the cost of accumulating more.
    accumulated = min(args.gradient_accumulation_steps, 2)
    job = job.with_options(**TIMING_OPTIONS, gradient_accumulation_steps=accumulated)
    with package_log_level(logging.ERROR):
        if config.activation_cache != "off" and resolved.method.frozen_stages:
            try:
                return _time_steps(job.with_options(activation_cache="on"), base, training_set)
            except CacheUnavailableError:
                if config.activation_cache == "on":
                    raise
        return _time_steps(job.with_options(activation_cache="off"), base, training_set)


def _time_steps(job: TrainJob, base: BaseModel, training_set: TrainingSet) -> CostEstimate:
    """Train on synthetic examples, each of about the mean length."""
    resolved = resolve(job, base, training_set.label_names)
    args, config = resolved.training_args, resolved.config
    num_steps, labels = args.max_steps, training_set.label_names
    mean_tokens = min(training_set.mean_tokens, resolved.max_length)
    num_examples = num_steps * args.train_batch_size * args.gradient_accumulation_steps
    train = _synthetic_examples(num_examples, mean_tokens)
    set_seed(args.seed)
    reset_peak_memory()
    model = init_classifier(resolved.model_config, str(config.pooling), "cpu", config.dropout)
    adapted = resolved.method.apply(model, resolved.method_options)
    classifier = Classifier(adapted, base.tokenizer, list(labels), resolved.max_length)
    data, timer = DataSplits("synthetic", labels, {"train": train}), StepTimer()
    with tempfile.TemporaryDirectory() as directory:
        trainer, _ = build_trainer(resolved, data, classifier, directory, callbacks=[timer])
        started = time.perf_counter()
        trainer.train()
    callbacks = trainer.callback_handler.callbacks
    fill_seconds = sum(c.seconds for c in callbacks if isinstance(c, ActivationCacheCallback))
    step_seconds = (timer.times[-1] - timer.times[WARM_UP_STEPS - 1]) / TIMED_STEPS
    encoded, _ = classifier.encode(train)
    ratio = training_set.num_examples * mean_tokens / sum(encoded["length"])
    on_gpu = args.device.type == "cuda"
    return CostEstimate(
        epoch_seconds=step_seconds * num_steps * ratio,
        start_seconds=max(0, timer.times[0] - started - step_seconds - fill_seconds),
        cache_seconds=fill_seconds * ratio,
        peak_bytes=peak_memory()["gpu_bytes" if on_gpu else "resident_bytes"],
    )


def _synthetic_examples(count: int, mean_tokens: int) -> tuple[Example, ...]:
    """Return different examples of about the mean length, with the labels 0 and 1."""
    half = max(1, (mean_tokens - 3) // 2 - 1)
    words = [WORDS[number % len(WORDS)] for number in range(half)]
    return tuple(
        Example(row, " ".join([str(row), *words]), " ".join([*words, "and"]), row % 2)
        for row in range(count)
    )
