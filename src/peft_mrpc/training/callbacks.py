"""Where a training can be watched while it goes on."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from transformers import TrainingArguments

from peft_mrpc.errors import logger

LOGGING_DIR = "TENSORBOARD_LOGGING_DIR"


@contextlib.contextmanager
def tensorboard_logs(arguments: TrainingArguments, output_dir: Path) -> Iterator[None]:
    """Let a Trainer built within write TensorBoard's logs where they can be watched, and stay.

    They go to `tensorboard/<name of the Run>/seed-<seed>-<time>` beside the Run: the Run itself is
    built elsewhere and moved into its place when it is whole. The environment variable that
    transformers reads for it, `TENSORBOARD_LOGGING_DIR`, has its way where it is set.
    """
    if "tensorboard" not in (arguments.report_to or ()) or os.environ.get(LOGGING_DIR):
        yield
        return
    place = output_dir.absolute().parent / "tensorboard"
    started = time.strftime("%Y%m%dT%H%M%S")
    os.environ[LOGGING_DIR] = str(place / output_dir.name / f"seed-{arguments.seed}-{started}")
    logger.info("watch it with: tensorboard --logdir %s", place)
    try:
        yield
    finally:
        del os.environ[LOGGING_DIR]
