"""The dtype that the hardware at hand computes fast in."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments

from peft_mrpc.errors import logger
from peft_mrpc.serialization import is_true

# Ends of oneDNN's names for AVX512-BF16 and what came after it.
_ABOVE_AVX512_BF16 = ("_BF16", "_FP16", "_AMX")


def cpu_bf16_units() -> str | None:
    """What this CPU multiplies bf16 matrices with, of what oneDNN may make use of: None if nothing.

    Both take twice the numbers an instruction that fp32 does, and AMX (Intel since Sapphire Rapids)
    several times that; AVX512-BF16 is also AMD's since Zen 4.
    """
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # the first is the stronger, as for oneDNN
    limit = next((os.environ[name] for name in names if name in os.environ), "DEFAULT").upper()
    is_free = limit in ("DEFAULT", "ALL")
    if torch.cpu._is_amx_tile_supported() and (is_free or "AMX" in limit):
        return "AMX"
    has_avx = torch.cpu._is_avx512_bf16_supported()
    if has_avx and (is_free or limit.startswith("AVX10") or limit.endswith(_ABOVE_AVX512_BF16)):
        return "AVX512-BF16"
    return None


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
    arXiv:1905.12322). A precision that `accelerate launch` was told stands; `no` is also what it
    says where it was told nothing.

    Args:
        asked: Flags and recipe of the user.
    """
    wants = {
        name: is_true(asked[name]) for name in ("bf16", "fp16", "tf32", "use_cpu") if name in asked
    }
    has_gpu = torch.accelerator.is_available() and not wants.get("use_cpu", False)
    # transformers refuses bf16 on a machine without a GPU unless told that the CPU is meant.
    on_cpu = {} if has_gpu or "use_cpu" in wants else {"use_cpu": True}
    if wants.get("bf16", False):
        return on_cpu
    is_asked = "bf16" in wants or wants.get("fp16", False) or wants.get("tf32", False)
    has_units = gpu_has_bf16() if has_gpu else cpu_bf16_units() is not None
    is_kept_off = not has_gpu and wants.get("use_cpu") is False
    return (
        {} if _is_told() or is_asked or is_kept_off or not has_units else {"bf16": True, **on_cpu}
    )


def keep_off(arguments: TrainingArguments, asked: Mapping[str, Any]) -> None:
    """Compute in fp32 where a precision was asked to be off, whatever `accelerate launch` says."""
    name = str(arguments.mixed_precision)
    if name in asked and not is_true(asked[name]):
        arguments.mixed_precision = "no"


def warn_slow_bf16(arguments: TrainingArguments) -> None:
    """Say so where bf16 was asked for and is emulated."""
    is_bf16 = trainer_precision(arguments) == "bf16"
    if is_bf16 and arguments.device.type == "cpu" and cpu_bf16_units() is None:
        logger.warning("--bf16: this CPU has no units for it (AMX, AVX512-BF16); fp32 is faster")


def is_by_rule(asked: Mapping[str, Any]) -> bool:
    """Whether the precision is the hardware's own, and may be another on another machine."""
    return not _is_told() and not {"bf16", "fp16", "tf32"} & set(asked)


def _is_told() -> bool:
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"


def trainer_precision(arguments: TrainingArguments) -> str:
    """What the Trainer computes in: fp32, bf16 or fp16, by its flags or by `accelerate launch`."""
    name = str(arguments.mixed_precision)
    return "fp32" if name == "no" else name


def padding_step(precision: str) -> int:
    """What the length of a training batch is to be a multiple of.

    In 16 bits it is 8: tensor cores are fed by eights (NVIDIA, "Matrix multiplication background"),
    and on a CPU oneDNN builds a kernel for each shape that comes, which costs a training more
    time and memory than the padding does.
    """
    return 1 if precision == "fp32" else 8
