"""Search spaces: what a YAML file may contain, and which entries of the packaged one apply."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from peft_mrpc.errors import UserError
from peft_mrpc.training.tuning.search_space import (
    build_distribution,
    describe_space,
    distribution_ends,
    load_search_space,
    suggest_values,
)

VALUES: dict[str, Any] = {
    "learning_rate": 1e-3,
    "head_learning_rate": None,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "r": 6,
    "lora_alpha": 12,
    "layers_to_transform": None,
    "seed": 42,
}


def load(path: Path | None, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        **{
            "method": "lora",
            "values": VALUES,
            "explicit": set(),
            "fixed": {"seed"},
            "num_layers": 12,
        },
        **changes,
    }
    return load_search_space(str(path) if path else None, **arguments)


@pytest.mark.parametrize(
    ("spec", "distribution"),
    [
        ({"low": 1, "high": 8}, IntDistribution(1, 8)),
        ({"low": 2, "high": 6, "step": 2}, IntDistribution(2, 6, step=2)),
        ({"low": 0.5, "high": 1}, FloatDistribution(0.5, 1.0)),
        ({"low": 0, "high": 1, "step": 0.5}, FloatDistribution(0.0, 1.0, step=0.5)),
        ({"low": 1e-5, "high": 1e-3, "log": True}, FloatDistribution(1e-5, 1e-3, log=True)),
        ({"choices": ["a", 1, True]}, CategoricalDistribution(["a", 1, True])),
        # The value without a search is 4.
        ({"factor": 2, "step": 1}, IntDistribution(2, 8)),
        ({"factor": 2, "log": True}, FloatDistribution(2.0, 8.0, log=True)),
    ],
)
def test_an_entry_becomes_a_distribution(spec: dict[str, Any], distribution: Any) -> None:
    assert build_distribution(spec, 4) == distribution


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("learning_rat: {low: 1, high: 2}", "is not an option of lora. Did you mean 'learning_rat"),
        ("seed: {low: 1, high: 2}", "seed: must be the same in all trials; remove it."),
        ("r: 8", "r: got 8; expected {low, high}, {factor} or {choices}"),
        ("r: {low: 8, hihg: 9}", "got {'low': 8, 'hihg': 9}; expected {low, high}"),
        ("r: {low: 8}", "got {'low': 8}; expected {low, high}"),
        ("r: {low: 8, high: 8}", "expected finite numbers, low < high"),
        ("r: {low: true, high: 8}", "expected finite numbers"),
        ("learning_rate: {low: 0.0, high: 1, log: true}", "`low > 0` must hold for `log=True`"),
        ("learning_rate: {low: .nan, high: 1}", "expected finite numbers"),
        ("r: {low: 2, high: 8, step: 0}", "step"),
        ("r: {low: 2, high: 8, step: 2, log: true}", "log"),
        ("r: {low: 2, high: 8, log: 2}", "log true or false"),
        ("r: {choices: []}", "expected {low, high}, {factor} or {choices}"),
        ("r: {choices: [8, 9], low: 1}", "expected {low, high}, {factor} or {choices}"),
        ("r: {choices: [8, [9]]}", "got [8, [9]]; expected numbers, words, true or false."),
        ("r: {factor: 1}", "expected a factor above 1"),
        ("layers_to_transform: {factor: 2}", "for the value None; expected a factor above 1"),
        ("{}", "nothing to search; expected"),
        ("- r", "expected lines `name: {low"),
        ("r: {", "not valid YAML"),
    ],
)
def test_an_invalid_file_is_rejected(text: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        load(path)
    assert error in str(raised.value) and str(path) in str(raised.value)


def test_all_errors_of_a_file_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("r: 8\nseed: {low: 1, high: 2}\nlora_alpha: {low: 1, high: 2}\n")
    with pytest.raises(UserError) as raised:
        load(path, explicit={"lora_alpha"})
    assert len(raised.value.faults) == 3
    assert raised.value.faults[2].endswith("has a fixed value in this command too; remove one.")


def test_the_packaged_space_skips_options_without_an_effect() -> None:
    # The head has no learning rate of its own here.
    assert set(load(None)) == {"learning_rate", "num_train_epochs", "r", "lora_alpha"}
    assert set(load(None, values={**VALUES, "max_steps": 5}, explicit={"r"})) == {
        *("learning_rate", "lora_alpha")
    }
    assert load(None)["learning_rate"] == FloatDistribution(2e-4, 5e-3, log=True)


def test_the_packaged_space_respects_the_number_of_layers() -> None:
    values = {**VALUES, "num_unfrozen_layers": 2}
    space = load(None, method="layer_freeze", values=values, num_layers=2)
    assert distribution_ends(space["num_unfrozen_layers"]) == (1, 2)


def test_a_trial_has_a_value_of_each_kind() -> None:
    space = {
        "r": CategoricalDistribution([4, 8]),
        "num_train_epochs": IntDistribution(1, 6),
        "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
    }
    fixed = {"r": 8, "num_train_epochs": 2, "learning_rate": 1e-4}
    assert suggest_values(optuna.trial.FixedTrial(fixed), space) == fixed
    assert describe_space(space) == [
        "r in 4, 8",
        "num_train_epochs from 1 to 6",
        "learning_rate from 1e-05 to 0.001, log",
    ]
