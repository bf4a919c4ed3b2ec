"""The parameters and the cost of a training on this machine, without the model's weights.

Time and memory are estimated from a few steps on random weights and random examples.
"""

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import convert_file_size_to_int
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

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
from peft_mrpc.training.activation_cache.callback import (
    ActivationCacheCallback,
    ActivationCacheError,
    fill_refusal,
)
from peft_mrpc.training.build import build_empty_model, build_trainer
from peft_mrpc.training.callbacks import LogMetricsCallback
from peft_mrpc.training.job import ResolvedJob, TrainJob
from peft_mrpc.training.resolve import BaseModel, describe_head, resolve
from peft_mrpc.training.validation import prepare_data, validate

WARM_UP_STEPS, TIMED_STEPS = 2, 4
# Bytes of a parameter in fp32: weight, gradient and Adam's two moments; the weight alone; and the
# copy of a trained weight for SAM.
BYTES_TRAINED, BYTES_FROZEN, BYTES_SAM = 16, 4, 4
WORDS = "the company said on monday that its shares rose after the report".split()
# Options of the timed steps: nothing is evaluated, saved or reported.
TIMING_OPTIONS: dict[str, Any] = {
    "max_steps": WARM_UP_STEPS + TIMED_STEPS,
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "early_stopping_patience": None,
    "report_to": "none",
    "disable_tqdm": True,
    "threshold": "0.5",
    "class_weights": "none",
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
        peak_bytes: Peak memory of the GPU, or of the process on a CPU.
        cached_examples: Examples in the activation cache; 0 if it is not used.
        cache_seconds: Time to compute the cached activations.
        cache_bytes: Their size.
    """

    epoch_seconds: float
    start_seconds: float
    peak_bytes: int
    cached_examples: int = 0
    cache_seconds: float = 0
    cache_bytes: int = 0

    def __str__(self) -> str:
        text = (
            f"about {format_duration(self.epoch_seconds)} per epoch, after "
            f"{format_duration(self.start_seconds)} to start"
        )
        if self.cached_examples:
            text += (
                f" and {format_duration(self.cache_seconds)} for the activation cache "
                f"({format_bytes(self.cache_bytes)})"
            )
        return f"{text}; peak memory about {format_bytes(self.peak_bytes)}"


class _StepTimer(TrainerCallback):
    """Record the time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
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
    bytes_trained = BYTES_TRAINED + (BYTES_SAM if config.sam_rho else 0)
    required = trained * bytes_trained + (total - trained) * BYTES_FROZEN
    available = available_memory(args.device.type == "cuda")
    if required > available:
        raise UserError(
            f"estimate: weights and optimizer need {format_bytes(required)}, and "
            f"{format_bytes(available)} are available."
        )
    tokens = min(training_set.mean_tokens, resolved.max_length)
    training_set = replace(training_set, mean_tokens=tokens)
    options = {
        **TIMING_OPTIONS,
        "activation_cache": "on" if _caches_activations(resolved, training_set) else "off",
        # Two batches per step are enough to see the cost of accumulating more.
        "gradient_accumulation_steps": min(args.gradient_accumulation_steps, 2),
    }
    with _only_errors_logged():
        try:
            return _time_steps(job.with_options(**options), base, training_set)
        except ActivationCacheError:
            if config.activation_cache == "on":
                raise
            options["activation_cache"] = "off"
            return _time_steps(job.with_options(**options), base, training_set)


def _caches_activations(resolved: ResolvedJob, training_set: TrainingSet) -> bool:
    """Return whether the training would use the activation cache, if the model allows it."""
    config, args = resolved.config, resolved.training_args
    if config.activation_cache != "auto" or not resolved.method.frozen_stages:
        return config.activation_cache == "on"
    reads = math.ceil(training_set.num_examples * args.num_train_epochs)
    if args.max_steps > 0:
        reads = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps
    reads *= len(config.seeds or [args.seed])
    num_copies = 2 if config.swap_sentences == "true" else 1
    return not fill_refusal(num_copies * training_set.num_examples, reads)


def _time_steps(job: TrainJob, base: BaseModel, training_set: TrainingSet) -> CostEstimate:
    """Train on random examples, each of about the mean length."""
    resolved = resolve(job, base, training_set.label_names)
    args, on_gpu = resolved.training_args, resolved.training_args.device.type == "cuda"
    batch_size = args.train_batch_size * args.gradient_accumulation_steps
    data = _random_examples(args.max_steps * batch_size, training_set)
    set_seed(args.seed)
    reset_peak_memory()
    model_config, pooling = resolved.model_config, str(resolved.config.pooling)
    model = init_classifier(model_config, pooling, "cpu", resolved.config.dropout)
    adapted = resolved.method.apply(model, resolved.method_options)
    labels = list(training_set.label_names)
    classifier = Classifier(adapted, base.tokenizer, labels, resolved.max_length)
    timer = _StepTimer()
    with tempfile.TemporaryDirectory() as directory:
        trainer, _ = build_trainer(resolved, data, classifier, directory, callbacks=[timer])
        trainer.remove_callback(LogMetricsCallback)
        started = time.perf_counter()
        trainer.train()
    callbacks = trainer.callback_handler.callbacks
    cache = next((c for c in callbacks if isinstance(c, ActivationCacheCallback)), None)
    step_seconds = (timer.times[-1] - timer.times[WARM_UP_STEPS - 1]) / TIMED_STEPS
    num_computed = (cache.num_computed if cache else 0) or 1
    cache_seconds = cache.seconds if cache else 0
    encoded, _ = classifier.encode(data.splits["train"])
    # The size of the training set in examples as long as the random ones.
    num_tokens = training_set.num_examples * training_set.mean_tokens
    num_examples = num_tokens * len(encoded) / sum(encoded["length"])
    # Each example is cached twice with swapped sentences.
    num_copies = len(cache.examples) / len(encoded) if cache and cache.num_computed else 0
    cache_bytes = round(num_copies * num_tokens * cache.token_bytes) if cache else 0
    memory_limit = int(convert_file_size_to_int(resolved.config.activation_cache_memory))
    peak = peak_memory()["gpu_bytes" if on_gpu else "resident_bytes"]
    return CostEstimate(
        epoch_seconds=step_seconds * num_examples / batch_size,
        start_seconds=max(0, timer.times[0] - started - step_seconds - cache_seconds),
        peak_bytes=peak + (0 if on_gpu else min(cache_bytes, memory_limit)),
        cached_examples=round(training_set.num_examples * num_copies),
        cache_seconds=cache_seconds * num_copies * num_examples / num_computed,
        cache_bytes=cache_bytes,
    )


def _random_examples(count: int, training_set: TrainingSet) -> DataSplits:
    """Return different examples of about the mean length."""
    half = max(1, (training_set.mean_tokens - 3) // 2 - 1)
    words = [WORDS[number % len(WORDS)] for number in range(half)]
    examples = [
        Example(row, " ".join([str(row), *words]), " ".join([*words, "and"]), row % 2)
        for row in range(count)
    ]
    return DataSplits("random", training_set.label_names, {"train": tuple(examples)})


@contextmanager
def _only_errors_logged() -> Iterator[None]:
    package = logging.getLogger("peft_mrpc")
    level = package.level
    package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.setLevel(level)
