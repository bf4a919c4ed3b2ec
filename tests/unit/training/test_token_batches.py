"""Training batches of as many pairs as fill a budget of tokens."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command

from peft_mrpc.data.loading import load_data
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.train import main
from peft_mrpc.training.build_model import build_classifier
from peft_mrpc.training.build_trainer import build_trainer
from peft_mrpc.training.epochs import SetEpochCallback
from peft_mrpc.training.job import parse_request
from peft_mrpc.training.token_batches import TokenBatches

Fit = Callable[..., Run]


@pytest.fixture
def fit(tiny_bert: str, data_flags: list[str], tmp_path: Path) -> Fit:
    def train(name: str, *flags: str) -> Run:
        common = ["--model", tiny_bert, *data_flags, "--method", "full", "--logging_steps", "1"]
        common += ["--bf16", "false", "--sam_rho", "0", "--output_dir", str(tmp_path / name)]
        main([*common, *flags])
        return load_run(tmp_path / name)

    return train


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.record["log_history"] if "loss" in row]


def test_each_epoch_has_every_row_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 500).tolist()
    batches = TokenBatches([*lengths, 400], 300, seed=1)
    epochs = []
    for epoch in (0, 1):
        batches.epoch = epoch
        epochs.append(found := [*batches])
        assert found == [*batches] and len(found) == len(batches)
        assert sorted(row for batch in found for row in batch) == [*range(501)]
        assert found[0] == [500]  # longer than the budget: alone, and first
        tokens = [len(batch) * max(lengths[row] for row in batch) for batch in found[1:]]
        assert max(tokens) <= 300
        # Pairs of like length: little of a batch is padding.
        real = sum(lengths)
        assert real / sum(tokens) > 0.97
    assert epochs[0] != epochs[1]
    other = TokenBatches([*lengths, 400], 300, seed=2)
    assert [*other] != epochs[0] and len(other) == len(batches)
    order = [np.mean([lengths[row] for row in batch]) for batch in epochs[0][1:]]
    assert abs(np.corrcoef(order, range(len(order)))[0, 1]) < 0.5, "batches are not shuffled"


def test_one_batch_of_all_is_one_batch_of_all(fit: Fit) -> None:
    flags = ["--num_train_epochs", "4", "--dropout", "0", "--optim", "sgd"]
    flags += ["--learning_rate", "0.5", "--head_learning_rate", "0.5", "--warmup_steps", "0"]
    flags += ["--layer_decay", "1", "--swap_sentences", "false"]
    budget = fit("budget", *flags, "--max_tokens_per_batch", "100000")
    plain = fit("plain", *flags, "--per_device_train_batch_size", "18")
    assert len(losses(plain)) == 4 and losses(plain)[0] > losses(plain)[-1]
    assert losses(budget) == pytest.approx(losses(plain), abs=1e-5)
    found, expected = (r.predictions("validation").probabilities for r in (budget, plain))
    assert np.abs(found - expected).max() < 1e-5
    assert budget.record["config"]["max_tokens_per_batch"] == 100000
    timing = budget.record["timing"]
    assert timing["train_pairs_per_second"] * timing["train_seconds"] == pytest.approx(4 * 18)


@pytest.mark.parametrize("flags", [[], ["--gradient_accumulation_steps", "2"]])
def test_a_training_goes_on_in_the_midst_of_an_epoch(
    flags: list[str], fit: Fit, tmp_path: Path
) -> None:
    flags = [*flags, "--max_tokens_per_batch", "60", "--num_train_epochs", "3"]
    flags += ["--save_strategy", "steps", "--save_steps", "2"]
    whole = fit("whole", *flags)
    steps = sorted(int(p.name[11:]) for p in (whole.path / "checkpoints").iterdir())
    per_epoch = steps[-1] / 3
    middle = next(step for step in steps if step > per_epoch and step % per_epoch)
    folder = whole.path / "checkpoints" / f"checkpoint-{middle}"
    rest = fit("rest", *flags, "--resume_from_checkpoint", str(folder))
    assert losses(rest) == pytest.approx(losses(whole), abs=1e-5)
    assert np.ptp(losses(whole)) > 1e-3


def test_a_loader_has_the_flags_that_are_its_own(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    request = parse_request(
        ["--model", tiny_bert, *data_flags, "--max_tokens_per_batch", "60"]
        + ["--dataloader_num_workers", "1", "--dataloader_persistent_workers", "true"]
        + ["--dataloader_prefetch_factor", "7"]
    )
    data = load_data(request.data)
    classifier = build_classifier(request, resolve_model(tiny_bert), data)
    trainer, _ = build_trainer(request, data, classifier, str(tmp_path))
    loader = trainer.get_train_dataloader()
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (1, True, 7)
    assert sum(len(batch["labels"]) for batch in loader) == len(data.splits["train"])
    # Rows and batches draw anew; transformers warns of two callbacks of one kind.
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert len(kinds) == len({*kinds}) and SetEpochCallback in kinds


def test_frozen_layers_run_once_in_such_batches_too(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PEFT_MRPC_TRUNKS", str(tmp_path / "trunks"))
    flags = ["--method", "layer_freeze", "--num_unfrozen_layers", "1", "--dropout", "0"]
    flags += ["--max_tokens_per_batch", "200", "--num_train_epochs", "3"]
    with caplog.at_level("INFO", "peft_mrpc"):
        cached = fit("cached", *flags)
    assert "frozen and run once" in caplog.text  # 18 pairs three times are enough to pay
    plain = fit("plain", *flags, "--trunk_cache", "off")
    assert losses(cached) == pytest.approx(losses(plain), abs=2e-4)


def test_processes_share_the_batches_out() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 500).tolist()
    for count in (2, 3):
        alone = [*TokenBatches(lengths, 300, 1)]
        shares = [[*TokenBatches(lengths, 300, 1, process, count)] for process in range(count)]
        assert len({len(share) for share in shares}) == 1
        together = [batch for turn in zip(*shares, strict=True) for batch in turn]
        assert together[: len(alone)] == alone
        assert together[len(alone) :] == alone[: len(together) - len(alone)]
        assert len(together) - len(alone) < count


def test_two_processes_take_half_as_many_steps(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    steps = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = run_command(
            *("train", "--model", tiny_bert, *data_flags, "--method", "full", "--bf16", "false"),
            *("--max_tokens_per_batch", "60", "--num_train_epochs", "2", "--logging_steps", "1"),
            *("--output_dir", str(out)),
            processes=processes,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        record = json.loads((out / "run.json").read_text())
        steps[processes] = len([row for row in record["log_history"] if "loss" in row])
    assert steps[2] == 2 * -(-(steps[1] // 2) // 2)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["0"], "--max_tokens_per_batch: got 0; expected at least 1."),
        (
            ["512", "--per_device_train_batch_size", "8"],
            "--per_device_train_batch_size: got --max_tokens_per_batch as well",
        ),
        (
            ["512", "--train_sampling_strategy", "random"],
            "--train_sampling_strategy: got --max_tokens_per_batch as well",
        ),
    ],
)
def test_what_makes_other_batches_is_refused(
    flags: list[str], said: str, tiny_bert: str, data_flags: list[str], fails: Callable[..., str]
) -> None:
    base = ["--model", tiny_bert, *data_flags, "--dry_run", "--max_tokens_per_batch"]
    assert said in fails(main, *base, *flags)
