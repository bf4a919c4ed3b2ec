"""Multi-seed training: ordinary Runs, resuming after an interruption, aggregation at read time."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_mrpc import DataConfig, TrainConfig, UserError, load_classifier, train_classifier
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.train import main
from peft_mrpc.training.job import TrainJob

FILES = ("metrics.json", "README.md", "predictions/validation.jsonl", "adapter/peft_mrpc.json")
OPTIONS: dict[str, Any] = {"num_train_epochs": 2, "learning_rate": 3e-2, "seeds": (3, 1, 2)}
FLAGS = ["--method", "lora", "--num_train_epochs", "2", "--learning_rate", "3e-2"]


@pytest.fixture(scope="module")
def seeds_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: str, tiny_data: DataConfig
) -> Run:
    return train_classifier(
        TrainConfig(method="lora", model=tiny_bert, seeds=(3, 1, 2)),
        tiny_data,
        output_dir=tmp_path_factory.mktemp("seeds") / "run",
        **{"num_train_epochs": 2, "learning_rate": 3e-2, "r": 4, "disable_tqdm": True},
        per_device_train_batch_size=4,
    )


def test_each_seed_is_an_ordinary_run(seeds_run: Run, train_tiny: Callable[..., Run]) -> None:
    assert {path.name for path in seeds_run.path.iterdir()} == {"seed_1", "seed_2", "seed_3"}
    alone = train_tiny("lora", "alone", num_train_epochs=2, learning_rate=3e-2, seed=2)
    member = load_run(seeds_run.path / "seed_2")
    for name in FILES:
        assert (member.path / name).read_bytes() == (alone.path / name).read_bytes(), name
    assert {key for key in alone.record if member.record[key] != alone.record[key]} <= {
        *("finished", "peak_memory", "timing", "log_history")
    }


def test_the_metrics_are_aggregated_when_the_runs_are_read(seeds_run: Run) -> None:
    members = [load_run(seeds_run.path / f"seed_{seed}") for seed in (1, 2, 3)]
    accuracies = [run.metrics["validation"]["accuracy"] for run in members]
    values = seeds_run.metrics["validation"]
    assert values["accuracy"] == pytest.approx(sum(accuracies) / 3)
    assert values["num_seeds"] == 3
    assert load_classifier(seeds_run).labels == ["not_equivalent", "equivalent"]


def test_each_seed_has_its_own_selection_split(train_tiny: Callable[..., Run]) -> None:
    options = {"selection_fraction": 0.3, "load_best_model_at_end": True, "threshold": "auto"}
    both = train_tiny("lora", "both", seeds=(1, 2), **options)
    alone = train_tiny("lora", "alone", seed=2, **options)
    first, second = (load_run(both.path / f"seed_{seed}") for seed in (1, 2))
    assert second.record["selection"] == alone.record["selection"]
    fingerprints = {run.record["selection"]["fingerprint"] for run in (first, second)}
    assert len(fingerprints) == 2


def test_finished_seeds_are_skipped(
    train_tiny: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from peft_mrpc.training import run as run_module

    build = run_module.build_classifier

    def fail_on_seed_2(resolved: Any, *rest: Any) -> Any:
        if resolved.training_args.seed == 2:
            raise UserError("the disk is full")
        return build(resolved, *rest)

    monkeypatch.setattr(run_module, "build_classifier", fail_on_seed_2)
    with pytest.raises(UserError, match="the disk is full") as error:
        train_tiny("lora", seeds=(1, 2))
    assert "Finished seeds (seed_1) are in" in error.value.__notes__[-1]
    before = (tmp_path / "run" / "seed_1" / "run.json").read_bytes()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"seed_1"}
    monkeypatch.undo()

    with pytest.raises(UserError, match="seed_1 is a Run of another job .with another r"):
        train_tiny("lora", seeds=(1, 2), r=2)
    run = train_tiny("lora", seeds=(1, 2))
    assert run.metrics["validation"]["num_seeds"] == 2
    assert (tmp_path / "run" / "seed_1" / "run.json").read_bytes() == before
    replaced = train_tiny("lora", seeds=(4, 5), r=2, overwrite=True)
    assert {path.name for path in replaced.path.iterdir()} == {"seed_4", "seed_5"}


def test_an_interrupted_command_keeps_its_finished_seeds(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    # Long enough to be interrupted in the second seed.
    flags = [*FLAGS, "--model", tiny_bert, *data_flags, "--num_train_epochs", "250"]
    flags += ["--seeds", "5,6", "--output_dir", str(tmp_path / "r")]
    process = subprocess.Popen(
        [sys.executable, "-m", "peft_mrpc.train", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    assert any(line.startswith("seed 5 (1 of 2): validation") for line in process.stdout)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Finished seeds (seed_5) are in" in message
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["seed_5"]


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((1, 1, 2), "seeds: got 1 twice; expected different seeds."),
        ((1, -2), "seeds: got -2; expected integers from 0 to 4294967295"),
        (("1", "two"), "seeds: got 'two'; expected integers"),
        ((1, 2.5), "seeds: got 2.5"),
        ((1, True), "seeds: got True"),
        ((1, 4294967296), "seeds: got 4294967296"),
        ((7,), "seeds: got 7 alone; expected two or more, or use seed."),
    ],
)
def test_invalid_seeds_are_rejected(seeds: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        _ = TrainJob(TrainConfig(seeds=seeds)).seeds
    assert message in str(error.value)


def test_seeds_exclude_a_seed_and_a_checkpoint() -> None:
    options = {"seed": 3, "resume_from_checkpoint": "checkpoint-3"}
    with pytest.raises(UserError) as error:
        _ = TrainJob(TrainConfig(seeds=(1, 2)), training_arguments=options).seeds
    assert error.value.faults == (
        "seeds: got seed as well. Remove one of the two.",
        "seeds: got resume_from_checkpoint as well. Remove one of the two.",
    )


def test_the_command_prints_a_line_per_seed(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*FLAGS, "--model", tiny_bert, *data_flags, "--seeds", "1,2"]
    main([*flags, "--output_dir", str(tmp_path / "run")])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:15] for line in lines if line.startswith("seed ")] == [
        "seed 1 (1 of 2)",
        "seed 2 (2 of 2)",
    ]
    main([*flags, "--output_dir", str(tmp_path / "run"), "--dry_run"])  # as the command continues
    assert "dry run: nothing was trained" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"seed_1", "seed_2"}
