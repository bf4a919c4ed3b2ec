"""Trainings compute in bf16 where the hardware has units for it, and in what was asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_from_flags

from peft_mrpc.cli.train_arguments import parse_train_command
from peft_mrpc.models.classifier import ClassificationCollator
from peft_mrpc.precision import (
    compute_dtype,
    cpu_bf16_units,
    precision_defaults,
    trainer_precision,
)
from peft_mrpc.runs.run import load_run
from peft_mrpc.train import main
from peft_mrpc.training.resolve import load_base_model, resolve


def training_args(*argv: str) -> Any:
    """The Trainer's arguments of a command line."""
    job = parse_train_command(["--model", "builtin:minilm", *argv])
    return resolve(job, load_base_model(job.config), ["no", "yes"]).training_args


@pytest.fixture(params=[True, False], ids=["units", "no_units"])
def has_units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether this CPU has units for bf16."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    has: bool = request.param
    monkeypatch.setattr("peft_mrpc.precision.cpu_bf16_units", lambda: "AMX" if has else None)
    return has


@pytest.mark.parametrize("method", ["full", "layer_freeze", "prompt_tuning"])
def test_a_cpu_with_units_for_bf16_trains_in_it(method: str, has_units: bool) -> None:
    arguments = training_args("--method", method)
    assert trainer_precision(arguments) == ("bf16" if has_units else "fp32")
    assert arguments.device.type == "cpu"


def test_an_explicit_precision_is_kept(has_units: bool, tmp_path: Path) -> None:
    assert trainer_precision(training_args("--bf16", "false")) == "fp32"
    assert trainer_precision(training_args("--bf16")) == "bf16"
    assert trainer_precision(training_args("--use_cpu", "false")) == "fp32"
    by_rule = trainer_precision(training_args("--fp16", "false"))
    assert by_rule == ("bf16" if has_units else "fp32")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: lora\nbf16: false\n", encoding="utf-8")
    assert trainer_precision(training_args("--config", str(recipe))) == "fp32"


def test_what_accelerate_launch_was_told_stands(
    has_units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    arguments = training_args()
    assert not arguments.bf16 and trainer_precision(arguments) == "bf16"
    assert trainer_precision(training_args("--bf16", "false")) == "fp32"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what it says where nothing was asked
    assert trainer_precision(training_args()) == ("bf16" if has_units else "fp32")


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)]
)
def test_a_gpu_without_units_for_bf16_does_not_emulate_it(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Properties:
        major = capability[0]

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: Properties)
    monkeypatch.setattr("peft_mrpc.precision.cpu_bf16_units", lambda: "AMX")
    assert compute_dtype(torch.device("cuda")) == dtype
    assert precision_defaults({}) == ({"bf16": True} if dtype == torch.bfloat16 else {})
    for options in ({"fp16": True}, {"tf32": "true"}, {"bf16": False}):
        assert precision_defaults(options) == {}
    assert precision_defaults({"use_cpu": "true"}) == {"bf16": True}


@pytest.mark.parametrize(
    ("limit", "with_amx", "without"),
    [
        (None, "AMX", "AVX512-BF16"),
        ("all", "AMX", "AVX512-BF16"),
        ("AVX512_CORE", None, None),
        ("AVX512_CORE_VNNI", None, None),
        ("avx512_core_bf16", "AVX512-BF16", "AVX512-BF16"),
        ("AVX512_CORE_FP16", "AVX512-BF16", "AVX512-BF16"),
        ("AVX10_1_512", "AVX512-BF16", "AVX512-BF16"),
        ("AVX512_CORE_AMX", "AMX", "AVX512-BF16"),
        ("AVX10_1_512_AMX", "AMX", "AVX512-BF16"),
    ],
)
@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_what_onednn_may_not_use_is_not_there(
    variable: str,
    limit: str | None,
    with_amx: str | None,
    without: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    if limit is not None:
        monkeypatch.setenv(variable, limit)
    monkeypatch.setattr("peft_mrpc.precision.cpu_has_avx512_bf16", lambda: True)
    for has_amx, expected in ((True, with_amx), (False, without)):
        monkeypatch.setattr("peft_mrpc.precision.cpu_has_amx", lambda has=has_amx: has)
        assert cpu_bf16_units() == expected
    monkeypatch.setattr("peft_mrpc.precision.cpu_has_avx512_bf16", lambda: False)
    assert cpu_bf16_units() is None


@pytest.mark.parametrize("method", ["layer_freeze", "lora"])
def test_bf16_trains_weights_in_fp32_to_about_the_same_answers(
    method: str, tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--model", tiny_bert, *data_flags, "--method", method, "--num_train_epochs", "2"]
    probabilities = {}
    for value in ("true", "false"):
        folder = tmp_path / value
        main([*flags, "--bf16", value, "--output_dir", str(folder)])
        probabilities[value] = load_run(folder).predictions("validation").probabilities
    drift = np.abs(probabilities["true"] - probabilities["false"]).max()
    assert 0 < drift < 0.02
    run = load_run(tmp_path / "true")
    assert run.record["config"]["bf16"] is True and run.record["precision"] == "bf16"
    assert {value.dtype for value in _weights(run.path).values()} == {torch.float32}


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "modernbert", "llama"])
def test_padding_to_eights_leaves_logits_as_they_are(
    architecture: str, models: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    argv = ["--model", models[architecture], *data_flags, "--method", "lora"]
    tiny = build_from_flags(tmp_path, argv)
    classifier, data = tiny.classifier, tiny.data
    features, _ = classifier.encode(data.splits["train"][:5])
    longest = max(len(feature["input_ids"]) for feature in features)
    assert longest % 8
    logits = {}
    for step in (1, 8):
        batch = ClassificationCollator(classifier.tokenizer, classifier.model.config, step)(
            features
        )
        length = batch["input_ids"].shape[1]
        assert length == longest if step == 1 else length % step == 0 < length - longest < step
        with torch.inference_mode():
            logits[step] = classifier.model.eval()(**batch).logits
    torch.testing.assert_close(logits[1], logits[8], atol=1e-5, rtol=0)
    virtual = ClassificationCollator(classifier.tokenizer, classifier.model.config, 8, None, 5)(
        features
    )
    assert (virtual["input_ids"].shape[1] + 5) % 8 == 0
    limited = ClassificationCollator(classifier.tokenizer, classifier.model.config, 8, longest)(
        features
    )
    assert limited["input_ids"].shape[1] == longest


@pytest.mark.parametrize(
    ("flags", "step"),
    [
        (["--bf16", "true"], 8),
        (["--bf16", "false"], 1),
        (["--bf16", "true", "--pad_to_multiple_of", "1"], 1),
        (["--bf16", "false", "--pad_to_multiple_of", "8"], 8),
    ],
)
def test_batches_of_a_training_in_bf16_come_in_few_shapes(
    flags: list[str],
    step: int,
    tiny_bert: str,
    data_flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = set()

    def collate(self: ClassificationCollator, features: Any) -> Any:
        batch = original(self, features)
        if "labels" in batch:  # of the training, not of the scoring after it
            lengths.add(batch["input_ids"].shape[1])
        return batch

    original = ClassificationCollator.__call__
    monkeypatch.setattr(ClassificationCollator, "__call__", collate)
    flags = ["--model", tiny_bert, *data_flags, *flags, "--max_length", "20"]
    main([*flags, "--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "run")])
    assert any(length % 8 for length in lengths - {20}) is (step == 1)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    [path] = [
        path for path in folder.glob("*/*.safetensors") if path.parent.name in ("model", "adapter")
    ]
    return load_file(path)


def test_cached_training_in_bf16_is_the_same_training_but_for_rounding(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    """Within two steps of bf16 (2^-8 of a loss around 0.7)."""
    flags = ["--model", tiny_bert, *data_flags, "--num_unfrozen_layers", "1", "--bf16"]
    losses = []
    for mode in ("off", "on"):
        folder = tmp_path / mode
        cache = ["--activation_cache", mode, "--logging_steps", "1"]
        main([*flags, *cache, "--output_dir", str(folder)])
        rows = load_run(folder).record["log_history"]
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert np.std(losses[0]) > 1e-3
    assert np.abs(np.subtract(*losses)).max() < 6e-3


def test_rounding_in_bf16_is_not_taken_for_a_damaged_cache(tmp_path: Path) -> None:
    """Four layers of MiniLM, filled in batches of other lengths than those that are looked at."""
    flags = ["--model", "builtin:minilm", "--dataset", "builtin:pairs", "--split", "validation"]
    flags += ["--max_train_samples", "40", "--max_eval_samples", "4", "--seed", "1"]
    flags += ["--bf16", "--activation_cache", "on", "--max_steps", "1"]  # or an error
    main([*flags, "--output_dir", str(tmp_path / "run")])
