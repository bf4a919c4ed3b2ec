"""Searches: trials, resuming, pruning, failures, and what is rejected before the first trial."""

import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from conftest import write_csv

from peft_mrpc.config import DataConfig, TrainConfig, TuneConfig
from peft_mrpc.data.loading import load_data
from peft_mrpc.data.splits import stratified_split
from peft_mrpc.errors import UserError
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.serialization import load_yaml, read_json
from peft_mrpc.training.job import TrainJob
from peft_mrpc.training.model_selection import SELECTION
from peft_mrpc.training.run import run_training
from peft_mrpc.training.tuning.study import prepare_search, run_search
from peft_mrpc.tune import main

SPACE = """
learning_rate: {low: 1e-4, high: 1e-1, log: true}
r: {choices: [2, 4, 8]}
pooling: {choices: [native, mean]}
per_device_train_batch_size: {low: 2, high: 6, step: 2}
"""
FILES = {
    *("best.yaml", "search.json", "study.db", "trials.csv"),
    *("history.png", "slice.png", "importances.png"),
}


@pytest.fixture(scope="module")
def job(tiny_bert: str, pair_files: dict[str, str]) -> TrainJob:
    return TrainJob(
        TrainConfig(method="lora", model=tiny_bert, selection_fraction=0.3),
        DataConfig(train_file=pair_files["train"], validation_file=pair_files["validation"]),
        {"num_train_epochs": 2},
    )


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return str(path)


@pytest.fixture(scope="module")
def config(space: str) -> TuneConfig:
    return TuneConfig(search_space=space, objective="loss", num_trials=7)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory, job: TrainJob, config: TuneConfig) -> Path:
    directory = tmp_path_factory.mktemp("tune") / "search"
    run_search(replace(job, output_dir=directory), config)
    return directory


def write_space(directory: Path, text: str) -> TuneConfig:
    path = directory / "space.yaml"
    path.write_text(text)
    return TuneConfig(search_space=str(path), num_trials=2)


def read_trials(directory: Path) -> list[dict[str, str]]:
    with (directory / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def load_study(directory: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=f"sqlite:///{directory / 'study.db'}")


def test_a_search_writes_a_recipe_a_table_and_plots(search: Path, job: TrainJob) -> None:
    assert {path.name for path in search.iterdir()} == FILES
    rows = read_trials(search)
    assert [int(row["trial"]) for row in rows] == list(range(7))
    assert {row["state"] for row in rows} <= {"COMPLETE", "PRUNED"}
    complete = [row for row in rows if row["state"] == "COMPLETE"]
    assert len(complete) >= 5  # nothing is pruned before
    best = min(complete, key=lambda row: float(row["loss"]))
    recipe = load_yaml((search / "best.yaml").read_text())
    assert recipe == {
        **{"method": "lora", "model": job.config.model, "num_train_epochs": 2},
        **{
            f"{split}_file": getattr(job.data, f"{split}_file") for split in ("train", "validation")
        },
        **{"learning_rate": float(best["learning_rate"]), "r": int(best["r"])},
        **{"pooling": best["pooling"]},
        "per_device_train_batch_size": int(best["per_device_train_batch_size"]),
    }


def test_train_accepts_the_recipe(search: Path, tmp_path: Path) -> None:
    from peft_mrpc.train import main as train

    train(["--config", str(search / "best.yaml"), "--output_dir", str(tmp_path / "run")])
    record = read_json(tmp_path / "run" / "run.json")
    recipe = load_yaml((search / "best.yaml").read_text())
    assert record["config"]["learning_rate"] == recipe["learning_rate"]
    assert record["method_options"]["r"] == recipe["r"]


def test_a_trial_equals_a_training_with_its_values(
    job: TrainJob, config: TuneConfig, pair_files: dict[str, str], tmp_path: Path
) -> None:
    # One epoch: an evaluation after each draws random numbers.
    job = replace(job, training_arguments={"num_train_epochs": 1}, output_dir=tmp_path / "search")
    run_search(job, replace(config, num_trials=1))
    (row,) = read_trials(tmp_path / "search")
    data = load_data(DataConfig(train_file=pair_files["train"]))
    parts = stratified_split(data.splits["train"], 0.3, 42)
    for name, part in zip(("train", "validation"), parts, strict=True):
        rows = [(e.sentence1, e.sentence2, data.label_names[e.label]) for e in part]
        write_csv(tmp_path / f"{name}.csv", rows, ("sentence1", "sentence2", "label"))
    job = job.with_options(
        learning_rate=float(row["learning_rate"]),
        r=int(row["r"]),
        pooling=row["pooling"],
        per_device_train_batch_size=int(row["per_device_train_batch_size"]),
        selection_fraction=0.1,
    )
    files = {f"{name}_file": str(tmp_path / f"{name}.csv") for name in ("train", "validation")}
    run = run_training(replace(job, data=DataConfig(**files), output_dir=tmp_path / "run"))
    predictions = run.predictions("validation")
    correct = predictions.probabilities[np.arange(len(parts[1])), predictions.references]
    assert float(row["loss"]) == pytest.approx(-np.log(correct).mean(), abs=1e-5)


def test_a_resumed_search_equals_one_that_was_not_interrupted(
    search: Path, job: TrainJob, config: TuneConfig, tmp_path: Path
) -> None:
    job = replace(job, output_dir=tmp_path / "parts")
    for num_trials in (2, 6, 6):  # nothing is left to do for the last
        run_search(job, replace(config, num_trials=num_trials))
        assert len(read_trials(tmp_path / "parts")) == num_trials
    whole, parts = read_trials(search)[:6], read_trials(tmp_path / "parts")
    for row in [*whole, *parts]:
        del row["seconds"]
    assert parts == whole
    with pytest.raises(UserError, match="contains a search with another num_train_epochs"):
        run_search(job.with_options(num_train_epochs=1), config)


def test_an_interrupted_trial_does_not_count(
    job: TrainJob, config: TuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    train, calls = Trainer.train, []

    def interrupt_second(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", interrupt_second)
    job, config = replace(job, output_dir=tmp_path / "search"), replace(config, num_trials=2)
    with pytest.raises(KeyboardInterrupt) as raised:
        run_search(job, config)
    assert "the same command continues" in raised.value.__notes__[0]
    run_search(job, config)
    assert [row["trial"] for row in read_trials(tmp_path / "search")] == ["0", "2"]
    assert len(load_study(tmp_path / "search").get_trials()) == 3


def test_commands_with_one_storage_share_the_trials(
    job: TrainJob, config: TuneConfig, tmp_path: Path
) -> None:
    config = replace(config, storage=f"sqlite:///{tmp_path / 'shared.db'}", num_trials=1)
    run_search(replace(job, output_dir=tmp_path / "first"), config)
    config = replace(config, num_trials=2)
    run_search(replace(job, output_dir=tmp_path / "second"), config)
    rows = read_trials(tmp_path / "second")
    assert rows[:1] == read_trials(tmp_path / "first") and len(rows) == 2
    assert rows[0]["learning_rate"] != rows[1]["learning_rate"]


def test_machines_of_different_precision_share_a_search(
    job: TrainJob, config: TuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(directory: str) -> str:
        return prepare_search(replace(job, output_dir=tmp_path / directory), config).study_name

    first = name("one")
    monkeypatch.setattr("peft_mrpc.precision.cpu_bf16_units", lambda: "AMX")
    assert name("two") == first


def test_a_failed_trial_is_recorded_and_the_search_continues(job: TrainJob, tmp_path: Path) -> None:
    # Each value alone is valid, with the recipe's 20 virtual tokens and 128 tokens.
    text = "num_virtual_tokens: {choices: [5, 40]}\nmax_length: {choices: [40, 60]}\n"
    config = replace(write_space(tmp_path, text), num_trials=6)
    job = replace(job.with_options(method="prompt_tuning"), output_dir=tmp_path / "search")
    run_search(job, config)
    rows = read_trials(tmp_path / "search")
    is_invalid = [row["num_virtual_tokens"] == row["max_length"] == "40" for row in rows]
    assert [row["state"] == "FAIL" for row in rows] == is_invalid and any(is_invalid)
    failure = next(row["failure"] for row in rows if row["state"] == "FAIL")
    assert failure.startswith("max_length: got 40 tokens, 40 of them virtual")


def test_a_search_without_a_complete_trial_is_an_error(job: TrainJob, tmp_path: Path) -> None:
    config = write_space(tmp_path, "learning_rate: {low: 1e30, high: 1e35}\n")
    job = replace(job, output_dir=tmp_path / "search").with_options(max_grad_norm=0)
    with pytest.raises(UserError, match="tune: none of 2 trials is complete. The first failed: "):
        run_search(job, config)


def test_trials_see_training_examples_only(job: TrainJob, tmp_path: Path) -> None:
    data = prepare_search(replace(job, output_dir=tmp_path / "search"), TuneConfig()).data
    assert {name: len(examples) for name, examples in data.splits.items()} == {
        "train": 13,
        SELECTION: 5,
    }
    everything = load_data(job.data).splits["train"]
    assert {e.idx for split in data.splits.values() for e in split} == {e.idx for e in everything}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_packaged_search_space(
    method: str, job: TrainJob, tmp_path: Path
) -> None:
    # MiniLM: the packaged ranges are for models of a real size.
    job = replace(job, output_dir=tmp_path / "search")
    job = job.with_options(method=method, model="builtin:minilm")
    search = prepare_search(job, TuneConfig())
    assert "learning_rate" in search.space and "num_train_epochs" not in search.space
    rates = search.space["learning_rate"]
    assert rates.low < search.resolved.training_args.learning_rate < rates.high


def test_the_packaged_space_fits_the_model_and_the_job(job: TrainJob, tmp_path: Path) -> None:
    def names(**options: Any) -> set[str]:
        changed = replace(job, training_arguments={}, output_dir=tmp_path / "search")
        changed = changed.with_options(method="layer_freeze", **options)
        return set(prepare_search(changed, TuneConfig()).space)

    default = names()
    assert {"learning_rate", "num_train_epochs", "num_unfrozen_layers"} <= default
    assert default - names(frozen_modules=["embeddings"]) == {"num_unfrozen_layers"}
    assert "num_train_epochs" not in names(max_steps=2)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("layer_decay: {low: 0.5, high: 1.5}", "layer_decay in the search space: layer_decay: got"),
        ("num_virtual_tokens: {low: 1, high: 2}", "num_virtual_tokens: is not an option of lora."),
        ("seed: {low: 1, high: 2}", "seed: must be the same in all trials"),
        ("dataset: {choices: [a, b]}", "dataset: must be the same in all trials"),
        ("num_train_epochs: {low: 1, high: 2}", "has a fixed value in this command too"),
        ("r: {choices: [8, many]}", "r in the search space: r: got 'many'; expected"),
        ("r: {low: 0, high: 8}", "r in the search space: r: got 0; expected at least 1."),
        ("target_modules: {choices: [query, quary]}", "got 'quary'; expected a module of this"),
        ("learning_rate: {low: -1, high: 1}", "learning_rate: got -1"),
        ("pooling: {choices: [mean, max]}", "pooling: got 'max'"),
    ],
)
def test_an_invalid_search_space_is_rejected_before_the_first_trial(
    text: str, error: str, job: TrainJob, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as raised:
        run_search(replace(job, output_dir=tmp_path / "search"), write_space(tmp_path, text))
    assert error in str(raised.value)
    assert not (tmp_path / "search").exists()


def test_an_objective_that_the_search_changes_is_rejected(job: TrainJob, tmp_path: Path) -> None:
    config = write_space(tmp_path, "label_smoothing_factor: {low: 0.0, high: 0.5}\n")
    with pytest.raises(UserError, match="label_smoothing_factor in the search space"):
        prepare_search(replace(job, output_dir=tmp_path / "o"), replace(config, objective="loss"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--num_trials", "0"], "--num_trials: got 0; expected at least 1."),
        (["--num_trails", "3"], "--num_trails: got an unknown option. Did you mean 'num_trials'?"),
        (["--objective", "f2"], "--objective: got 'f2'; expected one of accuracy, loss"),
        (["--pruner", "mean"], "--pruner: got 'mean'; expected one of median, none."),
        (["--seeds", "1,2"], "--seeds: a search has one seed"),
        (["--eval_strategy", "steps"], "--eval_strategy: a trial is evaluated after each epoch"),
        (["--overwrite"], "--overwrite: the same command again continues a search"),
        (["--search_space", "gone.yaml"], "--search_space: got 'gone.yaml'; expected a readable"),
        (["--storage", "nonsense"], "--storage: got 'nonsense', which cannot be opened"),
    ],
)
def test_invalid_options_are_rejected(
    options: list[str],
    error: str,
    tiny_bert: str,
    data_flags: list[str],
    tmp_path: Path,
    fails: Any,
) -> None:
    command = ["--method", "lora", "--model", tiny_bert, *data_flags, *options]
    message = fails(main, *command, "--output_dir", str(tmp_path / "out"))
    assert error in message and len(message.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_search_and_writes_nothing(
    tiny_bert: str,
    space: str,
    data_flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["--method", "lora", "--model", tiny_bert, *data_flags, "--search_space", space]
    command += ["--selection_fraction", "0.3"]
    main([*command, "--dry_run", "--output_dir", str(tmp_path / "out")])
    text = capsys.readouterr().out
    assert "13 examples for training, 5 for accuracy" in text
    assert "learning_rate from 0.0001 to 0.1, log; r in 2, 4, 8" in text
    assert list(tmp_path.iterdir()) == []


def test_a_missing_optuna_is_one_line(
    tiny_bert: str, monkeypatch: pytest.MonkeyPatch, fails: Any
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    message = fails(main, "--model", tiny_bert)
    assert message.endswith("Run: pip install 'peft-mrpc[tune]'")
    assert len(message.splitlines()) == 1
