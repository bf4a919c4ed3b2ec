"""The dtype that the hardware at hand computes fast in."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments


def cpu_has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware."""
    return bool(torch.cpu._is_amx_tile_supported())


def gpu_has_bf16() -> bool:
    """Whether there is a CUDA or ROCm GPU with units for bf16 (NVIDIA's since Ampere).

    Older ones take bf16 too, and emulate it, several times slower than fp16.
    """
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def compute_dtype(device: torch.device) -> torch.dtype:
    """What weights that do not train compute in: 16 bits on a GPU, fp32 on a CPU.

    On a CPU scores in fp32 are the same whatever CPU it is and whichever pairs share a batch.
    """
    if device.type == "cuda":
        return torch.bfloat16 if gpu_has_bf16() else torch.float16
    return torch.float32


def precision_defaults(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of a training whose precision was not asked for: bf16 where there are units for it.

    Weights, their gradients and the optimizer's states stay in fp32 (mixed precision,
    arXiv:1905.12322); what `accelerate launch` was told to compute in stands.

    Args:
        asked: Flags and recipe of the user.
    """
    has_gpu = torch.accelerator.is_available() and not _is_true(asked.get("use_cpu", False))
    # transformers refuses bf16 on a machine without a GPU unless told that the CPU is meant.
    on_cpu = {} if has_gpu else {"use_cpu": True}
    if "bf16" in asked:
        return on_cpu if _is_true(asked["bf16"]) else {}
    is_told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
    has_units = gpu_has_bf16() if has_gpu else cpu_has_amx()
    if "fp16" in asked or is_told or not has_units:
        return {}
    return {"bf16": True, **on_cpu}


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "yes", "t", "y", "1")


def trainer_precision(arguments: TrainingArguments) -> str:
    """What the Trainer computes in: fp32, bf16 or fp16, by its flags or by `accelerate launch`."""
    name = str(arguments.mixed_precision)
    return "fp32" if name == "no" else name
