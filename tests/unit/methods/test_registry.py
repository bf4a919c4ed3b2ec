"""The registry of methods and their recipes."""

from pathlib import Path

import pytest

import peft_mrpc
from peft_mrpc.methods.registry import METHODS, load_default_recipe, scale_learning_rates


def test_every_method_has_a_recipe() -> None:
    folder = Path(str(peft_mrpc.__file__)).parent / "recipes"
    assert {path.stem for path in folder.glob("*.yaml")} == set(METHODS)


def test_learning_rates_of_a_recipe_are_scaled_to_the_model() -> None:
    # A tiny model and MiniLM, where they were found; bert-base; an 8 B LLaMA.
    recipe = load_default_recipe("lora")
    for width, factor in ((16, 1), (384, 1), (768, 0.5), (4096, 0.09375)):
        assert scale_learning_rates("lora", recipe, width, 6) == {
            "learning_rate": pytest.approx(float(recipe["learning_rate"]) * factor),
            "head_learning_rate": pytest.approx(float(recipe["head_learning_rate"]) * factor),
        }
    prompt = load_default_recipe("prompt_tuning")
    rates = scale_learning_rates("prompt_tuning", prompt, 768, 12)
    assert rates["learning_rate"] == float(prompt["learning_rate"])
    assert rates["head_learning_rate"] == pytest.approx(float(prompt["head_learning_rate"]) / 2)
    # From the top of the encoder to its bottom a rate falls alike, whatever the depth.
    recipe = load_default_recipe("full")
    decay = float(recipe["layer_decay"])
    for depth in (6, 12, 24):
        scaled = scale_learning_rates("full", recipe, 384, depth)["layer_decay"]
        assert scaled**depth == pytest.approx(decay**6)
