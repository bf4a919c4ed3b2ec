import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import ARCHITECTURES, FLAGS, poolings, write_tiny_model

from peft_mrpc.data.loading import load_data
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.models.architecture import head_parameter_ids
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.runs.run import load_run
from peft_mrpc.train import main
from peft_mrpc.training.build_model import build_classifier
from peft_mrpc.training.build_trainer import build_trainer
from peft_mrpc.training.request import parse_request

RATE, HEAD_RATE, DECAY = 1e-3, 7e-3, 0.5
IN_NO_LAYER = ["linear_probe", "prompt_tuning", "p_tuning", "prefix_tuning"]


def groups_of(method: str, model: str, data_flags: list[str], folder: Path, *flags: str) -> Any:
    """The model and its optimizer's groups."""
    request = parse_request(
        ["--method", method, "--model", model, *data_flags, *FLAGS[method], *flags]
        + ["--learning_rate", str(RATE), "--head_learning_rate", str(HEAD_RATE)]
        + ["--weight_decay", "0.1"]
    )
    classifier = build_classifier(request, resolve_model(model), load_data(request.data))
    trainer, _ = build_trainer(request, load_data(request.data), classifier, str(folder))
    return classifier.model, trainer.create_optimizer().param_groups


def expected_rate(name: str) -> float:
    """By the name, of a model of two layers."""
    numbered = re.search(r"\blayers?\.(\d)\.", name)
    if numbered:
        return RATE * DECAY ** (1 - int(numbered[1]))
    is_after = re.search(r"\b(pooler|norm|final_norm)\.", name) and "embeddings" not in name
    if "prompt_encoder" in name or is_after:
        return RATE
    return RATE * DECAY**2


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
def test_each_layer_learns_at_its_own_rate(
    architecture: str, models: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    for pooling in poolings(architecture):
        flags = ["--pooling", pooling, "--layer_decay", str(DECAY)]
        model, groups = groups_of("full", models[architecture], data_flags, tmp_path, *flags)
        assert check_rates(model, groups) == {RATE, RATE * DECAY, RATE * DECAY**2, HEAD_RATE}
        assert groups[0]["lr"] == RATE  # which the Trainer logs


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("full", *IN_NO_LAYER)])
def test_what_a_method_puts_into_a_layer_learns_at_its_rate(
    method: str, models: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--pooling", "native", "--layer_decay", str(DECAY)]
    model, groups = groups_of(method, models["bert"], data_flags, tmp_path, *flags)
    found = check_rates(model, groups)
    below = {"layer_freeze": set(), "bitfit": {DECAY, DECAY**2}}
    below["ln_tuning"] = below["bitfit"]  # the norm over the embeddings trains too
    lower = {RATE * power for power in below.get(method, {DECAY})}
    assert found == {HEAD_RATE, RATE} | lower


@pytest.mark.parametrize("method", IN_NO_LAYER[1:])
def test_virtual_tokens_learn_at_their_own_rate_beside_the_head(
    method: str, models: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    model, groups = groups_of(method, models["bert"], data_flags, tmp_path, "--pooling", "native")
    head = head_parameter_ids(model)
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (HEAD_RATE if id(parameter) in head else RATE)
    assert {group["lr"] for group in groups} == {HEAD_RATE, RATE}


def test_all_that_stands_beside_the_encoder_is_the_head(
    models: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    for method in ("full", "prompt_tuning"):  # plain, and under PEFT
        model, groups = groups_of(
            *(method, models["deberta-v2"], data_flags, tmp_path, "--pooling", "native")
        )
        names = {id(p): name for name, p in model.named_parameters()}
        at_head_rate = {
            names[id(p)] for group in groups for p in group["params"] if group["lr"] == HEAD_RATE
        }
        own = {re.sub(r"^base_model\.|modules_to_save\.default\.", "", n) for n in at_head_rate}
        assert own == {
            *("pooler.dense.weight", "pooler.dense.bias"),
            *("classifier.weight", "classifier.bias"),
        }


def test_weight_decay_is_as_without(
    models: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    decays = []
    for flags in ([], ["--layer_decay", str(DECAY)]):
        model, groups = groups_of("full", models["bert"], data_flags, tmp_path, *flags)
        name_of = {id(p): name for name, p in model.named_parameters()}
        decays.append({name_of[id(p)]: g["weight_decay"] for g in groups for p in g["params"]})
    assert decays[0] == decays[1]
    assert set(decays[0].values()) == {0.0, 0.1}


def test_a_recipes_decay_is_left_out_where_there_is_no_stack_of_layers(
    data_flags: list[str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    albert = write_tiny_model("albert", tmp_path / "albert")
    flags = ["--method", "full", "--model", albert, *data_flags, "--num_train_epochs", "1"]
    main([*flags, "--output_dir", str(tmp_path / "run")])
    assert load_run(tmp_path / "run").record["config"]["layer_decay"] is None
    said = fails(main, *flags, "--layer_decay", "0.9", "--output_dir", str(tmp_path / "typed"))
    assert "found no stack of 2 layers" in said


@pytest.mark.parametrize("method", IN_NO_LAYER)
def test_a_decay_that_would_reach_nothing_is_refused(
    method: str, tiny_bert: str, data_flags: list[str], fails: Callable[..., str]
) -> None:
    said = fails(
        main, "--method", method, "--model", tiny_bert, *data_flags, "--layer_decay", "0.9"
    )
    assert f"--layer_decay: got 0.9, but {method} trains nothing in a layer; drop it." in said


@pytest.mark.parametrize("value", ["0", "-0.5", "1.1", "nan", "inf"])
def test_a_decay_that_is_none_is_refused(
    value: str, tiny_bert: str, data_flags: list[str], fails: Callable[..., str]
) -> None:
    said = fails(main, "--model", tiny_bert, *data_flags, "--layer_decay", value)
    assert f"--layer_decay: got {float(value)}; expected above 0 and at most 1." in said
    assert len(said.splitlines()) == 1
