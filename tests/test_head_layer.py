"""The layer that the head reads: what is loaded, what is refused, and that it survives saving."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import ARCHITECTURES, reload_drift, train_two_steps
from transformers import AutoModel

from peft_mrpc.artifacts import load_predictor
from peft_mrpc.errors import UserError, run_verb
from peft_mrpc.methods import METHODS, load_default_recipe
from peft_mrpc.models import load_classifier, load_config, load_tokenizer
from peft_mrpc.reading import read_head_layer
from peft_mrpc.runs import load_run
from peft_mrpc.sources import find_model
from peft_mrpc.train import main

LABELS = ["not_equivalent", "equivalent"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_reads_what_leaves_the_layer_that_is_named(
    architecture: str, models: dict[str, str]
) -> None:
    source = find_model(models[architecture])
    tokenizer = load_tokenizer(source)
    batch = tokenizer(["the cat"], ["a dog sat"], return_tensors="pt")
    whole = AutoModel.from_pretrained(source.location).eval()
    expected = whole(**batch, output_hidden_states=True).hidden_states[1]
    if architecture in ("llama", "modernbert"):  # what stands after the layers stays there
        norm = whole.norm if architecture == "llama" else whole.final_norm
        expected = norm(expected)
    one_layer = replace(source, head_layer=1)
    model = load_classifier(one_layer, LABELS, tokenizer, "mean").eval()
    read = model.encoder(**batch)[0]
    assert torch.allclose(read, expected, atol=1e-5)
    assert model.config.num_hidden_layers == load_config(one_layer).num_hidden_layers == 1
    both = load_classifier(source, LABELS, tokenizer, "mean")
    assert model.num_parameters() < both.num_parameters()


def test_auto_is_two_thirds_up_for_a_head_that_compares_tokens(tiny_bert: str) -> None:
    minilm, two_layers = find_model("builtin:minilm"), find_model(tiny_bert)
    assert read_head_layer(minilm, "auto", "aligned").head_layer == 4  # of 6
    assert read_head_layer(two_layers, "auto", "aligned").head_layer == 2  # 1.33, rounded up
    for pooling in ("cls", "last", "native"):
        assert read_head_layer(minilm, "auto", pooling).head_layer is None
    assert read_head_layer(minilm, "last", "aligned").head_layer is None
    assert read_head_layer(minilm, "5", "cls").head_layer == 5


@pytest.mark.parametrize("head_layer", ["0", "3", "-1", "middle", "1.5", ""])
def test_a_layer_that_is_not_there_is_refused(head_layer: str, tiny_bert: str) -> None:
    with pytest.raises(UserError, match="--head_layer: got .*; expected 1 to 2 .*last or auto"):
        read_head_layer(find_model(tiny_bert), head_layer, "aligned")


def test_the_architectures_own_head_keeps_its_layer(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "linear_probe", "--model", tiny_bert, *data_flags, "--pooling", "native"]
    flags += ["--output_dir", str(tmp_path / "run")]
    assert run_verb(main, [*flags, "--head_layer", "1"]) == 2
    assert "own head reads the last; expected last" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert read_head_layer(find_model(tiny_bert), "2", "native").head_layer == 2  # the last


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_below_the_last_layer_and_reloads(
    method: str, tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--pooling", "aligned", "--head_layer", "1"]
    classifier, pairs = train_two_steps(method, tiny_bert, data_flags, tmp_path / "t", *flags)
    assert classifier.model.config.num_hidden_layers == 1
    assert reload_drift(classifier, pairs, tiny_bert, method, tmp_path / "saved") < 1e-6


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
    assert "and reads layer 1 of the encoder" in (folder / "README.md").read_text("utf-8")
    assert load_predictor(str(folder)).model.config.num_hidden_layers == 1


def test_frozen_encoders_are_read_two_thirds_up_by_default() -> None:
    auto = {name for name in METHODS if load_default_recipe(name).get("head_layer") == "auto"}
    weighted = {name for name, method in METHODS.items() if method.compares == "weighted"}
    assert auto == weighted == {"linear_probe", "prompt_tuning", "p_tuning", "prefix_tuning"}
