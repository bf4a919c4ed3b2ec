"""What a Run was made on: versions, hardware, and the memory that it took."""

import contextlib
import os
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from peft_mrpc import __version__

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


def describe_environment() -> dict[str, Any]:
    """Versions of what computes, and the hardware it ran on."""
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


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def reset_peak_memory() -> None:
    """Count the peak memory anew from here, where the system lets us (Linux does)."""
    import torch

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def available_memory(on_gpu: bool) -> int:
    """Memory that could be had now, in bytes: the GPU's, or the machine's."""
    import torch

    if on_gpu:
        return torch.cuda.mem_get_info()[0]
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory() -> dict[str, int]:
    """Peak memory of this process so far, in bytes: resident, and allocated on the GPU."""
    import torch

    peaks = {"resident_bytes": _peak_resident_bytes()}
    if torch.cuda.is_available():
        peaks["gpu_bytes"] = torch.cuda.max_memory_allocated()
    return peaks


def _peak_resident_bytes() -> int:
    # Not ru_maxrss, which begins as what the parent process had.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
