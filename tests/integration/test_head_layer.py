"""The layer that the head reads: what is loaded, what is refused, and that it survives saving."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, reload_drift, train_two_steps
from transformers import (
    AutoModel,
    BartConfig,
    FunnelConfig,
    LongformerConfig,
    PretrainedConfig,
)

from peft_mrpc.api import load_classifier
from peft_mrpc.cli.app import run_cli
from peft_mrpc.data.examples import Example
from peft_mrpc.errors import UserError
from peft_mrpc.methods.registry import METHODS, load_default_recipe
from peft_mrpc.models.loading import load_classification_model, load_config, load_tokenizer
from peft_mrpc.models.sources import ModelSource, resolve_model
from peft_mrpc.runs.run import load_run
from peft_mrpc.serialization import read_json_lines
from peft_mrpc.train import main
from peft_mrpc.training.resolve import BaseModel, truncate_encoder

LABELS = ["not_equivalent", "equivalent"]


def truncate(model: str, head_layer: str, pooling: str) -> ModelSource:
    source = resolve_model(model)
    base = BaseModel(source, load_config(source), load_tokenizer(resolve_model("builtin:minilm")))
    return truncate_encoder(base, head_layer, pooling)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_reads_what_leaves_the_layer_that_is_named(
    architecture: str, models: dict[str, str]
) -> None:
    source = resolve_model(models[architecture])
    tokenizer = load_tokenizer(source)
    batch = tokenizer(["the cat"], ["a dog sat"], return_tensors="pt")
    whole = AutoModel.from_pretrained(source.location).eval()
    expected = whole(**batch, output_hidden_states=True).hidden_states[1]
    if architecture in ("llama", "modernbert"):  # what stands after the layers stays there
        norm = whole.norm if architecture == "llama" else whole.final_norm
        expected = norm(expected)
    one_layer = replace(source, head_layer=1)
    model = load_classification_model(one_layer, LABELS, tokenizer, "mean").eval()
    read = model.encoder(**batch)[0]
    assert torch.allclose(read, expected, atol=1e-5)
    assert model.config.num_hidden_layers == load_config(one_layer).num_hidden_layers == 1
    both = load_classification_model(source, LABELS, tokenizer, "mean")
    assert model.num_parameters() < both.num_parameters()


def test_auto_is_two_thirds_up_for_a_head_that_compares_tokens(tiny_bert: str) -> None:
    minilm, two_layers = "builtin:minilm", tiny_bert
    assert truncate(minilm, "auto", "aligned").head_layer == 4  # of 6
    assert truncate(two_layers, "auto", "aligned").head_layer is None  # 1.33, rounded up
    for pooling in ("cls", "last", "native"):
        assert truncate(minilm, "auto", pooling).head_layer is None
    assert truncate(minilm, "last", "aligned").head_layer is None
    assert truncate(minilm, "5", "cls").head_layer == 5


def test_a_layer_that_is_not_there_is_refused(tiny_bert: str) -> None:
    with pytest.raises(UserError, match="head_layer: got '3'; expected 1 to 2 .*last or auto"):
        truncate(tiny_bert, "3", "aligned")


@pytest.mark.parametrize("head_layer", ["0", "-1", "middle", "1.5", ""])
def test_a_value_that_is_not_a_layer_is_rejected(head_layer: str, tiny_bert: str) -> None:
    with pytest.raises(UserError, match="expected the number of a layer from 1, last or auto"):
        truncate(tiny_bert, head_layer, "aligned")


@pytest.mark.parametrize(
    "config",
    [
        BartConfig(d_model=16, encoder_layers=2, decoder_layers=2, vocab_size=50),
        FunnelConfig(block_sizes=[1, 1], vocab_size=50),
    ],
)
def test_what_is_no_plain_stack_keeps_its_layers(config: PretrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    assert truncate(str(tmp_path), "auto", "aligned").head_layer is None
    with pytest.raises(UserError, match=f"a {config.model_type} is not a single stack"):
        truncate(str(tmp_path), "1", "aligned")


def test_lists_with_an_entry_for_each_layer_are_cut(tmp_path: Path) -> None:
    LongformerConfig(num_hidden_layers=3, attention_window=[2, 4, 6]).save_pretrained(tmp_path)
    config = load_config(replace(resolve_model(str(tmp_path)), head_layer=2))
    assert config.num_hidden_layers == 2 and config.attention_window == [2, 4]


def test_the_architectures_own_head_keeps_its_layer(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "linear_probe", "--model", tiny_bert, *data_flags, "--pooling", "native"]
    flags += ["--output_dir", str(tmp_path / "run")]
    assert run_cli(main, [*flags, "--head_layer", "1"]) == 2
    assert "own head reads the last layer; expected last" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert truncate(tiny_bert, "2", "native").head_layer is None  # the last


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_below_the_last_layer_and_reloads(
    method: str, tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--pooling", METHODS[method].default_pooling, "--head_layer", "1"]
    classifier, pairs = train_two_steps(method, tiny_bert, data_flags, tmp_path / "t", *flags)
    assert classifier.model.config.num_hidden_layers == 1
    assert reload_drift(classifier, pairs, tiny_bert, method, tmp_path / "saved") < 1e-5


def test_a_run_records_the_layer_and_labels_with_it(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    main(
        ["--method", "prompt_tuning", "--num_virtual_tokens", "5", "--model", tiny_bert]
        + [*data_flags, "--head_layer", "1", "--num_train_epochs", "1"]
        + ["--output_dir", str(folder)]
    )
    run = load_run(folder)
    assert run.record["config"]["head_layer"] == "1"
    assert "on layer 1 of the encoder" in (folder / "README.md").read_text("utf-8")
    again = load_classifier(str(folder))
    assert again.model.config.num_hidden_layers == 1
    predictions = read_json_lines(folder / "predictions" / "validation.jsonl")
    pairs = [Example(row["idx"], row["sentence1"], row["sentence2"]) for row in predictions]
    expected = np.array([list(row["probabilities"].values()) for row in predictions])
    assert np.abs(again.predict_proba(pairs, 32) - expected).max() < 1e-5


def test_frozen_encoders_are_read_two_thirds_up_by_default() -> None:
    auto = {name for name in METHODS if load_default_recipe(name).get("head_layer") == "auto"}
    weighted = {name for name, method in METHODS.items() if method.default_pooling == "weighted"}
    assert auto == weighted == set(METHODS) - {"full", "layer_freeze", "lora", "dora"}
