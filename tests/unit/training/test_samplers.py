"""The order of training examples: each once per epoch, also in resumed and distributed runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_script
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


UNDER_DDP = """
import json, sys
import torch.distributed as dist
import peft_mrpc.train as train
from peft_mrpc.cli.app import run_cli
from peft_mrpc.training.trainer import ClassificationTrainer

rows = {}
step = ClassificationTrainer.training_step

def watch(self, model, inputs, *args):
    texts = [json.dumps(ids[ids != 0].tolist()) for ids in inputs["input_ids"]]
    rows.setdefault(int(self.state.epoch), []).extend(texts)
    return step(self, model, inputs, *args)

ClassificationTrainer.training_step = watch
assert run_cli(train.main, sys.argv[2:]) == 0
everyone = [None] * dist.get_world_size()
dist.all_gather_object(everyone, rows)
if dist.get_rank() == 0:
    open(sys.argv[1], "w").write(json.dumps(everyone))
dist.destroy_process_group()
"""


@pytest.mark.distributed
def test_two_processes_share_the_examples_of_every_epoch(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    # Dropout draws by the shape of the batch, which is another in each process.
    flags = ["--model", tiny_bert, *data_flags, "--method", "full", "--dropout", "0.1"]
    flags += ["--bf16", "false", "--swap_sentences", "false", "--num_train_epochs", "3"]
    flags += ["--per_device_train_batch_size", "3", "--output_dir", str(tmp_path / "run")]
    done = run_script(UNDER_DDP, tmp_path, str(tmp_path / "rows.json"), *flags, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = json.loads((tmp_path / "rows.json").read_text())
    for epoch in ("0", "1", "2"):
        first, second = (rank[epoch] for rank in ranks)
        assert len(first) == len(second) == 9 and len({*first, *second}) == 9
        assert sorted([*first, *second]) == sorted(2 * [*{*first, *second}])
