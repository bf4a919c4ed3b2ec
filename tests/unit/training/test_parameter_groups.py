"""The head's learning rate and layer-wise learning rate decay."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import ARCHITECTURES, poolings, write_tiny_model

from peft_mrpc.errors import UserError
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.models.architecture import head_parameter_ids

RATE, HEAD_RATE, DECAY = 1e-3, 7e-3, 0.5
RATES = {"learning_rate": RATE, "head_learning_rate": HEAD_RATE, "weight_decay": 0.1}
# Methods that train nothing inside a layer.
WITHOUT_LAYERS = ["linear_probe", "prompt_tuning", "p_tuning", "prefix_tuning"]
Groups = Callable[..., tuple[Any, list[dict[str, Any]]]]


@pytest.fixture
def groups_of(build_tiny: Callable[..., Any]) -> Groups:
    """The model and the parameter groups of its optimizer."""

    def build(method: str, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
        built = build_tiny(method, **RATES, **options)
        return built.classifier.model, built.trainer.create_optimizer().param_groups

    return build


def expected_rate(name: str) -> float:
    """The learning rate of a parameter outside the head, in a model of two layers."""
    if numbered := re.search(r"\blayers?\.(\d)\.", name):
        return RATE * DECAY ** (1 - int(numbered[1]))
    is_after = re.search(r"\b(pooler|norm|final_norm)\.", name) and "embeddings" not in name
    return RATE if "prompt_encoder" in name or is_after else RATE * DECAY**2


def check_rates(model: Any, groups: list[dict[str, Any]]) -> set[float]:
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups)
    head = head_parameter_ids(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in trained.values()} == set(rates)
    for name, parameter in trained.items():
        expected = HEAD_RATE if id(parameter) in head else expected_rate(name)
        assert rates[id(parameter)] == pytest.approx(expected), name
    return {round(rate, 9) for rate in rates.values()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_layer_has_its_own_rate(
    architecture: str, models: dict[str, str], groups_of: Groups
) -> None:
    for pooling in poolings(architecture):
        options = {"model": models[architecture], "pooling": pooling, "layer_decay": DECAY}
        model, groups = groups_of("full", **options)
        assert check_rates(model, groups) == {RATE, RATE * DECAY, RATE * DECAY**2, HEAD_RATE}
        assert groups[0]["lr"] == RATE  # the one that the Trainer logs


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("full", *WITHOUT_LAYERS)])
def test_what_a_method_adds_to_a_layer_has_its_rate(method: str, groups_of: Groups) -> None:
    model, groups = groups_of(method, pooling="native", layer_decay=DECAY)
    # In layers below the last one, and with the norm of the embeddings.
    both = {DECAY, DECAY**2}
    powers = {"layer_freeze": set(), "bitfit": both, "ln_tuning": both}
    lower = {RATE * power for power in powers.get(method, {DECAY})}
    assert check_rates(model, groups) == {HEAD_RATE, RATE} | lower


@pytest.mark.parametrize("method", WITHOUT_LAYERS[1:])
def test_virtual_tokens_and_the_head_have_two_rates(method: str, groups_of: Groups) -> None:
    model, groups = groups_of(method, pooling="native")
    head = head_parameter_ids(model)
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (HEAD_RATE if id(parameter) in head else RATE)
    assert {group["lr"] for group in groups} == {HEAD_RATE, RATE}


@pytest.mark.parametrize("method", ["full", "prompt_tuning"])  # without PEFT, and with it
def test_a_pooler_beside_the_encoder_belongs_to_the_head(
    method: str, models: dict[str, str], groups_of: Groups
) -> None:
    model, groups = groups_of(method, model=models["deberta-v2"], pooling="native")
    names = {id(p): name for name, p in model.named_parameters()}
    head = {names[id(p)] for group in groups for p in group["params"] if group["lr"] == HEAD_RATE}
    assert {re.sub(r"^base_model\.|modules_to_save\.default\.", "", name) for name in head} == {
        *("pooler.dense.weight", "pooler.dense.bias"),
        *("classifier.weight", "classifier.bias"),
    }


def test_groups_keep_the_weight_decay(groups_of: Groups) -> None:
    decays = []
    for options in ({}, {"layer_decay": DECAY}):
        model, groups = groups_of("full", pooling="native", **options)
        name_of = {id(p): name for name, p in model.named_parameters()}
        decays.append({name_of[id(p)]: g["weight_decay"] for g in groups for p in g["params"]})
    assert decays[0] == decays[1]
    assert set(decays[0].values()) == {0.0, 0.1}


def test_groups_are_built_again_for_a_second_optimizer(build_tiny: Callable[..., Any]) -> None:
    """As after an out-of-memory error with auto_find_batch_size."""
    trainer = build_tiny("full", **RATES).trainer
    sizes = []
    for _ in range(2):
        trainer.optimizer = None
        groups = trainer.create_optimizer().param_groups
        sizes.append([(group["lr"], len(group["params"])) for group in groups])
    assert sizes[0] == sizes[1] and len({rate for rate, _ in sizes[0]}) > 1


def test_a_recipe_has_no_decay_for_a_model_without_a_stack_of_layers(
    build_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    albert = write_tiny_model("albert", tmp_path / "albert")
    assert build_tiny("full", model=albert).resolved.config.layer_decay is None
    with pytest.raises(UserError, match="has no stack of 2 layers"):
        build_tiny("full", model=albert, layer_decay=0.9).trainer.create_optimizer()


@pytest.mark.parametrize("method", WITHOUT_LAYERS)
def test_a_decay_without_trained_layers_is_an_error(
    method: str, build_tiny: Callable[..., Any]
) -> None:
    with pytest.raises(UserError, match=f"layer_decay: got 0.9, but {method} trains no layer"):
        build_tiny(method, layer_decay=0.9)


@pytest.mark.parametrize("value", [0.0, -0.5, 1.1, float("nan"), float("inf")])
def test_a_decay_outside_its_range_is_an_error(
    value: float, build_tiny: Callable[..., Any]
) -> None:
    with pytest.raises(UserError, match=f"layer_decay: got {value}; expected above 0"):
        build_tiny("full", layer_decay=value)
