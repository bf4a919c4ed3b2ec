import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoderConfig
from tiny_models import reload_drift, train_two_steps

from peft_mrpc.methods.registry import METHODS, RESERVED_PEFT_FIELDS, load_default_recipe
from peft_mrpc.options import option_types, parse_option
from peft_mrpc.train import main


@pytest.mark.parametrize(
    ("kind", "name", "words", "value"),
    [
        (LoraConfig, "r", ["8"], 8),
        (LoraConfig, "lora_dropout", ["0"], 0),
        (LoraConfig, "use_rslora", [], True),
        (LoraConfig, "use_rslora", ["false"], False),
        (LoraConfig, "bias", ["none"], "none"),
        (LoraConfig, "init_lora_weights", ["false"], False),
        (LoraConfig, "init_lora_weights", ["pissa"], "pissa"),
        (LoraConfig, "init_lora_weights", ["pissa_niter_16"], "pissa_niter_16"),
        (LoraConfig, "target_modules", ["all-linear"], "all-linear"),
        (LoraConfig, "target_modules", ["query", "value"], ["query", "value"]),
        (LoraConfig, "target_modules", ["[query, value]"], ["query", "value"]),
        (LoraConfig, "layers_to_transform", ["1"], 1),
        (LoraConfig, "layers_to_transform", ["0", "1"], [0, 1]),
        (LoraConfig, "rank_pattern", ["{query: 4}"], {"query": 4}),
        (LoraConfig, "layer_replication", ["[[0, 1], [0, 2]]"], [[0, 1], [0, 2]]),
        (LoraConfig, "runtime_config", ["{ephemeral_gpu_offload: true}"], None),
        (IA3Config, "modules_to_save", ["pooler"], ["pooler"]),
        (PromptEncoderConfig, "encoder_reparameterization_type", ["LSTM"], "LSTM"),
        (PrefixTuningConfig, "init_weights", ["zero"], "zero"),
    ],
)
def test_a_value_is_converted_to_the_type_of_its_option(
    kind: type, name: str, words: list[str], value: Any
) -> None:
    expected = {"ephemeral_gpu_offload": True} if value is None else value
    assert parse_option(words, option_types(kind)[name]) == expected


@pytest.mark.parametrize(
    ("kind", "name", "words", "fault"),
    [
        (LoraConfig, "r", ["many"], "got 'many'; expected a valid integer."),
        (LoraConfig, "r", [], "got nothing; expected a valid integer."),
        (LoraConfig, "r", ["true"], "got True; expected a valid integer."),
        (LoraConfig, "use_rslora", ["3"], "got 3; expected a valid boolean."),
        (LoraConfig, "bias", ["some"], "got 'some'; expected 'none', 'all' or 'lora_only'."),
        (
            LoraConfig,
            "init_lora_weights",
            ["pisa"],
            "expected a valid boolean or 'gaussian'",
        ),
        (LoraConfig, "init_lora_weights", ["pissa_niter_x"], "got 'pissa_niter_x'; expected"),
        (LoraConfig, "rank_pattern", ["4"], "got 4; expected a mapping {name: value}."),
        (LoraConfig, "runtime_config", ["{x: 1}"], "got {'x': 1}; Extra inputs are not permitted."),
        (
            LoraConfig,
            "layer_replication",
            ["[[0, 1, 2]]"],
            "Tuple should have at most 2 items",
        ),
        (
            PromptEncoderConfig,
            "encoder_reparameterization_type",
            ["X"],
            "'MLP' or 'LSTM'.",
        ),
        (PrefixTuningConfig, "init_weights", ["one"], "got 'one'; expected 'zero'."),
    ],
)
def test_another_value_is_refused_with_the_expected_type(
    kind: type, name: str, words: list[str], fault: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        parse_option(words, option_types(kind)[name])


@pytest.mark.parametrize("method", METHODS)
def test_every_option_refuses_a_value_of_another_type(method: str) -> None:
    annotations = METHODS[method].option_types()
    assert not RESERVED_PEFT_FIELDS & set(annotations)
    for annotation in annotations.values():
        alone = re.sub(r"(list|List)\[str\]|Literal\[.*?\]", "", str(annotation))
        if re.search(r"\bstr\b|\bdict\b", alone) and "Config" not in alone:
            continue  # takes any text, or any mapping
        with pytest.raises(ValueError, match="^got .*; .*[.]$"):
            parse_option(["{no_option: {}}"], annotation)


@pytest.mark.parametrize(
    "flags",
    [
        "--init_lora_weights pissa",
        "--init_lora_weights olora",
        "--init_lora_weights gaussian",
        "--init_lora_weights orthogonal",
        "--layers_to_transform 1",
        "--rank_pattern={query:2}",
        "--modules_to_save word_embeddings",
        "--bias all",
        "--use_qalora --qalora_group_size 8",
        "--trainable_token_indices 5 6",
    ],
)
def test_options_of_lora_train_and_come_back_from_disk(
    flags: str, tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    arguments = [word.replace(":", ": ") for word in flags.split()]
    classifier, pairs = train_two_steps("lora", tiny_bert, data_flags, tmp_path, *arguments)
    assert reload_drift(classifier, pairs, tiny_bert, "lora", tmp_path / "saved") < 1e-5


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ("prompt_tuning --neftune_noise_alpha 5", "--neftune_noise_alpha: got 5, but"),
    ],
)
def test_what_could_not_be_loaded_or_would_not_run_is_refused(
    flags: str,
    fault: str,
    tiny_bert: str,
    data_flags: list[str],
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    out = tmp_path / "no"
    base = ["--model", tiny_bert, *data_flags, "--output_dir", str(out)]
    assert fault in fails(main, *base, "--method", *flags.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ("lora --r 0", "--r: got 0; expected at least 1."),
        ("vera --r 0", "--r: got 0; expected at least 1."),
        ("p_tuning --encoder_hidden_size 0", "--encoder_hidden_size: got 0; expected at least 1."),
        ("lora --lora_dropout 1", "--lora_dropout: got 1.0; expected 0 or more and below 1."),
        ("lora --init_lora_weights eva", "got eva, which is computed from data before the"),
        (
            "lora --init_lora_weights pissa_niter_4",
            "which is random: a loaded adapter has",
        ),
        (
            "lora --alora_invocation_tokens 5",
            "--alora_invocation_tokens: is for models",
        ),
        ("prompt_tuning --num_layers 3", "--num_layers: got an unknown option."),
        ("lora --lora_alpha 0", "--lora_alpha: got 0; expected at least 1."),
        ("vera --d_initial 0", "--d_initial: got 0.0, with which VeRA's scales"),
    ],
)
def test_options_that_cannot_be_are_refused(
    flags: str, fault: str, tiny_bert: str, data_flags: list[str], tmp_path: Path, fails: Any
) -> None:
    command = ["--model", tiny_bert, *data_flags, "--output_dir", str(tmp_path / "run")]
    words = [word.replace("\xa0", " ") for word in flags.split(" ")]
    message = fails(main, "--method", *words, *command, "--pooling", "native")
    assert fault in message and len(message.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_number_of_blocks_replaces_their_size() -> None:
    assert load_default_recipe("oft", {"r"})["oft_block_size"] == 0
    assert load_default_recipe("oft")["oft_block_size"] > 0


def test_all_faults_of_a_methods_options_are_reported_together(
    tiny_bert: str, data_flags: list[str], fails: Callable[..., str]
) -> None:
    flags = "--method lora --r 0 --lora_dropout 2"
    message = fails(main, "--model", tiny_bert, *data_flags, *flags.split()).splitlines()
    assert [line.split(": ")[1] for line in message] == ["--r", "--lora_dropout"]
