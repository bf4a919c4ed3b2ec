"""Adapters: module names are checked, defaults filled in, and only the adapter and head train."""

import logging
from typing import Any

import pytest
from peft import IA3Config, LoraConfig, OFTConfig, VeraConfig
from tiny_models import tiny_config
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from peft_mrpc.errors import UserError
from peft_mrpc.methods.compatibility import default_options
from peft_mrpc.methods.peft_adapters import (
    add_adapter,
    init_from_shapes_only,
    targets_linear_in_some_layers,
)
from peft_mrpc.methods.target_modules import (
    default_targets,
    set_default_targets,
    validate_module_names,
)


def build(architecture: str = "bert") -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        tiny_config(architecture)
    )
    return model


def trained_modules(model: Any, part: str) -> set[str]:
    """Paths, from the encoder layer's index on, of the modules with parameters of this name."""
    return {
        name.split("encoder.layer.")[1].rpartition(f".{part}")[0]
        for name, parameter in model.named_parameters()
        if part in name and parameter.requires_grad and "encoder.layer." in name
    }


def test_unknown_module_names_are_errors_with_the_nearest_name() -> None:
    options = LoraConfig(target_modules=["query", "valu"], rank_pattern={"qery": 4})
    assert validate_module_names(build(), options) == [
        "target_modules: got 'valu'; expected a module of this model. Did you mean 'value'?",
        "rank_pattern: got 'qery'; expected a module of this model. Did you mean 'query'?",
    ]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (LoraConfig(modules_to_save=["poolr"]), "modules_to_save: got 'poolr'; expected a module"),
        (LoraConfig(target_modules=".*[2].query"), "target_modules: got '.*[2].query'; expected a"),
        (LoraConfig(target_modules="*query"), "got '*query'; expected a valid regular expression"),
        (LoraConfig(exclude_modules=["qeury"]), "exclude_modules: got 'qeury'; expected a module"),
        (LoraConfig(alpha_pattern={"qery": 4}), "alpha_pattern: got 'qery'; expected a module"),
        (
            LoraConfig(target_modules=["query"], layers_to_transform=2),
            "layers_to_transform: got 2; expected 0 to 1.",
        ),
        (
            VeraConfig(modules_to_save=["embeddings"]),
            "got 'embeddings', which matches a module and modules inside it; expected one of them",
        ),
        (
            IA3Config(feedforward_modules=["query"]),
            "feedforward_modules: got 'query'; expected modules that are in target_modules too "
            "(key, output.dense, value).",
        ),
    ],
)
def test_names_that_peft_would_ignore_are_rejected(options: Any, error: str) -> None:
    with pytest.raises(UserError) as raised:
        add_adapter(build(), options)
    assert error in str(raised.value) and len(raised.value.faults) == 1


def test_an_error_of_peft_becomes_a_user_error() -> None:
    with pytest.raises(UserError, match=r"^LoraConfig: .*exclude"):
        options = LoraConfig(target_modules=["query"], exclude_modules=["query"])
        add_adapter(build(), options)


def test_all_linear_modules_of_some_layers() -> None:
    # PEFT's own config refuses this combination, so the option is set afterwards.
    options = LoraConfig(layers_to_transform=[1])
    options.target_modules = "all-linear"
    assert targets_linear_in_some_layers(vars(options))
    adapted = add_adapter(build(), options)
    expected = {
        *(f"1.attention.self.{name}" for name in ("query", "key", "value")),
        *("1.attention.output.dense", "1.intermediate.dense", "1.output.dense"),
    }
    assert trained_modules(adapted, "lora_A") == expected


def test_ia3_can_scale_all_linear_modules() -> None:
    adapted = add_adapter(build(), IA3Config(target_modules="all-linear", task_type="SEQ_CLS"))
    assert len(trained_modules(adapted, "ia3_l")) == 2 * 6


def test_the_options_of_the_caller_are_not_changed() -> None:
    options = LoraConfig()
    add_adapter(build(), options)
    assert options.target_modules is None and options.modules_to_save is None


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "electra", "llama"])
def test_the_head_trains_beside_the_adapter(architecture: str) -> None:
    adapted = add_adapter(build(architecture), LoraConfig(r=2))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    heads = {name for name in trained if "lora_" not in name}
    assert heads and all("modules_to_save" in name for name in heads)
    if architecture == "deberta-v2":
        assert any(".pooler." in name for name in heads)


@pytest.mark.parametrize(
    ("architecture", "width", "heads"), [("bert", 16, 2), ("electra", 16, 2), ("llama", 8, 1)]
)
def test_a_prefix_has_the_size_of_the_keys(architecture: str, width: int, heads: int) -> None:
    adapted = add_adapter(build(architecture), default_options("prefix_tuning"))
    config = adapted.active_peft_config
    # Keys of LLaMA here: 1 key-value head of 16 / 2 numbers.
    assert (config.token_dim, config.num_attention_heads, config.num_layers) == (width, heads, 2)


def test_a_changed_oft_block_size_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        add_adapter(build(), OFTConfig(r=0, oft_block_size=4))
        assert "oft_block_size" not in caplog.text
        add_adapter(build(), OFTConfig(r=0, oft_block_size=5))
    assert "oft_block_size: 5 does not divide the size of every layer; PEFT uses" in caplog.text


def test_no_initialization_reads_weights_that_do_not_exist() -> None:
    options = LoraConfig(init_lora_weights="pissa")
    assert init_from_shapes_only(options).init_lora_weights is True
    assert options.init_lora_weights == "pissa"


@pytest.mark.parametrize("architecture", ["distilbert", "modernbert", "xlm-roberta"])
@pytest.mark.parametrize("method", ["lora", "ia3", "ln_tuning", "oft", "vera"])
def test_default_targets_exist_in_the_encoders_without_peft_defaults(
    architecture: str, method: str
) -> None:
    options, model = default_options(method), build(architecture)
    if options.target_modules == "all-linear":
        options.target_modules = None
    set_default_targets(model.config, options)
    assert options.target_modules and not validate_module_names(model, options)


def test_an_unknown_architecture_has_no_default_targets() -> None:
    assert default_targets("LORA", "no-such-model") is None
