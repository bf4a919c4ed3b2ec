"""What is wrong with the flags of a training, before any data or model is looked at."""

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)
from transformers.trainer_utils import SaveStrategy
from transformers.utils.import_utils import is_liger_kernel_available

from peft_mrpc.config import TrainConfig
from peft_mrpc.errors import choice_faults, one_line, unknown_name
from peft_mrpc.evaluation.metric_names import THRESHOLD_METRICS
from peft_mrpc.methods.registry import find_method
from peft_mrpc.models.modeling_sentence_pair import POOLINGS, PROMPT_POSITIONS
from peft_mrpc.models.quantization import QUANTIZATIONS
from peft_mrpc.training.activation_cache.callback import cache_faults
from peft_mrpc.training.checkpoints import checkpoint_faults
from peft_mrpc.training.losses import loss_faults
from peft_mrpc.training.optimizer_faults import number_faults
from peft_mrpc.training.selection import selection_faults

MAX_SEED = (1 << 32) - 1
SWAPS = ("auto", "true", "false")
# What train and doctor ask about a model.
MODEL_CHOICES: dict[str, Sequence[str]] = {
    "pooling": ("auto", "native", *POOLINGS),
    "prompt_position": PROMPT_POSITIONS,
    "quantization": QUANTIZATIONS,
}
# Switches of the Trainer under which our evaluation has nothing to go by.
NOT_OURS: dict[str, tuple[Any, str]] = {
    "batch_eval_metrics": (False, "ROC-AUC is of all rows together"),
    "eval_do_concat_batches": (True, "metrics are of all rows together"),
    "label_names": (None, "a pair's label is always `labels`"),
}


def argument_faults(config: TrainConfig, arguments: TrainingArguments) -> list[str]:
    """What is wrong with flags before any data or model is looked at."""
    faults = []
    if arguments.hub_token:
        faults.append("--hub_token: got a token; log in with `hf auth login` or set HF_TOKEN.")
    if arguments.push_to_hub and not arguments.hub_model_id:
        faults.append("--push_to_hub: got no --hub_model_id; expected owner/name.")
    if config.max_length < 8:
        faults.append(f"--max_length: got {config.max_length}; expected at least 8 tokens.")
    faults += choice_faults(config, {**MODEL_CHOICES, "swap_sentences": SWAPS})
    faults += head_layer_faults(config.head_layer)
    if config.dropout is not None and not 0 <= config.dropout < 1:
        faults.append(f"--dropout: got {config.dropout}; expected 0 or more and below 1.")
    if not (math.isfinite(config.sam_rho) and config.sam_rho >= 0):
        faults.append(f"--sam_rho: got {config.sam_rho}; expected 0 or more, such as 0.05.")
    faults += _rate_faults(config, arguments)
    if (step := config.pad_to_multiple_of) is not None and step < 1:
        faults.append(f"--pad_to_multiple_of: got {step}; expected at least 1.")
    counts = ("per_device_train_batch_size", "per_device_eval_batch_size")
    for name in (*counts, "gradient_accumulation_steps", "eval_accumulation_steps"):
        if (count := getattr(arguments, name)) is not None and count < 1:
            faults.append(f"--{name}: got {count}; expected at least 1.")
    if arguments.max_steps != -1 and arguments.max_steps < 1:
        faults.append(f"--max_steps: got {arguments.max_steps}; expected at least 1.")
    faults += [
        f"--{name}: got {seed}; expected 0 to {MAX_SEED}."
        for name, seed in (("seed", arguments.seed), ("data_seed", arguments.data_seed))
        if seed is not None and not 0 <= seed <= MAX_SEED
    ]
    if arguments.fp16 and not torch.accelerator.is_available():
        faults.append("--fp16: got true, but there is no GPU here; drop it.")
    faults += selection_faults(config, arguments) + cache_faults(
        config.activation_cache, config.activation_cache_memory
    )
    faults += loss_faults(
        config.class_weights, config.focal_gamma, arguments.label_smoothing_factor
    )
    faults += number_faults(arguments) + _switch_faults(arguments) + _tracker_faults(arguments)
    if arguments.resume_from_checkpoint is not None:
        folder = Path(arguments.resume_from_checkpoint)
        faults += checkpoint_faults(folder, arguments, config.early_stopping_patience)
    return faults


def head_layer_faults(head_layer: str) -> list[str]:
    """What is wrong with the flag, whatever the model."""
    if head_layer in ("auto", "last") or (head_layer.isdecimal() and int(head_layer) > 0):
        return []
    return [
        f"--head_layer: got {head_layer!r}; expected the number of a layer from 1 on, last or auto."
    ]


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


def _switch_faults(arguments: TrainingArguments) -> list[str]:
    """Switches of the Trainer that end in its midst."""
    faults = [
        f"--{name}: got {str(value).lower()}, but {reason}; drop it."
        for name, (wanted, reason) in NOT_OURS.items()
        if (value := getattr(arguments, name)) != wanted
    ]
    if arguments.use_liger_kernel and not is_liger_kernel_available():
        faults.append(
            "--use_liger_kernel: got true, but it is not installed. Next: pip install liger-kernel"
        )
    backend = arguments.torch_compile_backend
    if arguments.torch_compile and backend is not None:
        known = torch._dynamo.list_backends(())
        if backend not in known:
            faults += unknown_name("--torch_compile_backend", backend, known).faults
    if arguments.torch_compile and (mode := arguments.torch_compile_mode) is not None:
        modes = torch._inductor.list_mode_options()
        if mode not in modes:
            faults += unknown_name("--torch_compile_mode", mode, modes).faults
    if arguments.fsdp and arguments.world_size == 1:
        faults.append("--fsdp: got one process; start several by `accelerate launch`, or drop it.")
    taken = set(inspect.signature(checkpoint).parameters) - {"function", "args", "kwargs"}
    for name in set(arguments.gradient_checkpointing_kwargs or {}) - taken:
        faults += unknown_name("--gradient_checkpointing_kwargs", name, taken).faults
    return faults


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


def idle_faults(
    verb: str, config: TrainConfig, arguments: TrainingArguments, options: Any, asked: set[str]
) -> list[str]:
    """Flags that were given where nothing would heed them."""
    faults = []
    in_no_layer = (
        config.method == "linear_probe"
        or getattr(options, "is_prompt_learning", False)
        or getattr(options, "num_unfrozen_layers", None) == 0
    )
    if "layer_decay" in asked and config.layer_decay is not None and in_no_layer:
        faults.append(
            f"--layer_decay: got {config.layer_decay}, but {config.method} trains nothing in a "
            "layer; drop it."
        )
    if arguments.neftune_noise_alpha and getattr(options, "is_prompt_learning", False):
        faults.append(
            f"--neftune_noise_alpha: got {arguments.neftune_noise_alpha:g}, but transformers does "
            f"not find the word embeddings under {config.method}; drop it, or use lora."
        )
    freezes = find_method(config.method).freezes(options)
    has_words_frozen = freezes and not (
        getattr(options, "frozen_modules", None) or getattr(options, "unfrozen_modules", None)
    )
    if arguments.neftune_noise_alpha and has_words_frozen:
        faults.append(
            f"--neftune_noise_alpha: got {arguments.neftune_noise_alpha:g}, but {config.method} "
            "leaves the word embeddings as they are; drop it."
        )
    faults += _idle_cache(config, asked, freezes)
    # tune's trials are chosen on the held-out part.
    return faults + _idle_choice(config, arguments, asked) if verb == "train" else faults


def _idle_cache(config: TrainConfig, asked: set[str], freezes: bool) -> list[str]:
    """Options of the activation cache that have no effect."""
    if freezes and config.activation_cache != "off":
        return []
    if config.activation_cache == "on":
        return [
            f"activation_cache: got 'on', but {config.method} has no frozen layers; expected auto "
            "or off, or another method, such as layer_freeze."
        ]
    if "activation_cache_memory" not in asked:
        return []
    reason = f"{config.method} has no frozen layers" if not freezes else "activation_cache is off"
    return [
        f"activation_cache_memory: got {config.activation_cache_memory}, but {reason}; drop it."
    ]


def _idle_choice(config: TrainConfig, arguments: TrainingArguments, asked: set[str]) -> list[str]:
    """What is said of choosing where nothing is chosen, or at another time."""
    faults = []
    for name, strategy in (("eval_steps", "eval_strategy"), ("save_steps", "save_strategy")):
        kind = SaveStrategy(getattr(arguments, strategy)).value
        if name in asked and kind != "steps":
            faults.append(
                f"--{name}: got {getattr(arguments, name):g}, but --{strategy} is {kind}; add "
                f"--{strategy} steps, or drop it."
            )
    is_judged = arguments.eval_strategy != "no"
    if "selection_fraction" in asked and not is_judged and config.threshold != "auto":
        faults.append(
            f"--selection_fraction: got {config.selection_fraction}, but nothing is chosen on a "
            "part of train; add --eval_strategy epoch, --early_stopping_patience or --threshold "
            "auto, or drop it."
        )
    keeps_best = arguments.load_best_model_at_end or arguments.save_strategy == "best"
    metric = arguments.metric_for_best_model or ""
    has_chosen = keeps_best or (
        config.threshold == "auto" and metric.removeprefix("eval_") in THRESHOLD_METRICS
    )
    if "metric_for_best_model" in asked and not has_chosen:
        faults.append(
            f"--metric_for_best_model: got {metric}, but nothing is chosen by it; add "
            "--load_best_model_at_end (or, for accuracy and f1, --threshold auto), or drop it."
        )
    return faults
