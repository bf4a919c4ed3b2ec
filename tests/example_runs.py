"""Runs written by the package from given probabilities, for tests of what reads Runs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.data.examples import DataSplits, Example
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.runs.writer import describe_data, write_run

NAMES = ("not_equivalent", "equivalent")
TRUTH = [1, 1, 1, 0, 0]
# Probabilities of "equivalent": "a" and "b" are correct on four of the five examples.
SCORES = {"a": [0.9, 0.8, 0.6, 0.7, 0.1], "b": [0.9, 0.2, 0.6, 0.3, 0.1]}
PERFECT = [0.9, 0.8, 0.6, 0.2, 0.1]


def build_run(
    path: Path,
    positive: Sequence[float],
    method: str = "full",
    names: tuple[str, ...] = NAMES,
    sentence: str = "sentence",
    seed: int = 1,
    config: dict[str, Any] | None = None,
    train_seconds: float = 3.0,
    truth: Sequence[int] = TRUTH,
    num_leaked: int = 0,
) -> Run:
    """Write a Run.

    Args:
        path: Its directory.
        positive: Probability of "equivalent" of each test example.
        method: Its method.
        names: Label names in the order of their indices.
        sentence: Beginning of each first sentence.
        seed: Its seed.
        config: Its configuration.
        train_seconds: Its training time.
        truth: The label of each test example, as an index of NAMES.
        num_leaked: How many of the test examples are training examples too.
    """
    labels = [names.index(NAMES[t]) for t in truth]
    test = tuple(Example(i, f"{sentence} {i}", f"other {i}", t) for i, t in enumerate(labels))
    train = tuple(Example(i, f"trained {i}", "on", t) for i, t in enumerate(labels[num_leaked:]))
    data = DataSplits("toy", names, {"train": test[:num_leaked] + train, "test": test})
    columns = {"equivalent": np.array(positive), "not_equivalent": 1 - np.array(positive)}
    path.mkdir(parents=True)
    (path / "model").mkdir()
    record = {
        "strategy": "train",
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
    probabilities = np.stack([columns[name] for name in names], axis=1)
    return write_without_plots(path, record, data, probabilities)


def build_three_label_run(path: Path, method: str = "full", weight: float = 0.5) -> Run:
    """Write a Run of three labels whose predictions are better the larger the weight."""
    names = ("contradiction", "entailment", "neutral")
    examples = tuple(Example(i, f"s{i}", f"t{i}", i % 3) for i in range(30))
    data = DataSplits("nli", names, {"test": examples})
    record = {
        **{"method": method, "model": "m", "base_model_id": None, "seed": 1, "config": {}},
        **{"strategy": "train", "data": describe_data(data, ["test"])},
        "timing": {"score_pairs_per_second": 1.0},
    }
    noise = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    probabilities = noise * (1 - weight) + np.eye(3)[np.arange(30) % 3] * weight
    (path / "model").mkdir(parents=True)
    return write_without_plots(path, record, data, probabilities)


def write_without_plots(
    path: Path, record: dict[str, Any], data: DataSplits, probabilities: NDArray[np.float64]
) -> Run:
    """Write a Run faster, because most tests do not read its plots."""
    with patch("peft_mrpc.runs.writer.save_figure"):
        return write_run(path, record, data, {"test": probabilities})


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_record(run: Run, change: Callable[[Any], Any]) -> Run:
    """Change a Run's `run.json`, and load it again."""
    change_json(run.path / "run.json", change)
    return load_run(run.path)
