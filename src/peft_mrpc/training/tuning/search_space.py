"""The search space of `tune`: a YAML file of ranges and choices, as Optuna's distributions."""

import math
from collections.abc import Mapping, Set
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial

from peft_mrpc.errors import closest, one_line, raise_faults
from peft_mrpc.serialization import load_yaml, read_asset, read_yaml

EVERY_METHOD = "every_method"
PACKAGED_SPACE = "searches/default.yaml"
EXPECTED = "{low, high}, {factor} or {choices}, with log: true or step: N for a range"

SearchSpace = Mapping[str, BaseDistribution]


def load_search_space(
    path: str | None,
    method: str,
    values: Mapping[str, Any],
    explicit: Set[str],
    fixed: Set[str],
    num_layers: int,
) -> dict[str, BaseDistribution]:
    """Read the user's search space, or the packaged one of a method.

    Args:
        path: YAML file; None for the packaged space.
        method: Name of the method.
        values: Every option that may vary, with its value without a search.
        explicit: Options that the user set, which the packaged space does not vary.
        fixed: Options that must be the same in all trials.
        num_layers: The model's number of layers.
    Raises:
        UserError: With all errors of the file.
    """
    if path is None:
        where, specs = PACKAGED_SPACE, _packaged_specs(method, values, explicit, num_layers)
    else:
        where = path
        specs = read_yaml(path, "search_space", "lines `name: {low: 1e-5, high: 1e-3, log: true}`")
    space: dict[str, BaseDistribution] = {}
    errors = []
    for name, spec in specs.items():
        if name in fixed:
            errors.append(f"{where}: {name}: must be the same in all trials; remove it.")
        elif name not in values:
            errors.append(f"{where}: {name}: is not an option of {method}.{closest(name, values)}")
        elif name in explicit:
            errors.append(f"{where}: {name}: has a fixed value in this command too; remove one.")
        else:
            try:
                space[name] = build_distribution(spec, values[name])
            except (ValueError, TypeError) as error:
                errors.append(f"{where}: {name}: {one_line(error)}")
    if not specs:
        errors.append(f"{where}: nothing to search; expected `name: {{low: 1, high: 8}}`.")
    raise_faults(errors)
    return space


def build_distribution(spec: Any, value: Any) -> BaseDistribution:
    """Build the distribution that one entry of a search space describes.

    Args:
        spec: `{low, high}`, `{factor}` or `{choices}`; a range may have `log` and `step`.
        value: The option's value without a search, which `factor` multiplies and divides.
    Raises:
        ValueError, TypeError: If the entry is invalid.
    """
    if not isinstance(spec, dict):
        raise ValueError(f"got {spec!r}; expected {EXPECTED}.")
    keys, log, step = set(spec) - {"log", "step"}, spec.get("log", False), spec.get("step")
    if set(spec) == {"choices"} and isinstance(spec["choices"], list) and spec["choices"]:
        if all(isinstance(choice, bool | int | float | str) for choice in spec["choices"]):
            return CategoricalDistribution(spec["choices"])
        raise ValueError(f"got {spec['choices']!r}; expected numbers, words, true or false.")
    if keys == {"factor"}:
        factor = spec["factor"]
        if not (_is_number(factor) and factor > 1 and _is_number(value) and value > 0):
            raise ValueError(
                f"got factor {factor!r} for the value {value!r}; expected a factor above 1 for a "
                "value above 0, or low and high."
            )
        low, high = value / factor, value * factor
        if step == 1:
            low, high = max(1, round(low)), max(2, round(high))
    elif keys == {"low", "high"}:
        low, high = spec["low"], spec["high"]
    else:
        raise ValueError(f"got {spec!r}; expected {EXPECTED}.")
    numbers = [low, high] if step is None else [low, high, step]
    if not all(map(_is_number, numbers)) or not low < high or not isinstance(log, bool):
        raise ValueError(f"got {spec!r}; expected finite numbers, low < high, log true or false.")
    if step is not None and step > high - low:
        raise ValueError(f"got {spec!r}; expected a step of at most high - low.")
    if all(isinstance(number, int) for number in numbers):
        return IntDistribution(low, high, log=log, step=1 if step is None else step)
    return FloatDistribution(low, high, log=log, step=step)


def distribution_ends(distribution: BaseDistribution) -> tuple[Any, ...]:
    """Return the lowest and highest value of a range, or all choices."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return distribution.low, distribution.high


def describe_space(space: SearchSpace) -> list[str]:
    """Return each option with its range or choices, as text."""
    lines = []
    for name, distribution in space.items():
        ends = distribution_ends(distribution)
        if isinstance(distribution, IntDistribution | FloatDistribution):
            step = distribution.step
            scale = ", log" if distribution.log else "" if step in (None, 1) else f", step {step:g}"
            lines.append(f"{name} from {ends[0]:g} to {ends[1]:g}{scale}")
        else:
            lines.append(f"{name} in {', '.join(map(str, ends))}")
    return lines


def suggest_values(trial: BaseTrial, space: SearchSpace) -> dict[str, Any]:
    """Sample a value for each option in a trial."""
    values: dict[str, Any] = {}
    for name, d in space.items():
        if isinstance(d, CategoricalDistribution):
            values[name] = trial.suggest_categorical(name, d.choices)
        elif isinstance(d, IntDistribution):
            values[name] = trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)
        elif isinstance(d, FloatDistribution):
            values[name] = trial.suggest_float(name, d.low, d.high, step=d.step, log=d.log)
    return values


def _packaged_specs(
    method: str, values: Mapping[str, Any], explicit: Set[str], num_layers: int
) -> dict[str, Any]:
    """Return the packaged entries for a method, without those that have no effect here."""
    spaces = load_yaml(read_asset(PACKAGED_SPACE))
    specs = {**spaces[EVERY_METHOD], **spaces.get(method, {})}
    if values["max_steps"] > 0:
        del specs["num_train_epochs"]
    if "num_unfrozen_layers" in specs:
        choices = specs["num_unfrozen_layers"]["choices"]
        specs["num_unfrozen_layers"] = {"choices": [n for n in choices if n <= num_layers]}
    # An option without a value has no effect: without a learning rate of its own the head trains
    # with the encoder's, and with frozen_modules no layers are counted.
    return {
        name: spec
        for name, spec in specs.items()
        if name not in explicit and values.get(name) not in (None, 0)
    }


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
