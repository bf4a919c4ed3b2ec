from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_from_flags
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES, reload_drift, tiny_config, train_two_steps
from training_recorders import BY_TURNS, GRADUAL, UnfreezingRecorder
from transformers import BertConfig

from peft_mrpc.doctor import main as doctor
from peft_mrpc.errors import UserError
from peft_mrpc.methods.layer_freeze import FreezeCallback, LayerFreezeOptions, find_modules
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.models.architecture import trainable_names
from peft_mrpc.models.loading import init_classifier
from peft_mrpc.runs.run import load_run
from peft_mrpc.train import main

H, E, V, POSITIONS = 16, 8, 64, 64  # of the tiny models; E is how wide ELECTRA's embeddings are
NORM = 2 * H  # weight and bias
LINEAR = H * H + H
# All that stands before the first layer.
EMBEDDINGS = {
    "bert": V * H + POSITIONS * H + 2 * H + NORM,
    "roberta": V * H + (POSITIONS + 2) * H + H + NORM,
    "deberta-v2": V * H + NORM,  # its positions are relative: they feed the layers
    "distilbert": V * H + POSITIONS * H + NORM,
    "electra": V * E + POSITIONS * E + 2 * E + 2 * E + (E * H + H),
    "modernbert": V * H + H,  # norms without a bias
    "llama": V * H,
}
# What stands after the layers under a head of ours: a final norm.
AFTER = {"modernbert": H, "llama": H}


def empty(architecture: str, **options: Any) -> Any:
    """A tiny model without weights, frozen as the options say."""
    model = init_classifier(tiny_config(architecture, V), "mean")
    METHODS["layer_freeze"].apply(model, LayerFreezeOptions(**options))
    return model


def count(model: Any, is_trained: bool) -> int:
    parameters = model.base_model.parameters()
    return sum(p.numel() for p in parameters if p.requires_grad is is_trained)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_embeddings_are_all_before_the_first_layer(architecture: str) -> None:
    frozen = empty(architecture, frozen_modules=["embeddings"])
    assert count(frozen, is_trained=False) == EMBEDDINGS[architecture]
    trained = empty(architecture, num_unfrozen_layers=0, unfrozen_modules=["embeddings"])
    after = AFTER.get(architecture, 0)
    assert count(trained, is_trained=True) == EMBEDDINGS[architecture] + after
    for model in (frozen, trained):
        assert all(p.requires_grad for p in model.classifier.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_named_modules_train_on_every_architecture(
    architecture: str, models: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    model = models[architecture]
    norm = {"modernbert": "layers.0.mlp_norm", "llama": "layers.0.input_layernorm"}
    norm["distilbert"] = "transformer.layer.0.output_layer_norm"
    name = norm.get(architecture, "encoder.layer.0.output.LayerNorm")
    names = ["--unfrozen_modules", "embeddings", name]
    trainer = tmp_path / "trainer"
    classifier, pairs = train_two_steps("layer_freeze", model, data_flags, trainer, *names)
    trained = trainable_names(classifier.model.base_model)
    assert any(part.startswith(f"{name}.") for part in trained)
    assert reload_drift(classifier, pairs, model, "layer_freeze", tmp_path / "saved") < 1e-5


def paths(names: list[str], layers: int = 2) -> set[str]:
    config = BertConfig(
        vocab_size=V, hidden_size=H, num_hidden_layers=layers, num_attention_heads=2
    )
    model = init_classifier(config, "native")
    path_of = {id(module): path for path, module in model.base_model.named_modules()}
    return {path_of[id(module)] for module in find_modules(model, names, "--flag")}


def test_names_are_paths_ends_of_paths_and_patterns() -> None:
    assert paths(["encoder.layer.0.attention"]) == {"encoder.layer.0.attention"}
    assert paths(["attention.self.query"]) == {
        "encoder.layer.0.attention.self.query",
        "encoder.layer.1.attention.self.query",
    }
    # As the log names it.
    assert paths(["bert.encoder.layer.0.attention"]) == {"encoder.layer.0.attention"}
    # A whole name, not the beginning of one.
    assert paths(["layer.1"], layers=12) == {"encoder.layer.1"}
    assert paths(["layer.[02].intermediate.dense"], layers=3) == {
        "encoder.layer.0.intermediate.dense",
        "encoder.layer.2.intermediate.dense",
    }
    norms = {
        f"encoder.layer.{n}.{part}.LayerNorm"
        for n in (0, 1)
        for part in ("attention.output", "output")
    }
    assert paths(["*.LayerNorm"]) == paths(["LayerNorm"]) == {"embeddings.LayerNorm", *norms}
    assert paths(["pooler", "embeddings"]) == {"pooler", "embeddings"}


def test_names_that_match_nothing_are_reported_with_similar_names() -> None:
    with pytest.raises(UserError) as caught:
        paths(["embedings", "encoder.layer.7", "dropout", "pooler"])
    embeddings, layer, dropout = caught.value.faults
    assert embeddings.startswith("--flag: got 'embedings'")
    assert embeddings.endswith("Did you mean 'embeddings'?")
    assert "such as embeddings or encoder.layer.0." in layer
    assert "'dropout'" in dropout  # there are some, but nothing of them could train


def test_the_rest_trains_where_modules_are_frozen() -> None:
    model = empty("bert", frozen_modules=["encoder.layer.0", "word_embeddings"])
    layer = 4 * LINEAR + 2 * NORM + (H * 32 + 32) + (32 * H + H)
    assert count(model, is_trained=False) == layer + V * H


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--unfrozen_modules", "embedings"], "Did you mean 'embeddings'?"),
        (["--frozen_modules", "encoder.layer.9"], "--frozen_modules: got 'encoder.layer.9'"),
        (["--frozen_modules", "classifier"], "which matches no module of the encoder"),
        (["--unfrozen_modules"], "--unfrozen_modules: got nothing; expected"),
        (
            ["--frozen_modules", "embeddings", "--num_unfrozen_layers", "2"],
            "--frozen_modules: got num_unfrozen_layers as well",
        ),
        (
            ["--frozen_modules", "embeddings", "--unfrozen_modules", "pooler"],
            "--frozen_modules: got unfrozen_modules as well",
        ),
        (
            ["--frozen_modules", "embeddings", "--unfreeze_every", "1"],
            "--frozen_modules: got unfreeze_every as well",
        ),
        (
            ["--num_unfrozen_layers", "two"],
            "--num_unfrozen_layers: got 'two'; expected a valid integer",
        ),
        (["--num_unfrozen_layers", "-1"], "here has 2 layers; expected 0 to 2"),
        (["--unfreeze_every", "0"], "--unfreeze_every: got 0.0; expected a number"),
        (["--unfreeze_every", "nan"], "--unfreeze_every: got nan; expected a number"),
        (["--unfreeze_every", "soon"], "--unfreeze_every: got 'soon'; expected a valid number"),
        (
            ["--unfreeze_every", "1", "--num_unfrozen_layers", "0"],
            "so there is no layer to unfreeze",
        ),
        (["--unfreeze_every", "1", "--optim", "adalomo"], "leaves no gradients to work on"),
        (["--method", "lora", "--unfreeze_every", "1"], "got an option of layer_freeze"),
    ],
)
def test_bad_options_end_in_one_line_before_anything_is_written(
    flags: list[str],
    fault: str,
    tiny_bert: str,
    data_flags: list[str],
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    message = fails(
        main, "--model", tiny_bert, *data_flags, "--output_dir", str(tmp_path / "out"), *flags
    )
    assert fault in message
    assert len(message.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def prepare(model: str, data_flags: list[str], folder: Path, *flags: str) -> Any:
    """A Trainer of six pairs a step, three steps an epoch."""
    flags = ("--per_device_train_batch_size", "6", "--seed", "1", *flags)
    argv = ["--model", model, *data_flags, "--pooling", "native", "--disable_tqdm", "true", *flags]
    return build_from_flags(folder, argv).trainer


def watch_modes(watched: dict[str, Any]) -> dict[str, set[bool]]:
    """Whether each module is in training mode when it runs, once it has run."""
    modes: dict[str, set[bool]] = {name: set() for name in watched}
    for name, module in watched.items():
        module.register_forward_hook(lambda m, *_, name=name: modes[name].add(m.training))
    return modes


def test_a_module_beside_a_trained_one_keeps_its_dropout(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--num_unfrozen_layers", "1", "--unfrozen_modules", "layer.0.output.LayerNorm"]
    trainer = prepare(tiny_bert, data_flags, tmp_path, *flags, "--max_steps", "2")
    bert = trainer.model.bert
    below, above = bert.encoder.layer
    modes = watch_modes(
        {
            "embeddings": bert.embeddings.dropout,
            "frozen part": below.attention.output.dropout,
            "beside the trained norm": below.output.dropout,
            "trained layer": above.output.dropout,
        }
    )
    trainer.train()
    assert modes == {
        "embeddings": {False},
        "frozen part": {False},
        "beside the trained norm": {True},
        "trained layer": {True},
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_layers_run_in_eval_mode_where_none_trains(
    architecture: str, models: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--num_unfrozen_layers", "0", "--max_steps", "2"]
    trainer = prepare(models[architecture], data_flags, tmp_path, *flags)
    stack = next(
        module
        for module in trainer.model.base_model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == 2
    )
    # Layers are modules that hold dropout of their own: its mode is what matters.
    modes = watch_modes({str(number): layer for number, layer in enumerate(stack)})
    trainer.train()
    assert modes == {"0": {False}, "1": {False}}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_layers_are_unfrozen_from_the_top_and_untouched_before(
    accumulation: int,
    tiny_bert: str,
    data_flags: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flags = [*GRADUAL, "--weight_decay", "0.1", "--dropout", "0.1", "--warmup_steps", "0"]
    flags += ["--gradient_accumulation_steps", str(accumulation)]
    flags += ["--per_device_train_batch_size", str(6 // accumulation)]
    trainer = prepare(tiny_bert, data_flags, tmp_path, *flags)
    recorder = UnfreezingRecorder(trainer.model)
    trainer.add_callback(recorder)
    bert = trainer.model.bert
    modes = watch_modes(
        {"embeddings": bert.embeddings.dropout, "top": bert.encoder.layer[1].output.dropout}
    )
    with caplog.at_level("INFO", "peft_mrpc"):
        trainer.train()
    assert recorder.changed == recorder.remembered == BY_TURNS
    assert modes == {"embeddings": {False}, "top": {False, True}}
    messages = [r.getMessage() for r in caplog.records if ": epoch " in r.getMessage()]
    assert messages == [
        "layer_freeze: epoch 1.00, the last layer unfrozen",
        "layer_freeze: epoch 2.00, the last 2 layers unfrozen",
    ]


def test_layers_that_wait_are_as_frozen_as_frozen_ones(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = []
    # Clipping by a norm that counted what waits would shrink the head's gradients.
    common = ["--max_grad_norm", "0.01", "--weight_decay", "0.1", "--dropout", "0.1"]
    common += ["--gradient_accumulation_steps", "2", "--num_train_epochs", "2"]
    common += ["--activation_cache", "off"]
    for flags in (["--num_unfrozen_layers", "0"], ["--unfreeze_every", "100"]):
        trainer = prepare(tiny_bert, data_flags, tmp_path, *common, *flags)
        trainer.train()
        weights.append(trainer.model.state_dict())
    frozen, waiting = weights
    # But for rounding: attention takes another way where gradients go through it.
    assert all(torch.allclose(frozen[name], waiting[name], atol=1e-7) for name in frozen)
    assert "unfreeze_every: the training ended with 0 of 2 layers unfrozen" in caplog.text


@pytest.mark.parametrize(
    ("every", "epochs", "warning"),
    [
        *(("0.5", "1", "1 of 2"), ("1", "1", "0 of 2"), ("0.5", "1.5", "")),
        *(("1", "2.5", ""), ("1", "3", ""), ("1", "2", "1 of 2")),
    ],
)
def test_layers_that_the_epochs_do_not_come_to_are_foretold(
    every: str,
    epochs: str,
    warning: str,
    tiny_bert: str,
    data_flags: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flags = ["--unfreeze_every", every, "--num_train_epochs", epochs, "--sam_rho", "0"]
    main(["--model", tiny_bert, *data_flags, *flags, "--dry_run"])
    assert ("lower it" in caplog.text) == bool(warning) and warning in caplog.text
    # As many as the training itself comes to.
    trainer = prepare(tiny_bert, data_flags, tmp_path, *flags)
    with caplog.at_level("INFO", "peft_mrpc"):
        trainer.train()
    num_steps = sum(": epoch " in record.getMessage() for record in caplog.records)
    assert num_steps == (int(warning[0]) if warning else 2)


def test_layers_that_wait_are_checkpointed(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--unfreeze_every", "100", "--gradient_checkpointing", "--max_steps", "2"]
    flags += ["--sam_rho", "0"]  # one pass a step
    trainer = prepare(tiny_bert, data_flags, tmp_path, *flags)
    layers = trainer.model.bert.encoder.layer
    runs = []
    for layer in layers:
        layer.attention.output.register_forward_hook(lambda m, *_: runs.append(m.training))
    trainer.train()
    # Forwards, and again in the backward pass: two layers, two steps.
    assert runs == [False] * 2 * 2 * 2


def test_a_named_module_trains_before_the_turn_of_its_layer(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--unfreeze_every", "100", "--unfrozen_modules", "encoder.layer.0.output.dense"]
    trainer = prepare(tiny_bert, data_flags, tmp_path, *flags)
    layer = trainer.model.bert.encoder.layer[0]
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    trainer.train()
    changed = {name for name, p in layer.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"output.dense.weight", "output.dense.bias"}


def test_a_tenth_of_an_epoch_comes_when_it_is_over() -> None:
    callback = FreezeCallback([[]] * 9, every=0.1)
    from transformers import TrainerState

    # 0.3 / 0.1 is 2.9999999999999996.
    stages = [callback._stage_at(TrainerState(epoch=epoch)) for epoch in (None, 0.09, 0.1, 0.3, 9)]
    assert stages == [0, 0, 1, 3, 8]


@pytest.mark.parametrize("step", [2, 3])
def test_a_resumed_schedule_is_the_uninterrupted_one(
    step: int, tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    # Layers are unfrozen after steps 2 and 3: before, in and after the checkpoint.
    flags = ["--model", tiny_bert, *data_flags, "--num_train_epochs", "2", "--dropout", "0.1"]
    flags += ["--unfreeze_every", "0.5", "--layer_decay", "0.5", "--pooling", "native"]
    flags += ["--save_strategy", "steps", "--save_steps", "1"]
    flags += ["--per_device_train_batch_size", "6"]
    main([*flags, "--output_dir", str(tmp_path / "whole")])
    checkpoint = tmp_path / "whole" / "checkpoints" / f"checkpoint-{step}"
    resumed = ["--output_dir", str(tmp_path / "rest"), "--resume_from_checkpoint", str(checkpoint)]
    main([*flags, *resumed])
    whole, rest = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "rest")
    )
    assert set(whole) == set(rest) and all(torch.equal(whole[n], rest[n]) for n in whole)


def test_plan_doctor_and_record_agree_on_what_trains(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--frozen_modules", "embeddings", "encoder.layer.0"]
    flags = ["--model", tiny_bert, "--method", "layer_freeze", "--pooling", "native"]
    layer = 4 * LINEAR + 2 * NORM + (H * 32 + 32) + (32 * H + H)
    trained = layer + LINEAR + (2 * H + 2)  # a layer, the pooler, two labels
    run = [*flags, *options, *data_flags, "--num_train_epochs", "1"]
    run += ["--output_dir", str(tmp_path / "run")]
    doctor([*flags, *options])
    assert f"layer_freeze: works; {trained:,} of " in capsys.readouterr().out
    main([*run, "--dry_run"])
    output = capsys.readouterr().out
    assert f"trainable: {trained:,} of " in output
    assert "bert.encoder.layer.1, bert.pooler.dense, classifier" in output
    assert not (tmp_path / "run").exists()
    main(run)
    record = load_run(tmp_path / "run").record
    assert record["trainable"]["trained"] == trained
    assert record["method_options"] == {
        "num_unfrozen_layers": None,
        "unfrozen_modules": None,
        "frozen_modules": ["embeddings", "encoder.layer.0"],
        "unfreeze_every": None,
    }


def test_the_plan_tells_the_schedule(
    tiny_bert: str, data_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--model", tiny_bert, *data_flags, "--unfreeze_every", "0.5", "--dry_run"])
    assert "; the last 2 layers one by one every 0.5 epochs" in capsys.readouterr().out
