"""Where the activations of frozen layers are kept, as flags say it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from peft_mrpc.config import TrainConfig
from peft_mrpc.errors import choice_faults
from peft_mrpc.training.tuning.search_space import Parameter

MODES = ("auto", "disk", "memory", "off")
DTYPES = ("auto", "float32", "bfloat16", "float16")
# Flags of which each value has activations of its own.
PARTING = {
    *("num_unfrozen_layers", "frozen_modules", "unfrozen_modules", "pooling", "head_layer"),
    *("trunk_cache_dtype", "bf16", "fp16", "tf32", "attention"),
}
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class TrunkPlan:
    """Where activations are kept, and how.

    Attributes:
        mode: `disk`, `memory`, `off`, or `auto`: on disk if there is room.
        dtype: Name of what they are kept in; None as they are computed.
        disk_bytes: The most that all trunks together may take on disk.
        memory_bytes: The most that this one may take in memory; beyond, files are mapped.
        model: What the user calls the model, for the list of what is kept.
        precision: Of the training: bf16 and fp16 compute other activations than fp32.
    """

    mode: str
    dtype: str | None
    disk_bytes: int
    memory_bytes: int
    model: str
    precision: str


def build_trunk_plan(config: TrainConfig, precision: str) -> TrunkPlan:
    """The plan that checked flags mean, for a training in this precision."""
    return TrunkPlan(
        config.trunk_cache,
        None if config.trunk_cache_dtype == "auto" else config.trunk_cache_dtype,
        parse_bytes(config.trunk_cache_limit) or 0,
        parse_bytes(config.trunk_cache_memory) or 0,
        config.model,
        precision,
    )


def trunk_faults(config: object) -> list[str]:
    """What is wrong with the flags, which `train` and `doctor` have."""
    choices = {"trunk_cache": MODES, "trunk_cache_dtype": DTYPES}
    return choice_faults(config, choices) + [
        f"--{name}: got {getattr(config, name)!r}; expected a size such as 2GB."
        for name in ("trunk_cache_limit", "trunk_cache_memory")
        if parse_bytes(getattr(config, name)) is None
    ]


def count_trunks(space: Sequence[Parameter]) -> int:
    """Among how many trunks the trials of a search are shared out."""
    return math.prod(parameter.count() for parameter in space if parameter.name in PARTING)


def parse_bytes(text: str) -> int | None:
    """`2GB`, `500 MB` or plain bytes as a number; None for what is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", str(text).strip(), re.IGNORECASE)
    if not match:
        return None
    unit = match[2].upper().removesuffix("B")
    return int(float(match[1]) * UNITS[f"{unit}B" if unit else ""])


def in_bytes(size: int) -> str:
    """A size to read: 123 MB, 1.2 GB."""
    for unit in ("KB", "MB", "GB"):
        if size < 999.5 * UNITS[unit]:  # three digits, not 1e+03
            return f"{size / UNITS[unit]:.3g} {unit}"
    return f"{size / UNITS['TB']:.3g} TB"
