"""`doctor`: environment, compatibility matrix, number of trained parameters, cost estimates."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import ARCHITECTURES as TINY_ARCHITECTURES
from tiny_models import tiny_config
from transformers import AutoConfig, TrainingArguments

from peft_mrpc.config import DataConfig, TrainConfig
from peft_mrpc.doctor import main
from peft_mrpc.errors import UserError
from peft_mrpc.methods.compatibility import (
    MATRIX_ARCHITECTURES,
    default_options,
    validate_compatibility,
)
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.training.cost_estimate import (
    CostEstimate,
    TrainingSet,
    estimate_cost,
    measure_training_set,
)
from peft_mrpc.training.job import TrainJob
from peft_mrpc.training.resolve import load_base_model
from peft_mrpc.training.run import run_training

ROOT = Path(__file__).parents[2]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Run doctor and return the lines that it prints."""

    def run(*arguments: str) -> list[str]:
        main(list(arguments))
        return capsys.readouterr().out.splitlines()

    return run


def estimate(model: str, num_examples: int, **options: Any) -> CostEstimate:
    job = TrainJob(TrainConfig(model=model)).with_options(**options)
    training_set = TrainingSet(num_examples, 20, ("not_equivalent", "equivalent"))
    return estimate_cost(job, load_base_model(job.config), training_set)


def test_the_matrix_and_the_environment_are_printed(printed: Callable[..., list[str]]) -> None:
    lines = printed()
    text = "\n".join(lines)
    assert "torch 2" in text and "CPU:" in text and "installed: bitsandbytes" in text
    header = next(number for number, line in enumerate(lines) if line.startswith("method"))
    columns, *rows = [line.split() for line in lines[header : header + 1 + len(METHODS)]]
    table = {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}
    assert set(table) == set(METHODS)
    assert set(table["lora"].values()) == {"yes"}
    assert table["prefix_tuning"]["bert"] == "yes"
    assert table["prefix_tuning"]["modernbert"] == table["prefix_tuning"]["checkpointing"] == "-"
    assert table["prompt_tuning"]["llama"] == "ours"
    documented = [
        line.strip("| ").split(" | ")
        for line in (ROOT / "docs" / "methods.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    assert all(row in documented for row in [columns, *rows])


def test_one_method_has_the_reasons(printed: Callable[..., list[str]]) -> None:
    lines = printed("--method", "bitfit")
    assert "method: got bitfit, but llama here has no biases; use ln_tuning." in lines
    assert not any("torch" in line for line in lines)


def test_the_matrix_holds_for_the_tiny_models_of_the_tests() -> None:
    assert set(MATRIX_ARCHITECTURES) == set(TINY_ARCHITECTURES)
    for method in METHODS:
        options = default_options(method)
        for name in MATRIX_ARCHITECTURES:
            for pooling in ("last", "native"):
                full, tiny = (
                    validate_compatibility(config, method, options, pooling=pooling)
                    for config in (AutoConfig.for_model(name), tiny_config(name))
                )
                assert full == tiny


def test_the_parameters_are_those_of_a_training(
    tiny_bert: str,
    pair_files: dict[str, str],
    tmp_path: Path,
    printed: Callable[..., list[str]],
) -> None:
    lines = printed(*("--model", tiny_bert, "--method", "lora", "--r", "4", "--estimate", "false"))
    job = TrainJob(
        TrainConfig(model=tiny_bert, method="lora"),
        DataConfig(train_file=pair_files["train"], validation_file=pair_files["validation"]),
        {"max_steps": 1},
        {"r": 4},
        tmp_path / "run",
    )
    counts = run_training(job).record["trainable"]
    start = f"lora: works; {counts['trained']:,} of {counts['total']:,} parameters train"
    assert lines[1].startswith(start)


def test_all_methods_are_counted_without_weights(
    tiny_bert: str, printed: Callable[..., list[str]]
) -> None:
    lines = printed("--model", tiny_bert)
    assert [line.split(": works; ")[0] for line in lines[1:]] == list(METHODS)


def test_invalid_commands_are_rejected(
    tiny_bert: str, tiny_llama: str, fails: Callable[..., str]
) -> None:
    assert "no biases" in fails(main, "--method", "bitfit", "--model", tiny_llama)
    command = ["--method", "full", "--model", tiny_bert, "--quantization"]
    assert "full trains or saves" in fails(main, *command, "nf4")
    assert "Did you mean 'lora'?" in fails(main, "--method", "loar")
    assert "Add --method." in fails(main, "--model", tiny_bert, "--num_unfrozen_layers", "1")
    assert "Add --method and --model." in fails(main, "--num_examples", "5")


def test_a_yaml_file_describes_one_training(
    tiny_bert: str, tmp_path: Path, printed: Callable[..., list[str]]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: {tiny_bert}\nmethod: lora\nr: 2\nreport_to: tensorboard\n")
    lines = printed("--config", str(path), "--num_examples", "1000")
    assert lines[1].startswith("lora: works; ")
    pattern = r"1,000 examples of 53 tokens: about \d+ (s|min|h) per epoch, after \d+ s to start"
    assert re.match(pattern + r"; peak memory about [\d.]+ [MG]B$", lines[2])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("method", ["layer_freeze", "full", "prompt_tuning"])
def test_time_is_proportional_to_the_examples(method: str, tiny_bert: str) -> None:
    few = estimate(tiny_bert, 1000, method=method)
    many = estimate(tiny_bert, 1_000_000, method=method)
    # Timings of the same few steps, on a busy machine.
    assert 30 < many.epoch_seconds / few.epoch_seconds < 30_000
    assert few.peak_bytes > 0 and few.start_seconds >= 0


def test_the_activation_cache_is_part_of_the_estimate(tiny_bert: str) -> None:
    options = {"method": "layer_freeze", "num_unfrozen_layers": 1, "bf16": False}
    cached = estimate(tiny_bert, 1000, **options)
    assert cached.cache_seconds > 0 and "for the activation cache" in str(cached)
    plain = estimate(tiny_bert, 1000, **options, activation_cache="off")
    assert plain.cache_seconds == 0 and "cache" not in str(plain)
    # All layers train.
    assert (
        estimate(tiny_bert, 1000, method="layer_freeze", num_unfrozen_layers=2).cache_seconds == 0
    )


@pytest.mark.parametrize(
    "options",
    [
        {"eval_strategy": "epoch", "eval_on_start": True},
        {"early_stopping_patience": 2, "metric_for_best_model": "f1"},
        {"class_weights": "1,2,3", "threshold": "auto"},
        {"gradient_accumulation_steps": 300},
    ],
)
def test_options_of_train_do_not_prevent_an_estimate(
    options: dict[str, Any], tiny_bert: str
) -> None:
    assert estimate(tiny_bert, 100, method="lora", r=2, **options).epoch_seconds > 0


def test_jobs_without_an_estimate_are_rejected(
    tiny_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="not quantized"):
        estimate(tiny_bert, 100, method="lora", quantization="nf4")
    with monkeypatch.context() as patch:
        patch.setattr("peft_mrpc.training.cost_estimate.available_memory", lambda on_gpu: 1000)
        with pytest.raises(UserError, match="and 1 KB are available"):
            estimate(tiny_bert, 100, method="lora")
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(UserError, match="start doctor as one process"):
        estimate(tiny_bert, 100, method="lora")


def test_a_training_set_is_measured(tiny_bert: str, pair_files: dict[str, str]) -> None:
    job = TrainJob(TrainConfig(model=tiny_bert), DataConfig(train_file=pair_files["train"]))
    base = load_base_model(job.config)
    measured = measure_training_set(job, base)
    assert (measured.num_examples, measured.label_names) == (18, ("not_equivalent", "equivalent"))
    # Sentences have 3 to 10 words, and an example three special tokens.
    assert 10 < measured.mean_tokens < 20
    assert str(measure_training_set(job, base, 1000, 30)) == "1,000 examples of 30 tokens"
    with pytest.raises(UserError, match="got 3 numbers"):
        measure_training_set(job.with_options(class_weights="1,2,3"), base)


def test_the_default_training_set_is_not_loaded(tiny_bert: str) -> None:
    job = TrainJob(TrainConfig(model=tiny_bert), DataConfig(class_names="no, yes"))
    mrpc = measure_training_set(job, load_base_model(job.config))
    assert (mrpc.num_examples, mrpc.mean_tokens, mrpc.label_names) == (3668, 53, ("no", "yes"))
