"""Runs written by the real code from given probabilities, for tests of what reads Runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peft_mrpc.data.examples import DataSplits, Example
from peft_mrpc.runs.run import Run
from peft_mrpc.runs.writer import describe_data, write_run

NAMES = ("not_equivalent", "equivalent")
TRUTH = [1, 1, 1, 0, 0]
SCORES = {"a": [0.9, 0.8, 0.6, 0.7, 0.1], "b": [0.9, 0.2, 0.6, 0.3, 0.1]}


def build_run(
    path: Path,
    positive: list[float],
    method: str = "full",
    names: tuple[str, ...] = NAMES,
    sentence: str = "sentence",
    seed: int = 1,
    config: dict[str, Any] | None = None,
    train_seconds: float = 3.0,
    truth: Sequence[int] = TRUTH,
    learned: int = 0,
) -> Run:
    """A Run written by the real code from given answers; so many of its pairs it was trained on."""
    labels = [names.index(NAMES[t]) for t in truth]
    pairs = tuple(Example(i, f"{sentence} {i}", f"other {i}", t) for i, t in enumerate(labels))
    train = tuple(Example(i, f"trained {i}", "on", t) for i, t in enumerate(labels[learned:]))
    data = DataSplits("toy", names, {"train": pairs[:learned] + train, "test": pairs})
    columns = {"equivalent": np.array(positive), "not_equivalent": 1 - np.array(positive)}
    path.mkdir(parents=True)
    (path / "model").mkdir()
    record = {
        "method": method,
        "model": "some/model-x",
        "base_model_id": "some/model-x",
        "seed": seed,
        "data": describe_data(data, ["train", "test"]),
        "trainable": {"trained": 10, "total": 100},
        "timing": {
            "score_pairs_per_second": 12.0,
            "score_seconds": 0.4,
            "train_seconds": train_seconds,
        },
        "log_history": [{"loss": 0.7, "epoch": 0.5}, {"loss": 0.5, "epoch": 1.0}],
        "config": config or {},
    }
    return write_run(path, record, data, {"test": np.stack([columns[n] for n in names], axis=1)})
