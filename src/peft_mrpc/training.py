"""The Hugging Face Trainer over encoded pairs."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    PretrainedConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations.integration_utils import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from peft_mrpc.checkpoints import FindBestAgain
from peft_mrpc.choosing import score_logits
from peft_mrpc.config import DataConfig, TrainConfig
from peft_mrpc.errors import UserError, logger, one_line, raise_faults, unknown_name
from peft_mrpc.freezing import (
    FreezeCallback,
    describe_trainable,
)
from peft_mrpc.losses import build_class_weights, build_loss, loss_faults
from peft_mrpc.methods import Method
from peft_mrpc.models import QUANTIZATIONS, cpu_has_amx, position_limit
from peft_mrpc.pair_model import POOLINGS, PROMPT_POSITIONS
from peft_mrpc.pairs import PairData
from peft_mrpc.predictors import PairClassifier, PairCollator
from peft_mrpc.selection import SELECTION, selection_faults
from peft_mrpc.thresholds import threshold_faults
from peft_mrpc.trainer import CacheTrunk, EitherOrder, OrderAnew, PairTrainer, PlainAttention
from peft_mrpc.trunk_plan import build_trunk_plan, trunk_faults
from peft_mrpc.trunk_store import TrunkCollator

FINE_TUNING_RATE = 1e-3
MAX_SEED = (1 << 32) - 1
SWAPS = ("auto", "true", "false")
# What labels say of two sentences in either order.
SYMMETRIC_WORDS = ("duplicate", "equivalent", "paraphrase", "same", "similar")


@dataclass(frozen=True)
class TrainRequest:
    """What was asked for, parsed and checked as far as flags go."""

    config: TrainConfig
    data: DataConfig
    arguments: TrainingArguments
    method: Method
    options: Any
    given_options: Mapping[str, Any]
    output_dir: Path
    publish: bool
    keep_checkpoints: bool = True
    recipe_rates: frozenset[str] = frozenset()  # those that the user left to the method's recipe


def argument_faults(config: TrainConfig, arguments: TrainingArguments) -> list[str]:
    """What is wrong with flags before any data or model is looked at."""
    faults = []
    if arguments.hub_token:
        faults.append("--hub_token: got a token; log in with `hf auth login` or set HF_TOKEN.")
    if arguments.push_to_hub and not arguments.hub_model_id:
        faults.append("--push_to_hub: got no --hub_model_id; expected owner/name.")
    if config.max_length < 8:
        faults.append(f"--max_length: got {config.max_length}; expected at least 8 tokens.")
    known = ("auto", "native", *POOLINGS)
    if config.pooling not in known:
        faults += unknown_name("--pooling", config.pooling, known).faults
    if config.prompt_position not in PROMPT_POSITIONS:
        position = config.prompt_position
        faults += unknown_name("--prompt_position", position, PROMPT_POSITIONS).faults
    if config.quantization not in QUANTIZATIONS:
        faults += unknown_name("--quantization", config.quantization, QUANTIZATIONS).faults
    if config.swap_sentences not in SWAPS:
        faults += unknown_name("--swap_sentences", config.swap_sentences, SWAPS).faults
    if config.dropout is not None and not 0 <= config.dropout < 1:
        faults.append(f"--dropout: got {config.dropout}; expected 0 or more and below 1.")
    faults += _rate_faults(config, arguments)
    counts = ("per_device_train_batch_size", "per_device_eval_batch_size")
    for name in (*counts, "gradient_accumulation_steps"):
        if getattr(arguments, name) < 1:
            faults.append(f"--{name}: got {getattr(arguments, name)}; expected at least 1.")
    if arguments.max_steps != -1 and arguments.max_steps < 1:
        faults.append(f"--max_steps: got {arguments.max_steps}; expected at least 1.")
    if not 0 <= arguments.seed <= MAX_SEED:
        faults.append(f"--seed: got {arguments.seed}; expected 0 to {MAX_SEED}.")
    if arguments.bf16 and arguments.device.type == "cpu" and not cpu_has_amx():
        logger.warning("--bf16: this CPU has no units for it (AMX); fp32 is several times faster")
    if arguments.fp16 and not torch.accelerator.is_available():
        faults.append("--fp16: got true, but there is no GPU here; drop it.")
    faults += selection_faults(config, arguments) + trunk_faults(config)
    faults += loss_faults(
        config.class_weights, config.focal_gamma, arguments.label_smoothing_factor
    )
    return faults + _tracker_faults(arguments) + _checkpoint_faults(arguments)


def _rate_faults(config: TrainConfig, arguments: TrainingArguments) -> list[str]:
    faults = []
    if config.layer_decay is not None and not 0 < config.layer_decay <= 1:
        faults.append(f"--layer_decay: got {config.layer_decay}; expected above 0 and at most 1.")
    rates = {"learning_rate": arguments.learning_rate}
    if config.head_learning_rate is not None:
        rates["head_learning_rate"] = config.head_learning_rate
    if arguments.max_steps == -1:
        rates["num_train_epochs"] = arguments.num_train_epochs
    return faults + [
        f"--{name}: got {value}; expected a number above 0."
        for name, value in rates.items()
        if not (math.isfinite(value) and value > 0)
    ]


def _tracker_faults(arguments: TrainingArguments) -> list[str]:
    names = [name for name in arguments.report_to or [] if name not in ("none", "all")]
    try:
        get_reporting_integration_callbacks(names)
    except ValueError as error:
        return [f"--report_to: {one_line(error)}"]
    available = get_available_reporting_integrations()
    return [
        f"--report_to: got {name!r}, which is not installed. Next: pip install {name}"
        for name in names
        if name not in available
    ]


def _checkpoint_faults(arguments: TrainingArguments) -> list[str]:
    faults = []
    checkpoint = arguments.resume_from_checkpoint
    if checkpoint is not None and not (Path(checkpoint) / "trainer_state.json").is_file():
        faults.append(
            f"--resume_from_checkpoint: got {checkpoint!r}, which holds no trainer_state.json; "
            "expected a directory checkpoint-N."
        )
    return faults


def pair_length(request: TrainRequest, model_config: PretrainedConfig, tokenizer: Any) -> int:
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


def check_against_data(config: TrainConfig, arguments: TrainingArguments, data: PairData) -> None:
    """Refuse what these pairs cannot give.

    Raises:
        UserError: If there is nothing to train on, too little for a batch, or the labels are not
            as many as the threshold or the class weights are for.
    """
    faults = threshold_faults(config.threshold, len(data.label_names))
    if "train" not in data.splits:
        faults.append(f"{data.name}: has no train split; give --train_file.")
    elif arguments.dataloader_drop_last:
        size = len(data.splits["train"])
        if size < arguments.per_device_train_batch_size:
            faults.append(
                f"--dataloader_drop_last: {size} training pairs fill no batch of "
                f"{arguments.per_device_train_batch_size}; lower --per_device_train_batch_size."
            )
    raise_faults(faults)
    _class_weights(config, data)


def _class_weights(config: TrainConfig, data: PairData) -> torch.Tensor | None:
    labels = [pair.label for pair in data.splits["train"]]
    return build_class_weights(config.class_weights, labels, data.label_names)


def build_trainer(
    request: TrainRequest, data: PairData, classifier: PairClassifier, staging: str
) -> tuple[Trainer, int]:
    """The Trainer over encoded pairs, and how many training pairs were cut."""
    features, num_cut = classifier.encode(data.splits["train"])
    if num_cut:
        logger.info(
            "%d of %d training pairs (%.1f%%) are longer than %d tokens and were cut",
            *(num_cut, len(features), 100 * num_cut / len(features), classifier.max_length),
        )
    arguments = request.arguments
    arguments.output_dir = f"{staging}/checkpoints"
    arguments.dataloader_pin_memory &= torch.cuda.is_available()  # only a warning without one
    if getattr(request.options, "is_prompt_learning", False):
        _warn_of_low_rate(arguments.learning_rate, request.config.method)
    loss = build_loss(
        _class_weights(request.config, data),
        request.config.focal_gamma,
        arguments.label_smoothing_factor,
    )
    collator = TrunkCollator(PairCollator(classifier.tokenizer, classifier.model.config))
    train_rows = _training_rows(request, data, classifier, features)
    held_out = _evaluation_rows(data, classifier)
    callbacks = [*request.method.callbacks(request.options), *_own_callbacks(request)]
    orders = [train_rows]
    if isinstance(train_rows, EitherOrder):
        callbacks.append(OrderAnew(train_rows))
        orders = list(train_rows.orders)
    plan = build_trunk_plan(request.config, trainer_precision(arguments))
    if plan.mode != "off" and any(isinstance(c, FreezeCallback) for c in callbacks):
        rows = [row for part in (*orders, held_out or []) for row in part]
        callbacks.append(CacheTrunk(plan, collator, rows))
    trainer = PairTrainer(
        head_learning_rate=request.config.head_learning_rate,
        layer_decay=request.config.layer_decay,
        model=classifier.model,
        args=arguments,
        data_collator=collator,
        train_dataset=train_rows,
        eval_dataset=held_out,
        processing_class=classifier.tokenizer,
        compute_loss_func=loss,
        compute_metrics=partial(score_logits, classifier=classifier),
        callbacks=callbacks,
    )
    if not any(isinstance(callback, FreezeCallback) for callback in callbacks):
        logger.info("%s: %s", request.config.method, describe_trainable(classifier.model))
    return trainer, num_cut


def trainer_precision(arguments: TrainingArguments) -> str:
    """What the Trainer computes in."""
    return "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32"


def is_symmetric(label_names: Sequence[str]) -> bool:
    """Whether the last of two labels says what holds of the sentences in either order."""
    return len(label_names) == 2 and any(
        word in SYMMETRIC_WORDS for word in re.split(r"[\W_]+", label_names[-1].lower())
    )


def _training_rows(
    request: TrainRequest,
    data: PairData,
    classifier: PairClassifier,
    features: Sequence[dict[str, list[int]]],
) -> Any:
    rows = _labelled(features, data, "train")
    if request.config.swap_sentences == "auto":  # recorded as what it came to
        request.config.swap_sentences = str(is_symmetric(data.label_names)).lower()
    if request.config.swap_sentences == "false":
        return rows
    logger.info("each pair trains in either order, by chance (--swap_sentences false: as it comes)")
    pairs = data.splits["train"]
    swapped, _ = classifier.encode(
        [replace(pair, sentence1=pair.sentence2, sentence2=pair.sentence1) for pair in pairs]
    )
    return EitherOrder(rows, _labelled(swapped, data, "train"), request.arguments.seed)


def _warn_of_low_rate(learning_rate: float, method: str) -> None:
    if learning_rate < FINE_TUNING_RATE:
        logger.warning(
            "--learning_rate: %g is a rate for fine-tuning; %s learns little below 1e-2",
            *(learning_rate, method),
        )


def _labelled(
    features: Sequence[dict[str, list[int]]], data: PairData, split: str
) -> list[dict[str, Any]]:
    return [
        {**feature, "labels": pair.label}
        for feature, pair in zip(features, data.splits[split], strict=True)
    ]


def _evaluation_rows(data: PairData, classifier: PairClassifier) -> list[dict[str, Any]] | None:
    """The held-out pairs for the Trainer's own evaluation; None where nothing is chosen."""
    if SELECTION not in data.splits:
        return None
    features, _ = classifier.encode(data.splits[SELECTION])
    return _labelled(features, data, SELECTION)


def _own_callbacks(request: TrainRequest) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [FindBestAgain()]
    patience = request.config.early_stopping_patience
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(patience))
    if request.arguments.bf16 and request.arguments.device.type == "cpu":
        callbacks.append(PlainAttention())
    return callbacks
