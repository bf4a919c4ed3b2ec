"""Freed memory: kept within the block where there is glibc, handed back after it."""

import platform
import subprocess
import sys

import pytest

# Blocks as a training step has them: each below the size that the system gives out by itself.
SCRIPT = """
import contextlib, resource, sys
import torch
from peft_mrpc.training.heap import freed_memory_kept

torch.set_num_threads(1)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [torch.ones(4_000_000) for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

usual = faults()
pieces = [bytearray(100_000) for _ in range(1000)]
pin = bytearray(100_000)
with_pieces = resident()
del pieces
with freed_memory_kept():
    before = resident()
    faults()  # which has it given out for the first time
    kept, held = faults(), resident() - before
left = resident() - before
print(usual, kept, held, left, faults(), with_pieces - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has these settings")
def test_freed_memory_is_kept_within_the_block_and_handed_back_after_it() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    usual, kept, held, left, after, pieces = map(int, done.stdout.split())
    assert kept < usual / 4, done.stdout
    assert held > 100e6, "the 128 MB that steps have freed"
    assert left < 32e6 and after > kept, done.stdout
    assert pieces > 90e6, "what was free before the block: 100 MB, with a piece at its end in use"
