"""Decide everything that a job leaves open, once: `TrainJob` -> `ResolvedJob`.

`resolve` is a pure function of the job, the base model's configuration and tokenizer, and the
label names. It merges the method's recipe, decides each `auto`, and builds the `TrainingArguments`
and the method's options. Nothing changes them afterwards.
"""

import copy
import dataclasses
import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase, TrainingArguments
from transformers.training_args import OptimizerNames

from peft_mrpc.config import IN_MEMORY, TRAIN_DEFAULTS, DataConfig, TrainConfig, default_output_dir
from peft_mrpc.distributed import is_sharded
from peft_mrpc.errors import UserError, one_line, raise_faults
from peft_mrpc.interop.transformers_internals import use_one_gpu
from peft_mrpc.methods.peft_adapters import set_tokenizer
from peft_mrpc.methods.registry import find_method, load_default_recipe, scale_learning_rates
from peft_mrpc.models.architecture import has_layers
from peft_mrpc.models.loading import (
    MIN_LENGTH,
    auto_pooling,
    has_custom_code,
    init_classifier,
    limit_layers,
    load_config,
    load_tokenizer,
    position_limit,
)
from peft_mrpc.models.modeling_sentence_pair import ALIGNED_POOLINGS, SentencePairConfig
from peft_mrpc.models.modeling_sentence_pair_adapter import SentencePairAdapterConfig
from peft_mrpc.models.sources import ModelSource, Trust, resolve_model
from peft_mrpc.options import option_types
from peft_mrpc.precision import (
    disable_mixed_precision,
    padding_step,
    precision_defaults,
    trainer_precision,
)
from peft_mrpc.serialization import user_path
from peft_mrpc.training.job import ResolvedJob, TrainJob
from peft_mrpc.training.model_selection import implied_training_arguments

logger = logging.getLogger(__name__)

# Label names whose meaning does not depend on the order of the sentences.
SYMMETRIC_WORDS = ("duplicate", "equivalent", "paraphrase", "same", "similar")
# Parts of the names of optimizers that step within the backward pass.
IN_BACKWARD = ("lomo", "layerwise")


@dataclass(frozen=True)
class BaseModel:
    """A pretrained model without its weights."""

    source: ModelSource
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase


def load_base_model(config: TrainConfig) -> BaseModel:
    """Load the configuration and the tokenizer of a job's base model.

    Raises:
        UserError: If the model cannot be found or loaded.
    """
    trust = Trust(config.trust_remote_code, config.allow_pickle)
    source = resolve_model(config.model, config.base_model_id, trust)
    model_config = load_config(source)
    if isinstance(model_config, SentencePairAdapterConfig):
        base = model_config.base_model_name_or_path
        raise UserError(f"model: got {source.name!r}, an adapter; expected its base model, {base}.")
    tokenizer = load_tokenizer(source, model_config)
    if config.max_length > (limit := position_limit(model_config, tokenizer)):
        logger.info("max_length: the model has %d positions, more tokens are truncated", limit)
    return BaseModel(source, model_config, tokenizer)


def resolve(job: TrainJob, base: BaseModel, label_names: Sequence[str]) -> ResolvedJob:
    """Decide every option of a job.

    Args:
        job: What was requested.
        base: The base model.
        label_names: Names of the C labels.
    Raises:
        UserError: For an unknown method, a head layer that does not exist, too many virtual tokens,
            and all values that `TrainingArguments` or the method's config reject.
    """
    method, explicit = find_method(job.config.method), job.explicit
    recipe = load_default_recipe(job.config.method, explicit)
    config = _merge_config(job, recipe)
    if has_custom_code(base.config) or isinstance(base.config, SentencePairConfig):
        if job.config.pooling not in (None, "auto", "native"):
            raise UserError(
                f"pooling: got {config.pooling}, but {base.source.name} keeps the head that its "
                "code defines; expected native."
            )
        config = dataclasses.replace(config, pooling="native", head_layer="last")
    elif config.pooling == "auto":
        pooling = auto_pooling(base.tokenizer, method.default_pooling)
        config = dataclasses.replace(config, pooling=pooling)
    source = truncate_encoder(base, str(config.head_layer), str(config.pooling))
    head_layer = "last" if source.head_layer is None else str(source.head_layer)
    model_config = limit_layers(source, base.config)
    rates = _scaled_rates(job, model_config, recipe)
    names = method.option_types()
    explicit_options = _without_none(
        {**{k: v for k, v in recipe.items() if k in names}, **job.method_options}
    )
    output_dir = job.output_dir or default_output_dir(job.config.method, job.config.model, job.data)
    fields, push_to_hub = _training_fields(job, config, recipe, rates, output_dir)
    faults: list[str] = []
    try:
        options = method.build_options(explicit_options)
        set_tokenizer(options, source)
    except UserError as error:
        faults += error.faults
    try:
        training_args = _build_training_args(fields, job.training_arguments)
    except UserError as error:
        faults += error.faults
    raise_faults(faults)
    config = dataclasses.replace(
        config,
        head_layer=head_layer,
        head_learning_rate=rates.get("head_learning_rate", config.head_learning_rate),
        layer_decay=_resolve_layer_decay(rates, config, model_config),
        sam_rho=_resolve_sam_rho(job, config, training_args),
        swap_sentences=_resolve_swap(config.swap_sentences, label_names),
        attention=_resolve_attention(config.attention, training_args),
        pad_to_multiple_of=_resolve_padding(config.pad_to_multiple_of, training_args),
    )
    return ResolvedJob(
        job=job,
        config=config,
        data=job.data if isinstance(job.data, DataConfig) else DataConfig(dataset=IN_MEMORY),
        training_args=training_args,
        method=method,
        method_options=options,
        # PEFT saves its whole config beside the adapter.
        explicit_options=explicit_options if method.is_peft else dict(vars(options)),
        source=source,
        model_config=model_config,
        max_length=_resolve_max_length(config, options, model_config, base.tokenizer),
        output_dir=user_path(output_dir),
        push_to_hub=push_to_hub,
        keep_checkpoints=job.training_arguments.get("save_strategy") is not None,
        explicit=explicit,
    )


def truncate_encoder(base: BaseModel, head_layer: str, pooling: str) -> ModelSource:
    """Return the model up to the layer that the head reads.

    The last layers of a pretrained encoder specialize in its pretraining task. Heads that compare
    tokens are better on lower layers (arXiv:1904.09675, appendix B; arXiv:1905.05950).

    Args:
        base: The model.
        head_layer: Number of the layer, from 1; `last`; or `auto`: two thirds of the depth for
            heads that compare tokens (`aligned`, `weighted`), the last layer for all others.
        pooling: Input of the head.
    Raises:
        UserError: If there is no such layer, or the head is the architecture's own.
    """
    source, config = base.source, base.config
    if head_layer == "last" or (head_layer == "auto" and pooling not in ALIGNED_POOLINGS):
        return source
    if not (head_layer == "auto" or (head_layer.isdecimal() and int(head_layer) > 0)):
        raise UserError(
            f"head_layer: got {head_layer!r}; expected the number of a layer from 1, last or auto."
        )
    if not _is_truncatable(config):
        if head_layer == "auto":
            return source
        raise UserError(
            f"head_layer: got {head_layer}, but a {config.model_type} is not a single stack of "
            "layers; expected last."
        )
    depth = int(config.num_hidden_layers)
    number = math.ceil(depth * 2 / 3) if head_layer == "auto" else int(head_layer)
    if number > depth:
        raise UserError(
            f"head_layer: got {head_layer!r}; expected 1 to {depth} (the layers of {source.name}), "
            "last or auto."
        )
    if number == depth:
        return source
    if pooling == "native":
        raise UserError(
            f"head_layer: got {head_layer}, but the architecture's own head reads the last layer; "
            "expected last, or another pooling."
        )
    return dataclasses.replace(source, head_layer=number)


def describe_head(pooling: str | None, head_layer: int | str | None) -> str:
    """Describe the head and its input in words."""
    if pooling == "native":
        return "the architecture's own head"
    layer = "the last layer" if head_layer in (None, "last") else f"layer {head_layer}"
    return f"a head over {layer} ({pooling})"


def is_symmetric(label_names: Sequence[str]) -> bool:
    """Whether the last of two labels does not depend on the order of the sentences."""
    return len(label_names) == 2 and any(
        word in SYMMETRIC_WORDS for word in re.split(r"[\W_]+", label_names[-1].lower())
    )


def gradient_owner(args: TrainingArguments) -> str:
    """Return what keeps the gradients of a step from the Trainer; empty if nothing does."""
    if any(part in args.optim for part in IN_BACKWARD):
        return f"optim {OptimizerNames(args.optim).value}"
    return "FSDP or DeepSpeed" if is_sharded(args) else ""


def _merge_config(job: TrainJob, recipe: Mapping[str, Any]) -> TrainConfig:
    """Fill the fields that are None from the recipe, then from the defaults."""
    values: dict[str, Any] = {}
    for name, default in TRAIN_DEFAULTS.items():
        value = getattr(job.config, name)
        if value is None and name not in job.removed:
            value = recipe.get(name)
        values[name] = default if value is None else value
    # YAML and Python have other types for these words and numbers.
    values["swap_sentences"] = str(values["swap_sentences"]).lower()
    values["head_layer"] = str(values["head_layer"])
    return dataclasses.replace(job.config, **values, seeds=job.seeds or None)


def _scaled_rates(
    job: TrainJob, config: PretrainedConfig, recipe: Mapping[str, Any]
) -> dict[str, float]:
    """Return the recipe's learning rates for this model, without those that the user set."""
    text_config = config.get_text_config()  # part of a multimodal configuration
    width, depth = (
        getattr(text_config, name, None) for name in ("hidden_size", "num_hidden_layers")
    )
    if not (isinstance(width, int) and isinstance(depth, int)):
        raise UserError(
            f"model: got a {config.model_type}, whose configuration has no hidden_size or "
            "num_hidden_layers; expected one encoder or decoder of text."
        )
    set_by_user = job.explicit | job.removed
    set_by_user |= {name for name, value in job.training_arguments.items() if value is None}
    rates = scale_learning_rates(job.config.method, recipe, width, depth)
    return {name: rate for name, rate in rates.items() if name not in set_by_user}


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _training_fields(
    job: TrainJob,
    config: TrainConfig,
    recipe: Mapping[str, Any],
    rates: Mapping[str, float],
    output_dir: Path,
) -> tuple[dict[str, Any], bool]:
    """Return the fields of `TrainingArguments`, and whether the Run is published."""
    known: Collection[str] = option_types(TrainingArguments)
    explicit = _without_none(job.training_arguments)
    fields = {name: value for name, value in recipe.items() if name in known}
    fields |= {name: rate for name, rate in rates.items() if name in known}
    for name, value in job.training_arguments.items():
        if value is None:
            fields.pop(name, None)
    fields |= implied_training_arguments(
        config, {**fields, **explicit}, "save_strategy" in explicit
    )
    fields |= precision_defaults(explicit) | explicit
    if fields.get("resume_from_checkpoint") == "auto":  # found when the training starts
        del fields["resume_from_checkpoint"]
    if config.seeds:
        fields["seed"] = config.seeds[0]
    # The Run is published as a whole at its end; the Trainer would publish its checkpoints.
    push_to_hub = bool(fields.pop("push_to_hub", False))
    fields["output_dir"] = str(output_dir)
    fields["remove_unused_columns"] = False  # the activation cache reads all columns
    fields["dataloader_pin_memory"] = (
        fields.get("dataloader_pin_memory", True) and torch.cuda.is_available()
    )
    return fields, push_to_hub


def _build_training_args(
    fields: Mapping[str, Any], explicit: Mapping[str, Any]
) -> TrainingArguments:
    try:
        training_args = TrainingArguments(**copy.deepcopy(dict(fields)))
    except (ValueError, TypeError, ImportError, OSError, KeyError) as error:
        raise UserError(f"TrainingArguments: {one_line(error)}") from error
    disable_mixed_precision(training_args, _without_none(explicit))
    if training_args.n_gpu > 1:  # DataParallel is slow, and adds up the losses of its replicas
        logger.info(
            "one of %d GPUs is used; start with `accelerate launch` to use all",
            training_args.n_gpu,
        )
        use_one_gpu(training_args)
    return training_args


def _resolve_layer_decay(
    rates: Mapping[str, float], config: TrainConfig, model_config: PretrainedConfig
) -> float | None:
    if "layer_decay" not in rates:
        return config.layer_decay
    # ALBERT repeats one layer.
    is_stack = has_layers(init_classifier(model_config, str(config.pooling)))
    return rates["layer_decay"] if is_stack else None


def _resolve_sam_rho(job: TrainJob, config: TrainConfig, args: TrainingArguments) -> float | None:
    """Turn the recipe's SAM off where the optimizer does not leave the gradients to the Trainer."""
    reason = gradient_owner(args)
    if config.sam_rho and job.config.sam_rho is None and reason:
        logger.info("sam_rho: the recipe's %g is not used with %s", config.sam_rho, reason)
        return 0.0
    return config.sam_rho


def _resolve_attention(attention: str | None, args: TrainingArguments) -> str | None:
    """Return the attention implementation of the training; None for the model's own.

    `auto` is `eager` on a CPU in bf16, where the backward pass of PyTorch's fused attention takes
    several times as long (2.13.0: a third of a training step of SmolLM2).
    """
    if attention != "auto":
        return attention
    is_slow = args.device.type == "cpu" and trainer_precision(args) == "bf16"
    return "eager" if is_slow else None


def _resolve_padding(multiple: int | None, args: TrainingArguments) -> int:
    return padding_step(trainer_precision(args)) if multiple is None else multiple


def _resolve_swap(swap_sentences: str | None, label_names: Sequence[str]) -> str:
    if swap_sentences == "auto":
        return str(is_symmetric(label_names)).lower()
    return str(swap_sentences)


def _resolve_max_length(
    config: TrainConfig,
    options: Any,
    model_config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> int:
    """Return the maximum number of tokens of an example without virtual tokens."""
    num_virtual = int(getattr(options, "num_virtual_tokens", None) or 0)
    limit = position_limit(model_config, tokenizer)
    if num_virtual + MIN_LENGTH > limit:
        raise UserError(
            f"num_virtual_tokens: got {num_virtual}, but the model has {limit} positions for "
            f"virtual tokens and the example; expected at most {limit - MIN_LENGTH}."
        )
    length = min(config.max_length, limit) - num_virtual
    if length < MIN_LENGTH:
        virtual = f", {num_virtual} of them virtual" if num_virtual else ""
        raise UserError(
            f"max_length: got {config.max_length} tokens{virtual}; expected at least "
            f"{MIN_LENGTH + num_virtual}."
        )
    return length


def _is_truncatable(config: PretrainedConfig) -> bool:
    """Whether the model with fewer layers is the same model without its last layers."""
    if getattr(config, "is_encoder_decoder", False):
        return False  # the decoder would stay
    try:
        depth = config.num_hidden_layers
        copy.deepcopy(config).num_hidden_layers = depth
    except (AttributeError, NotImplementedError):  # nested configurations, Funnel's blocks
        return False
    return isinstance(depth, int)
