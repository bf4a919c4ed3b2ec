"""The order of training examples: each once per epoch, also in resumed and distributed runs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from peft_mrpc.runs.run import Run
from peft_mrpc.training.samplers import ResumableLengthGroupedSampler

LENGTHS = np.random.default_rng(0).integers(3, 60, 200).tolist()


def orders(sampler: LengthGroupedSampler, between: Callable[[], object]) -> list[list[int]]:
    """The rows of a loader in each of three epochs."""
    loader: DataLoader[int] = DataLoader(range(200), batch_size=8, sampler=sampler)  # type: ignore
    rows = []
    for epoch in range(3):
        if isinstance(sampler, ResumableLengthGroupedSampler):
            sampler.set_epoch(epoch)
        rows.append([int(row) for batch in loader for row in batch])
        between()
    return rows


def build(seed: int | None = None) -> ResumableLengthGroupedSampler:
    torch.manual_seed(1)
    return ResumableLengthGroupedSampler(8, LENGTHS, seed)


def test_the_order_is_the_trainers_own_whatever_else_is_drawn() -> None:
    ours = orders(build(), lambda: None)
    torch.manual_seed(1)
    assert ours == orders(LengthGroupedSampler(8, lengths=LENGTHS), lambda: None)
    assert ours == orders(build(), lambda: torch.rand(3))
    assert all(sorted(order) == [*range(200)] for order in ours)
    assert ours[0] != ours[1] != ours[2]
    sampler = build()
    sampler.set_epoch(2)
    assert [*sampler] == ours[2] == [*sampler]


def test_a_seed_determines_the_order() -> None:
    torch.manual_seed(1)
    first = [*ResumableLengthGroupedSampler(8, LENGTHS, 5)]
    torch.manual_seed(2)
    assert (
        [*ResumableLengthGroupedSampler(8, LENGTHS, 5)]
        == first
        != [*ResumableLengthGroupedSampler(8, LENGTHS, 6)]
    )


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("full", {"dropout": 0.1, "train_sampling_strategy": "group_by_length"}),
        ("lora", {"gradient_accumulation_steps": 2}),
        ("layer_freeze", {"swap_sentences": "true"}),
        ("full", {"eval_strategy": "epoch", "selection_fraction": 0.3}),
    ],
    ids=["dropout", "accumulation", "swapped", "evaluated"],
)
def test_a_training_resumes_within_a_later_epoch(
    method: str, options: dict[str, Any], train_tiny: Callable[..., Run]
) -> None:
    common = {**options, "num_train_epochs": 3, "per_device_train_batch_size": 2}
    common |= {"logging_steps": 1, "save_strategy": "steps", "save_steps": 1}
    whole = train_tiny(method, "whole", **common)
    losses = [row["loss"] for row in whole.record["log_history"] if "loss" in row]
    per_epoch = len(losses) // 3
    assert per_epoch > 2 and np.ptp(losses) > 1e-3
    for step in (per_epoch + 1, 2 * per_epoch, 2 * per_epoch + 2):
        checkpoint = whole.path / "checkpoints" / f"checkpoint-{step}"
        resumed = train_tiny(
            method, f"from-{step}", resume_from_checkpoint=str(checkpoint), **common
        )
        history = resumed.record["log_history"]
        assert [row["loss"] for row in history if "loss" in row] == losses
        probabilities = [run.predictions("validation").probabilities for run in (whole, resumed)]
        assert np.array_equal(*probabilities)
