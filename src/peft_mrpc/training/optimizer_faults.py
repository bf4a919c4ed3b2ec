"""What of the Trainer's own options no optimizer or schedule takes, known before any data."""

import inspect
import json
import os
from typing import Any

import torch
from torch import nn
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.training_args import OptimizerNames

from peft_mrpc.errors import one_line
from peft_mrpc.serialization import is_true

# The Trainer passes these on; some fail in the midst, some train in the wrong direction.
FROM_ZERO = (
    *("weight_decay", "max_grad_norm", "dataloader_num_workers", "adam_epsilon"),
    "neftune_noise_alpha",
)
# Steps between what is done again and again, where that goes by steps.
INTERVALS = {
    "eval_steps": "eval_strategy",
    "save_steps": "save_strategy",
    "logging_steps": "logging_strategy",
}
# These look for layers of the model that they are to work on.
OF_A_MODEL = ("galore", "apollo", "lomo")
# These step within the backward pass.
IN_BACKWARD = ("lomo", "layerwise")
# What `accelerate launch` says of these in the environment.
SHARDING = ("FSDP", "DEEPSPEED")


def number_faults(arguments: TrainingArguments) -> list[str]:
    """Numbers that no optimizer takes, or that it takes for something else."""
    faults = [
        f"--{name}: got {value}; expected 0 or more."
        for name in FROM_ZERO
        if (value := getattr(arguments, name)) is not None and not value >= 0
    ]
    faults += [
        f"--{name}: got {value:g}; expected a number above 0."
        for name, strategy in INTERVALS.items()
        if getattr(arguments, strategy) == "steps"
        and (value := getattr(arguments, name)) is not None
        and not value > 0
    ]
    return faults + [
        f"--{name}: got {value}; expected 0 or more and below 1."
        for name in ("adam_beta1", "adam_beta2")
        if not 0 <= (value := getattr(arguments, name)) < 1
    ]


def parts_layers(arguments: TrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed is to part the model among the processes."""
    launched = any(is_true(os.environ.get(f"ACCELERATE_USE_{name}", "")) for name in SHARDING)
    return bool(arguments.fsdp or arguments.deepspeed or launched)


def keeps_gradients_from_us(arguments: TrainingArguments) -> str:
    """What leaves a step no gradients of the whole model, if anything does."""
    if any(part in arguments.optim for part in IN_BACKWARD):
        return f"--optim {OptimizerNames(arguments.optim).value}"
    return "FSDP or DeepSpeed" if parts_layers(arguments) else ""


def schedule_faults(
    arguments: TrainingArguments, unfreeze_every: float | None, sam_rho: float
) -> list[str]:
    """Why this optimizer leaves no gradients that are needed, or none can be built at all."""
    needs = {"unfreeze_every": unfreeze_every, "sam_rho": sam_rho or None}
    keeper = keeps_gradients_from_us(arguments)
    faults = [
        f"--{name}: got {value:g}, but {keeper} leaves no gradients to work on; drop one of them."
        for name, value in needs.items()
        if value is not None and keeper
    ]
    if faults:
        return faults
    return _build_faults(arguments)


def _build_faults(arguments: TrainingArguments) -> list[str]:
    """Why optimizer or schedule cannot be built or go on, if so: tried on a model of one layer."""
    model: Any = nn.Linear(1, 1)
    schedule: Any = arguments.lr_scheduler_kwargs or {}
    if not isinstance(schedule, dict):
        return [
            f"--lr_scheduler_kwargs: got {schedule!r}; expected a mapping of the schedule's "
            "options, such as '{\"min_lr\": 1e-6}' of cosine_with_min_lr."
        ]
    flag = f"--optim: got {OptimizerNames(arguments.optim).value}"
    if arguments.optim_args:
        flag += f" with --optim_args {arguments.optim_args}"
    needs_model = any(part in arguments.optim for part in OF_A_MODEL)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        if not needs_model:
            optimizer = kind(model.parameters(), **options)
        flag = f"--lr_scheduler_type: got {SchedulerType(arguments.lr_scheduler_type).value}"
        if schedule:
            flag += f" with --lr_scheduler_kwargs {json.dumps(schedule)}"
        built: Any = get_scheduler(
            arguments.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs={**schedule},
        )
        takes = inspect.signature(built.step).parameters.values()
        metric = [1.0 for one in takes if one.default is one.empty]  # that some go by
        for _ in range(10):
            optimizer.step()
            built.step(*metric)
    except (ValueError, TypeError, ImportError, KeyError, RuntimeError, ArithmeticError) as error:
        if needs_model and not isinstance(error, ImportError):
            return []
        return [f"{flag}, which cannot be built: {one_line(error)}"]
    return []
