"""Check a resolved job before its model's weights are loaded; all faults are reported at once.

The rules are limits and choices of single options, and conflicts that involve a feature of this
package. What `TrainingArguments`, PEFT's configs, optimizers and schedulers check themselves is
left to them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from peft_mrpc.config import MAX_SEED
from peft_mrpc.data.examples import DataSplits, label_counts
from peft_mrpc.errors import raise_faults, unknown_name
from peft_mrpc.evaluation.thresholds import threshold_faults
from peft_mrpc.methods.compatibility import validate_compatibility
from peft_mrpc.models.loading import QUANTIZATIONS
from peft_mrpc.models.modeling_sentence_pair import POOLINGS, PROMPT_POSITIONS
from peft_mrpc.training.checkpoints import checkpoint_faults, resume_faults
from peft_mrpc.training.job import ResolvedJob
from peft_mrpc.training.losses import class_weight_faults, loss_faults
from peft_mrpc.training.model_selection import (
    carve_selection_split,
    selection_data_faults,
    selection_faults,
    uses_selection_split,
)
from peft_mrpc.training.resolve import gradient_owner

CHOICES: dict[str, Sequence[str]] = {
    "pooling": ("native", *POOLINGS),
    "prompt_position": PROMPT_POSITIONS,
    "quantization": QUANTIZATIONS,
    "swap_sentences": ("true", "false"),
    "activation_cache": ("on", "off"),
}


def _at_least(minimum: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: math.isfinite(value) and value >= minimum, f"at least {minimum:g}"


def _positive() -> tuple[Callable[[Any], bool], str]:
    return lambda value: math.isfinite(value) and value > 0, "a number above 0"


# Options with the test of a valid value and its description. None is always valid.
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dropout": (lambda value: 0 <= value < 1, "0 or more and below 1"),
    "sam_rho": _at_least(0),
    "layer_decay": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "head_learning_rate": _positive(),
    "pad_to_multiple_of": _at_least(1),
    "selection_fraction": (lambda value: 0 < value < 1, "a number between 0 and 1"),
    "early_stopping_patience": _at_least(1),
    "learning_rate": _positive(),
    "num_train_epochs": _positive(),
    "per_device_train_batch_size": _at_least(1),
    "per_device_eval_batch_size": _at_least(1),
    "gradient_accumulation_steps": _at_least(1),
    "max_grad_norm": _at_least(0),  # a negative norm trains in the wrong direction
    "seed": (lambda value: 0 <= value <= MAX_SEED, f"0 to {MAX_SEED}"),
    "data_seed": (lambda value: 0 <= value <= MAX_SEED, f"0 to {MAX_SEED}"),
}
# Settings of the Trainer that our evaluation does not support: the default, and the reason.
UNSUPPORTED_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "batch_eval_metrics": (False, "ROC-AUC needs all examples together"),
    "eval_do_concat_batches": (True, "the metrics need all examples together"),
    "dataloader_drop_last": (False, "an evaluation would skip examples too"),
    "label_names": (None, "the column of the labels is always `labels`"),
}


def validate(resolved: ResolvedJob) -> None:
    """Check a resolved job.

    Raises:
        UserError: With all faults.
    """
    raise_faults([fault for rule in RULES for fault in rule(resolved)])


def limit_faults(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with single options, whatever the model and the data.

    Args:
        values: Fields of `TrainConfig` and `TrainingArguments` by name. None is always valid.
    """
    faults: list[str] = []
    for name, choices in CHOICES.items():
        if (value := values.get(name)) is not None and value not in (*choices, "auto"):
            faults += unknown_name(name, str(value), (*choices, "auto")).faults
    for name, (is_valid, expected) in LIMITS.items():
        if (value := values.get(name)) is not None and not is_valid(value):
            faults.append(f"{name}: got {value}; expected {expected}.")
    return faults


def _limit_faults(resolved: ResolvedJob) -> list[str]:
    names = LIMITS.keys() | CHOICES.keys()
    values = {name: getattr(resolved.training_args, name, None) for name in names}
    return limit_faults({**values, **vars(resolved.config)})


def _argument_faults(resolved: ResolvedJob) -> list[str]:
    args = resolved.training_args
    faults = [
        f"{name}: got {str(value).lower()}, but {reason}. Remove it."
        for name, (default, reason) in UNSUPPORTED_ARGUMENTS.items()
        if (value := getattr(args, name)) != default
    ]
    if args.hub_token:
        faults.append("hub_token: got a token; log in with `hf auth login` or set HF_TOKEN.")
    if resolved.push_to_hub and not args.hub_model_id:
        faults.append("push_to_hub: got no hub_model_id; expected owner/name.")
    if args.fp16 and not torch.accelerator.is_available():
        faults.append("fp16: got true, but there is no GPU. Remove it.")
    return faults


def _feature_faults(resolved: ResolvedJob) -> list[str]:
    config, args = resolved.config, resolved.training_args
    return [
        *threshold_faults(config.threshold),
        *selection_faults(config, args),
        *loss_faults(config.class_weights, args.label_smoothing_factor),
    ]


def _compatibility_faults(resolved: ResolvedJob) -> list[str]:
    config = resolved.config
    return validate_compatibility(
        resolved.model_config,
        config.method,
        resolved.method_options,
        pooling=str(config.pooling),
        prompt_position=config.prompt_position,
        quantization=config.quantization,
        gradient_checkpointing=bool(resolved.training_args.gradient_checkpointing),
    )


def _gradient_faults(resolved: ResolvedJob) -> list[str]:
    """Features that work on the gradients of a step, without gradients to work on."""
    needs = {
        "unfreeze_every": getattr(resolved.method_options, "unfreeze_every", None),
        "sam_rho": resolved.config.sam_rho or None,
    }
    reason = gradient_owner(resolved.training_args)
    return [
        f"{name}: got {value:g}, but {reason} leaves no gradients to work on. Remove one of the "
        "two."
        for name, value in needs.items()
        if value is not None and reason
    ]


def _frozen_part_faults(resolved: ResolvedJob) -> list[str]:
    """Features that work on a part of the model that the method does not train."""
    config, options = resolved.config, resolved.method_options
    method, noise = config.method, resolved.training_args.neftune_noise_alpha
    faults = []
    is_prompt = getattr(options, "is_prompt_learning", False)
    trains_no_layer = (
        method == "linear_probe" or is_prompt or getattr(options, "num_unfrozen_layers", None) == 0
    )
    if "layer_decay" in resolved.explicit and trains_no_layer:
        faults.append(f"layer_decay: got {config.layer_decay}, but {method} trains no layer.")
    freezes_embeddings = resolved.method.frozen_stages and not (
        getattr(options, "frozen_modules", None) or getattr(options, "unfrozen_modules", None)
    )
    if noise and (is_prompt or freezes_embeddings):
        faults.append(
            f"neftune_noise_alpha: got {noise:g}, but {method} does not train the word embeddings."
        )
    if config.activation_cache == "on" and not resolved.method.frozen_stages:
        faults.append(
            f"activation_cache: got 'on', but {method} has no frozen layers; expected auto or off, "
            "or another method, such as layer_freeze."
        )
    return faults


def _checkpoint_faults(resolved: ResolvedJob) -> list[str]:
    folder = resolved.training_args.resume_from_checkpoint
    if folder is None:
        return []
    patience = resolved.config.early_stopping_patience
    return checkpoint_faults(Path(folder), resolved.training_args, patience)


RULES: tuple[Callable[[ResolvedJob], list[str]], ...] = (
    _limit_faults,
    _argument_faults,
    _feature_faults,
    _compatibility_faults,
    _gradient_faults,
    _frozen_part_faults,
    _checkpoint_faults,
)


def prepare_data(
    resolved: ResolvedJob, data: DataSplits, reported: Sequence[str] = ()
) -> DataSplits:
    """Check a valid job against its data, and carve the selection split from train.

    Args:
        resolved: The job.
        data: All of its examples.
        reported: The splits that the Run reports.
    Returns:
        The data, with the split `selection` if the job selects anything on it.
    Raises:
        UserError: With all faults.
    """
    config, args = resolved.config, resolved.training_args
    faults = threshold_faults(config.threshold, len(data.label_names))
    uses_selection = uses_selection_split(config, args)
    if "train" not in data.splits:
        faults.append(f"{data.name}: has no train split; use train_file.")
    elif uses_selection:
        faults += selection_data_faults(args, reported, data)
    raise_faults(faults)
    if uses_selection:
        data = carve_selection_split(config, args, data)
    counts = label_counts(data.splits["train"], data.label_names)
    faults = class_weight_faults(config.class_weights, counts)
    raise_faults([*faults, *resume_faults(resolved, data)])
    return data
