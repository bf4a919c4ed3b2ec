"""The process group of a distributed job."""

import atexit
import functools
import os
from typing import Any

import torch
from accelerate import PartialState

from peft_mrpc.serialization import is_true


def prepare_processes() -> None:
    """Select the CPU where there is no accelerator.

    Without ACCELERATE_USE_CPU, Accelerate treats each rank on a machine without an accelerator as
    a job of its own: every rank would do all the work and write the same Run.
    """
    if not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"


def process_state() -> PartialState:
    """Rank, number of processes and device. The first call joins the process group."""
    prepare_processes()
    _destroy_process_group_at_exit()
    return PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1"))


def is_sharded(training_args: Any) -> bool:
    """Whether FSDP or DeepSpeed splits the model among the processes.

    Args:
        training_args: The `TrainingArguments`; `accelerate launch` sets environment variables.
    """
    launched = any(
        is_true(os.environ.get(f"ACCELERATE_USE_{name}", "")) for name in ("FSDP", "DEEPSPEED")
    )
    return bool(training_args.fsdp or training_args.deepspeed or launched)


@functools.cache
def _destroy_process_group_at_exit() -> None:
    """Destroy the process group before the interpreter ends.

    Otherwise threads of Gloo outlive the interpreter and sometimes abort a rank that is done.
    """
    atexit.register(_destroy_process_group)


def _destroy_process_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
