"""This process's place in a job of several."""

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
    return PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1"))
