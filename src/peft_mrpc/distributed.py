"""This process's place in a job of several."""

import atexit
import functools
import os

import torch
from accelerate import PartialState


def prepare_processes() -> None:
    """Say that the CPU is meant where there is nothing else.

    Accelerate takes a rank on a machine without an accelerator for a job of its own unless told
    that the CPU is meant: each of N ranks would then do all the work and write the same Run.
    """
    if not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"


def process_state() -> PartialState:
    """Rank, number of processes and device; joins the job when first called."""
    prepare_processes()
    _leave_job_at_exit()
    return PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1"))


@functools.cache
def _leave_job_at_exit() -> None:
    """Close the process group before the interpreter ends.

    Gloo's threads outlive it otherwise, and now and then abort a rank that had finished.
    """
    atexit.register(_leave_job)


def _leave_job() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
