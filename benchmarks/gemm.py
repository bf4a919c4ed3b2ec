"""How fast this machine multiplies matrices at its best, the way torch's linear layers do."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import linear

# Rows, width in, width out: squares, and the layers of MiniLM and of bert-base at 1,024 tokens.
SHAPES = [(n, n, n) for n in (512, 1024, 1536, 2048)]
SHAPES += [(1024, 384, 1536), (1024, 1536, 384), (1024, 768, 3072), (1024, 3072, 768)]


def gemm_peak(dtype: torch.dtype, seconds: float = 0.3) -> float:
    """The fastest of many products of many shapes, in operations a second.

    Args:
        dtype: Of the matrices.
        seconds: Spent on each shape.
    """
    best = 0.0
    for rows, width_in, width_out in SHAPES:
        inputs = torch.randn(rows, width_in, dtype=dtype)
        weight = torch.randn(width_out, width_in, dtype=dtype)
        with torch.inference_mode():
            fastest = fastest_call(partial(linear, inputs, weight), seconds)
        best = max(best, 2 * rows * width_in * width_out / fastest)
    return best


def fastest_call(function: Callable[[], object], seconds: float) -> float:
    """The shortest of a call's times, over so many seconds after three calls to warm up."""
    for _ in range(3):
        function()
    best, ends = float("inf"), time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends:
        function()
        best = min(best, time.perf_counter() - started)
    return best
