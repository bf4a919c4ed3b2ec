"""The precision of training and inference on the present hardware."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments

from peft_mrpc.interop.torch_internals import cpu_has_amx, cpu_has_avx512_bf16
from peft_mrpc.serialization import is_true

logger = logging.getLogger(__name__)

# Suffixes of oneDNN's names for AVX512-BF16 and the instruction sets after it.
_ABOVE_AVX512_BF16 = ("_BF16", "_FP16", "_AMX")


def cpu_bf16_units() -> str | None:
    """The CPU's units for bf16 matrix products that oneDNN may use; None if there are none.

    Both process twice as many numbers per instruction as fp32; AMX (Intel since Sapphire Rapids)
    several times as many. AMD has AVX512-BF16 since Zen 4.
    """
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # oneDNN reads the first one first
    limit = next((os.environ[name] for name in names if name in os.environ), "DEFAULT").upper()
    is_unlimited = limit in ("DEFAULT", "ALL")
    if cpu_has_amx() and (is_unlimited or "AMX" in limit):
        return "AMX"
    allows_avx = limit.startswith("AVX10") or limit.endswith(_ABOVE_AVX512_BF16)
    if cpu_has_avx512_bf16() and (is_unlimited or allows_avx):
        return "AVX512-BF16"
    return None


def gpu_has_bf16() -> bool:
    """Whether there is a CUDA or ROCm GPU with units for bf16 (NVIDIA's since Ampere).

    Older GPUs emulate bf16, several times slower than fp16.
    """
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype of weights that are not trained: 16 bits on a GPU, fp32 on a CPU.

    In fp32, scores on a CPU depend neither on the CPU nor on the batch.
    """
    if device.type == "cuda":
        return torch.bfloat16 if gpu_has_bf16() else torch.float16
    return torch.float32


def precision_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """TrainingArguments for bf16 mixed precision, if the hardware has units for it.

    Weights, gradients and optimizer states stay in fp32 (arXiv:1905.12322). The user's options and
    the configuration of `accelerate launch` win; there, `no` is also the default.

    Args:
        options: The options that the user gave.
    """
    switches = {
        name: is_true(options[name])
        for name in ("bf16", "fp16", "tf32", "use_cpu")
        if name in options
    }
    has_gpu = torch.accelerator.is_available() and not switches.get("use_cpu", False)
    # transformers refuses bf16 on a machine without a GPU unless use_cpu is set.
    on_cpu = {} if has_gpu or "use_cpu" in switches else {"use_cpu": True}
    if switches.get("bf16", False):
        return on_cpu
    is_given = "bf16" in switches or switches.get("fp16", False) or switches.get("tf32", False)
    has_units = gpu_has_bf16() if has_gpu else cpu_bf16_units() is not None
    is_cpu_refused = not has_gpu and switches.get("use_cpu") is False
    if _is_set_by_launcher() or is_given or is_cpu_refused or not has_units:
        return {}
    return {"bf16": True, **on_cpu}


def disable_mixed_precision(arguments: TrainingArguments, options: Mapping[str, Any]) -> None:
    """Train in fp32 if the user disabled a precision that `accelerate launch` would set."""
    name = str(arguments.mixed_precision)
    if name in options and not is_true(options[name]):
        arguments.mixed_precision = "no"


def warn_slow_bf16(arguments: TrainingArguments) -> None:
    """Log a warning if bf16 is emulated on this CPU."""
    is_bf16 = trainer_precision(arguments) == "bf16"
    if is_bf16 and arguments.device.type == "cpu" and cpu_bf16_units() is None:
        logger.warning("bf16: this CPU has no units for it (AMX, AVX512-BF16); fp32 is faster")


def _is_set_by_launcher() -> bool:
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"


def trainer_precision(arguments: TrainingArguments) -> str:
    """The precision of the Trainer: fp32, bf16 or fp16."""
    name = str(arguments.mixed_precision)
    return "fp32" if name == "no" else name


def padding_step(precision: str) -> int:
    """The number that the length of a training batch is padded to a multiple of.

    It is 8 in 16-bit precision: tensor cores expect multiples of 8 (NVIDIA, "Matrix multiplication
    background"), and on a CPU oneDNN compiles a kernel for each new shape, which costs more time
    and memory than padding.
    """
    return 1 if precision == "fp32" else 8
