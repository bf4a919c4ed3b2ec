"""What a training will cost here, found by a few of its steps on random weights."""

import logging
import math
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import convert_file_size_to_int
from transformers import (
    PretrainedConfig,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from peft_mrpc.data.columns import PARAPHRASE_NAMES
from peft_mrpc.data.examples import DataSplits, Example
from peft_mrpc.environment import available_memory, peak_memory, reset_peak_memory
from peft_mrpc.errors import logger
from peft_mrpc.formatting import format_bytes
from peft_mrpc.methods.peft_adapters import init_from_shapes_only
from peft_mrpc.models.architecture import parameter_counts
from peft_mrpc.models.classifier import Classifier
from peft_mrpc.models.loading import init_classifier
from peft_mrpc.training.activation_cache.callback import (
    ActivationCacheCallback,
    ActivationCacheError,
    argument_refusal,
    fill_refusal,
    num_frozen_layers,
)
from peft_mrpc.training.build_trainer import build_trainer, pair_length
from peft_mrpc.training.request import TrainJob

WARM_UP, STEPS = 2, 4
# Weights, their gradients and Adam's two moments, in fp32; under --sam_rho the weights once more.
BYTES_OF_TRAINED, BYTES_OF_FROZEN = 16, 4
BYTES_OF_SAM = 4
WORDS = "the company said on monday that its shares rose after the report".split()


@dataclass(frozen=True)
class Pairs:
    """What is known of pairs before they are read.

    Attributes:
        number: How many train.
        mean_tokens: Tokens of one, on average, special tokens included.
        label_names: What they are told apart as, which says whether either order trains.
    """

    number: int
    mean_tokens: int
    label_names: tuple[str, ...] = PARAPHRASE_NAMES


@dataclass(frozen=True)
class Estimate:
    """What a training costs on this machine.

    Attributes:
        epoch_seconds: One pass over the pairs.
        peak_bytes: Peak memory: the GPU's, or this process's.
        start_seconds: What comes before the first step and makes it longer than the others.
        trunk_pairs: How many pairs run once through frozen layers; 0 where they run every time.
        trunk_seconds: That this takes.
        trunk_bytes: What is kept of it.
        mapped_bytes: Of that, what is read from files, whose pages count as memory while there is
            room for them.
        in_memory: Whether it is kept there, so that the next training computes it anew.
        note: Why frozen layers run every time, where they could run once.
    """

    epoch_seconds: float
    peak_bytes: int
    start_seconds: float = 0
    trunk_pairs: int = 0
    trunk_seconds: float = 0
    trunk_bytes: int = 0
    mapped_bytes: int = 0
    in_memory: bool = False
    note: str = ""

    def __str__(self) -> str:
        epoch, start = in_time(self.epoch_seconds), in_time(self.start_seconds)
        text = f"about {epoch} an epoch, after {start} to start"
        if self.trunk_pairs:
            text += (
                f" and {in_time(self.trunk_seconds)} for the frozen layers, once "
                f"({format_bytes(self.trunk_bytes)} kept{' in memory' if self.in_memory else ''})"
            )
        note = f"; frozen layers run every time: {self.note}" if self.note else ""
        mapped = f", and {format_bytes(self.mapped_bytes)} of files" if self.mapped_bytes else ""
        return f"{text}{note}; peak memory about {format_bytes(self.peak_bytes)}{mapped}"


class _Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def rehearse(
    request: TrainJob, config: PretrainedConfig, tokenizer: Any, about: Pairs
) -> Estimate | str:
    """Time some steps of a training, and say what all of it takes.

    Args:
        request: The training.
        config: The model's configuration; its weights are not needed.
        tokenizer: Its tokenizer.
        about: The pairs that will train; tokens beyond `--max_length` are cut.
    Returns:
        The estimate, or why there is none.
    Raises:
        UserError: If the training is to keep what frozen layers give, and could not.
    """
    if request.arguments.world_size > 1:
        return "no estimate: doctor says what one process takes; start it alone"
    if request.config.quantization != "none":
        return "no estimate: steps are tried on weights that are not quantized"
    method, pooling = request.method, request.config.pooling
    empty = method.apply(init_classifier(config, pooling), init_from_shapes_only(request.options))
    method.freeze(empty, request.options)
    trained, total = parameter_counts(empty)
    sam = BYTES_OF_SAM if request.config.sam_rho else 0
    needed = trained * (BYTES_OF_TRAINED + sam) + (total - trained) * BYTES_OF_FROZEN
    if needed > (free := available_memory(_on_gpu(request))):
        needs, has = format_bytes(needed), format_bytes(free)
        return f"no estimate: it takes {needs} and more, and {has} are free"
    cut = min(about.mean_tokens, pair_length(request, config, tokenizer))
    about, before = replace(about, mean_tokens=cut), logger.level
    logger.setLevel(logging.ERROR)
    try:
        return _as_planned(request, config, tokenizer, about)
    finally:
        logger.setLevel(before)


def _as_planned(
    request: TrainJob, config: PretrainedConfig, tokenizer: Any, about: Pairs
) -> Estimate:
    """The estimate with frozen layers run once, or every time, as the training will."""
    arguments = request.arguments
    mode = request.config.activation_cache
    memory_bytes = convert_file_size_to_int(request.config.activation_cache_memory)
    visits = math.ceil(about.number * arguments.num_train_epochs)
    if arguments.max_steps > 0:
        visits = arguments.max_steps * arguments.train_batch_size
        visits *= arguments.gradient_accumulation_steps
    visits *= len(request.config.seeds or [arguments.seed])
    freezes, note = request.method.freezes(request.options), ""
    if freezes and mode == "auto" and (note := argument_refusal(arguments)):
        request.config.activation_cache = "off"
    try:
        estimate = _time_steps(request, config, tokenizer, about)
    except ActivationCacheError as error:
        if mode != "auto" or request.config.activation_cache == "off":
            raise
        note = error.reason
        request.config.activation_cache = "off"
        estimate = _time_steps(request, config, tokenizer, about)
    if not estimate.trunk_pairs:
        return replace(estimate, note=note)
    estimate = replace(estimate, in_memory=estimate.trunk_bytes <= memory_bytes)
    refusal = fill_refusal(estimate.trunk_pairs, visits) if mode == "auto" else ""
    if not refusal:
        if _on_gpu(request):  # whose memory is meant
            return estimate
        held = min(estimate.trunk_bytes, memory_bytes)
        peak = estimate.peak_bytes + held
        return replace(estimate, peak_bytes=peak, mapped_bytes=estimate.trunk_bytes - held)
    if mode != "auto":
        raise ActivationCacheError(refusal)
    request.config.activation_cache = "off"
    return replace(_time_steps(request, config, tokenizer, about), note=refusal)


def _time_steps(
    request: TrainJob, config: PretrainedConfig, tokenizer: Any, about: Pairs
) -> Estimate:
    reset_peak_memory()
    set_seed(request.arguments.seed)  # random weights, and what is said of them, are the same again
    model = init_classifier(
        config, request.config.pooling, device="cpu", dropout=request.config.dropout
    )
    request.method.freeze(model, request.options)
    if num_frozen_layers(model) and request.config.activation_cache != "off":
        request.config.activation_cache = "on"  # even if it does not pay for so few examples
    arguments = request.arguments
    # Two batches a step say what more of them do: an optimizer's part of a step is small.
    arguments.gradient_accumulation_steps = min(arguments.gradient_accumulation_steps, 2)
    size = arguments.train_batch_size * arguments.gradient_accumulation_steps
    request.arguments.max_steps = WARM_UP + STEPS
    data = _write_pairs(request.arguments.max_steps * size, about)
    adapted = request.method.apply(model, request.options)
    length = pair_length(request, config, tokenizer)
    classifier = Classifier(adapted, tokenizer, list(about.label_names), length)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = build_trainer(request, data, classifier, folder)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        started = time.perf_counter()
        trainer.train()
    steps = (clock.times[-1] - clock.times[WARM_UP - 1]) / STEPS
    features, _ = classifier.encode(data.splits["train"])
    tokens = sum(features["length"]) / len(features)
    pairs = about.number * about.mean_tokens / tokens
    peak = peak_memory()["gpu_bytes" if _on_gpu(request) else "resident_bytes"]
    callbacks = trainer.callback_handler.callbacks
    cache = next(
        (c for c in callbacks if isinstance(c, ActivationCacheCallback) and c.token_bytes), None
    )
    start = clock.times[0] - started - steps - (cache.seconds if cache else 0)
    estimate = Estimate(steps * pairs / size, peak, max(0, start))
    if cache is None:
        return estimate
    orders = len(cache.examples) / len(features)
    return replace(
        estimate,
        trunk_pairs=round(about.number * orders),
        trunk_seconds=cache.seconds / len(features) * pairs,
        trunk_bytes=round(cache.token_bytes * about.mean_tokens * about.number * orders),
    )


def _on_gpu(request: TrainJob) -> bool:
    """Whether it trains on one; `--use_cpu` leaves it alone."""
    return bool(request.arguments.device.type == "cuda")


def _write_pairs(count: int, about: Pairs) -> DataSplits:
    """Pairs of about so many tokens, no two alike."""
    half = max(1, (about.mean_tokens - 3) // 2 - 1)
    words = [WORDS[number % len(WORDS)] for number in range(half)]
    pairs = [
        Example(row, " ".join([str(row), *words]), " ".join([*words, "and"]), row % 2)
        for row in range(count)
    ]
    return DataSplits("rehearsal", about.label_names, {"train": tuple(pairs)})


def in_time(seconds: float) -> str:
    """A time to read: 40 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
