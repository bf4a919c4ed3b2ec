"""The compatibility matrix: rejected combinations fail when forced, all others train and reload."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    COMBINATIONS,
    FLAGS,
    batch_drift,
    poolings,
    reload_drift,
    train_two_steps,
)

from peft_mrpc.api import load_classifier
from peft_mrpc.errors import UserError
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.models.architecture import parameter_counts
from peft_mrpc.runs.run import load_run
from peft_mrpc.serialization import read_json
from peft_mrpc.train import main

REJECTED = [
    (method, architecture, pooling)
    for method in METHODS
    for architecture in ARCHITECTURES
    for pooling in poolings(architecture)
    if (method, architecture, pooling) not in COMBINATIONS
]
PEFT_METHODS = [name for name, method in METHODS.items() if method.is_peft]


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft_mrpc.training.validation.validate_compatibility", lambda *_, **__: [])


@pytest.mark.parametrize(("method", "architecture", "pooling"), REJECTED)
def test_rejected_combinations_have_a_one_line_error(
    method: str,
    architecture: str,
    pooling: str,
    models: dict[str, str],
    data_flags: list[str],
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    flags = ["--method", method, "--model", models[architecture], "--pooling", pooling]
    message = fails(main, *flags, *data_flags, "--output_dir", str(tmp_path / "run"))
    assert len(message.splitlines()) == 1 and "got" in message
    assert "use" in message or "expected" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "architecture", "pooling"), REJECTED)
def test_rejected_combinations_fail_when_forced(
    method: str,
    architecture: str,
    pooling: str,
    models: dict[str, str],
    data_flags: list[str],
    tmp_path: Path,
    forced: None,
) -> None:
    try:
        classifier, pairs = train_two_steps(
            method, models[architecture], data_flags, tmp_path, "--pooling", pooling
        )
    except AssertionError as error:
        assert method == "bitfit" and "only the head trains" in str(error)
    except (RuntimeError, ValueError) as error:
        assert method == "prefix_tuning"
        assert "past key values" in str(error) or "must match the size" in str(error)
    else:  # it trains, but reads padding: the scores of an example depend on its batch
        assert method in ("prompt_tuning", "p_tuning")
        assert batch_drift(classifier, pairs) > 1e-3


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "llama"])
def test_gradient_checkpointing_drops_a_prefix(
    architecture: str, models: dict[str, str], data_flags: list[str], tmp_path: Path, forced: None
) -> None:
    for pooling in poolings(architecture):
        flags = ["--pooling", pooling, "--gradient_checkpointing"]
        with pytest.raises(RuntimeError, match="must match the size"):
            train_two_steps("prefix_tuning", models[architecture], data_flags, tmp_path, *flags)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "prefix_tuning"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_all_other_methods_train_with_gradient_checkpointing(
    method: str, architecture: str, models: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    pooling = poolings(architecture)[1]
    if (method, architecture, pooling) in COMBINATIONS:
        flags = ["--pooling", pooling, "--gradient_checkpointing"]
        train_two_steps(method, models[architecture], data_flags, tmp_path, *flags)


RESUMED = {
    **{name: [] for name in METHODS},
    "prefix_projection": ["--method", "prefix_tuning", "--prefix_projection", "true"],
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_run_equals_an_uninterrupted_one(
    case: str,
    models: dict[str, str],
    data_flags: list[str],
    tmp_path: Path,
) -> None:
    method = case if case in METHODS else "prefix_tuning"
    flags = ["--method", method, "--model", models["bert"], *data_flags, *FLAGS[method]]
    flags += [*RESUMED[case], "--save_strategy", "epoch", "--num_train_epochs", "2"]
    main([*flags, "--per_device_train_batch_size", "6", "--output_dir", str(tmp_path / "whole")])
    checkpoint = tmp_path / "whole" / "checkpoints" / "checkpoint-3"
    flags += ["--per_device_train_batch_size", "6", "--resume_from_checkpoint", str(checkpoint)]
    flags += ["--output_dir", str(tmp_path / "rest")]
    main(flags)
    whole, rest = (
        load_run(tmp_path / name).predictions("validation").probabilities
        for name in ("whole", "rest")
    )
    assert abs(whole - rest).max() < 1e-5


@pytest.mark.parametrize("method", [name for name in METHODS if name not in PEFT_METHODS])
def test_the_trainer_rejects_a_quantized_base_without_an_adapter(
    method: str, models: dict[str, str], data_flags: list[str], tmp_path: Path, forced: None
) -> None:
    for pooling in poolings("bert"):
        flags = ["--pooling", pooling, "--quantization", "nf4"]
        with pytest.raises(UserError, match="purely quantized models"):
            train_two_steps(method, models["bert"], data_flags, tmp_path, *flags)


def test_dora_cannot_dequantize_int8(
    models: dict[str, str], data_flags: list[str], tmp_path: Path, forced: None
) -> None:
    with pytest.raises(AttributeError):
        train_two_steps("dora", models["bert"], data_flags, tmp_path, "--quantization", "int8")


@pytest.mark.parametrize("init", ["pissa", "orthogonal"])
def test_quantized_weights_are_not_decomposed(
    init: str,
    models: dict[str, str],
    data_flags: list[str],
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = ["--quantization", "nf4", "--init_lora_weights", init]
    base = ["--model", models["llama"], *data_flags, "--method", "lora"]
    assert f"--init_lora_weights: got {init}, which decomposes" in fails(main, *base, *flags)
    monkeypatch.setattr("peft_mrpc.methods.compatibility.INITS_ON_QUANTIZED", (init,))
    with pytest.raises((UserError, RuntimeError)):
        train_two_steps("lora", models["llama"], data_flags, tmp_path, *flags)


@pytest.mark.parametrize(
    ("method", "quantization"),
    [
        *((method, "nf4") for method in PEFT_METHODS),
        *((method, "int8") for method in PEFT_METHODS if method != "dora"),
        ("lora", "fp4"),
    ],
)
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_adapters_train_on_a_quantized_base_and_reload(
    method: str,
    quantization: str,
    architecture: str,
    models: dict[str, str],
    data_flags: list[str],
    tmp_path: Path,
) -> None:
    model = models[architecture]
    for pooling in poolings(architecture):
        if (method, architecture, pooling) not in COMBINATIONS:
            continue
        flags = ["--pooling", pooling, "--quantization", quantization]
        classifier, pairs = train_two_steps(method, model, data_flags, tmp_path, *flags)
        if quantization != "int8":  # it scales activations by those of the whole batch
            assert batch_drift(classifier, pairs) < 1e-5
        assert reload_drift(classifier, pairs, model, method, tmp_path / pooling) < 1e-5


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_scoring_before_training_does_not_block_gradients(
    quantization: str, models: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--pooling", "segments", "--quantization", quantization]
    train_two_steps("lora", models["bert"], data_flags, tmp_path, *flags, score_first=True)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_only_the_base_is_quantized(
    architecture: str,
    quantization: str,
    models: dict[str, str],
    data_flags: list[str],
    tmp_path: Path,
) -> None:
    for pooling in poolings(architecture):
        flags = ["--pooling", pooling, "--quantization"]
        plain, _ = train_two_steps(
            "lora", models[architecture], data_flags, tmp_path, *flags, "none"
        )
        packed, _ = train_two_steps(
            "lora", models[architecture], data_flags, tmp_path, *flags, quantization
        )
        kinds = {str(p.dtype): 0 for p in packed.model.parameters()}
        for name, p in packed.model.named_parameters():
            kinds[str(p.dtype)] += 1
            if p.requires_grad:
                assert p.dtype == torch.float32, name
        # The two layers' projections: BERT has 6 of them in each, LLaMA 7.
        stored = "torch.int8" if quantization == "int8" else "torch.uint8"
        assert kinds[stored] >= 12
        # A 4-bit weight counts unpacked: the sizes are those of the plain model.
        assert parameter_counts(packed.model) == parameter_counts(plain.model)


def test_a_quantized_run_reloads_with_its_quantization(
    models: dict[str, str], data_flags: list[str], pair_files: dict[str, str], tmp_path: Path
) -> None:
    from peft_mrpc.config import DataConfig
    from peft_mrpc.data.loading import load_data

    folder = tmp_path / "run"
    main(
        ["--method", "lora", "--model", models["llama"], "--quantization", "nf4", *data_flags]
        + ["--output_dir", str(folder), "--num_train_epochs", "1"]
    )
    assert load_run(folder).record["config"]["quantization"] == "nf4"
    assert read_json(folder / "adapter" / "peft_mrpc.json")["quantization"] == "nf4"
    pairs = load_data(DataConfig(validation_file=pair_files["validation"])).splits["validation"]
    saved = load_run(folder).predictions("validation").probabilities
    assert abs(load_classifier(str(folder)).predict_proba(pairs, 32) - saved).max() < 1e-6


def test_an_unknown_quantization_is_rejected(
    models: dict[str, str], data_flags: list[str], fails: Callable[..., str]
) -> None:
    flags = ["--model", models["bert"], "--method", "lora", "--quantization", "nf5"]
    assert "Did you mean 'nf4'?" in fails(main, *flags, *data_flags)
