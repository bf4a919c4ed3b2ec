"""The same search by several processes of this machine."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence

import torch

from peft_mrpc.errors import UserError, logger

COUNT = "PEFT_MRPC_WORKERS"  # in the environment of each


def worker_count() -> int:
    """How many workers were started with this one, itself included."""
    return int(os.environ.get(COUNT, "1"))


def run_workers(argv: Sequence[str], count: int) -> None:
    """Start the same command several times, each on its share of the cores or on a GPU of its own.

    Raises:
        UserError: If none of them ended well.
    """
    gpus = torch.cuda.device_count()
    workers: list[subprocess.Popen[bytes]] = []
    command = [sys.executable, "-m", "peft_mrpc.tune", *argv, "--num_workers", "1"]
    try:
        for number in range(count):
            threads = str(max(1, torch.get_num_threads() // count))
            env = {"OMP_NUM_THREADS": threads, **os.environ, COUNT: str(count)}
            if gpus > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
                env["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
            workers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env))
        codes = [worker.wait() for worker in workers]
    except BaseException:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            with contextlib.suppress(KeyboardInterrupt):
                worker.wait()
        raise
    if all(codes):
        raise UserError(f"tune: none of {count} workers ended well; they say why above.")
    if any(codes):
        ended = sum(code != 0 for code in codes)
        logger.warning("%d of %d workers ended early; the others did the rest", ended, count)
