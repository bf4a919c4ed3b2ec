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

KEYS = ("low", "high", "log", "step", "factor", "choices")
EVERY_METHOD = "every_method"
PACKAGED_SPACE = "searches/default.yaml"

SearchSpace = Mapping[str, BaseDistribution]


def load_search_space(
    path: str | None,
    method: str,
    values: Mapping[str, Any],
    given: Set[str],
    fixed: Set[str],
    limits: Mapping[str, int],
) -> dict[str, BaseDistribution]:
    """Read the user's search space, or the packaged one of a method.

    Args:
        path: YAML file; None for the packaged space.
        method: Name of the method.
        values: Every option that may vary, with its value without a search.
        given: Options with a value of the user's, which the packaged space leaves out.
        fixed: Options that must be the same in all trials.
        limits: Largest values that the model allows; the packaged space respects them.
    Raises:
        UserError: With all errors of the file.
    """
    where = path or PACKAGED_SPACE
    if path is None:
        specs = _packaged_specs(method, values, given, limits)
    else:
        expected = "lines `name: {low: 1e-5, high: 1e-3, log: true}`"
        specs = read_yaml(path, "search_space", expected)
    space: dict[str, BaseDistribution] = {}
    errors = []
    for name, spec in specs.items():
        if name in fixed:
            errors.append(f"{where}: {name}: must be the same in all trials; remove it.")
        elif name not in values:
            errors.append(f"{where}: {name}: is not an option of {method}.{closest(name, values)}")
        elif name in given:
            errors.append(f"{where}: {name}: has a fixed value in this command too; remove one.")
        else:
            try:
                space[name] = build_distribution(spec, values[name])
            except ValueError as error:
                errors.append(f"{where}: {name}: {one_line(error)}")
    if not specs:
        errors.append(f"{where}: nothing to search; expected `name: {{low: 1, high: 8}}`.")
    raise_faults(errors)
    return space


def build_distribution(spec: Any, value: Any) -> BaseDistribution:
    """Build the distribution that one entry of a search space describes.

    Args:
        spec: `{low, high, log, step}`, `{factor, log, step}` or `{choices}`.
        value: The option's value without a search, which `factor` multiplies and divides.
    Raises:
        ValueError: If the entry is invalid.
    """
    if not isinstance(spec, dict):
        raise ValueError(f"got {spec!r}; expected a mapping with low and high, factor, or choices.")
    if unknown := [str(key) for key in spec if key not in KEYS]:
        raise ValueError(
            f"got the key {unknown[0]!r}; expected {', '.join(KEYS)}.{closest(unknown[0], KEYS)}"
        )
    if "choices" in spec:
        return _build_choices(spec)
    low, high = _range(spec, value)
    log, step = spec.get("log", False), spec.get("step")
    if not isinstance(log, bool):
        raise ValueError(f"got log {log!r}; expected true or false.")
    if not _is_number(low) or not _is_number(high) or not low < high:
        raise ValueError(f"got low {low!r} and high {high!r}; expected two numbers, low < high.")
    if step is not None and (not _is_number(step) or not 0 < step <= high - low):
        raise ValueError(f"got step {step!r}; expected a number up to high - low.")
    is_integer = all(isinstance(number, int) for number in (low, high, step or 1))
    if is_integer:
        return IntDistribution(low, high, log=log, step=step or 1)
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
        if isinstance(distribution, CategoricalDistribution):
            lines.append(f"{name} in {', '.join(map(str, ends))}")
            continue
        assert isinstance(distribution, IntDistribution | FloatDistribution)
        step = distribution.step
        suffix = ", log" if distribution.log else "" if step in (None, 1) else f", step {step:g}"
        lines.append(f"{name} from {ends[0]:g} to {ends[1]:g}{suffix}")
    return lines


def suggest_values(trial: BaseTrial, space: SearchSpace) -> dict[str, Any]:
    """Draw a value for each option in a trial."""
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
    method: str, values: Mapping[str, Any], given: Set[str], limits: Mapping[str, int]
) -> dict[str, Any]:
    """Return the packaged entries for a method, without those that have no effect here."""
    spaces = load_yaml(read_asset(PACKAGED_SPACE))
    specs = {**spaces[EVERY_METHOD], **spaces.get(method, {})}
    if values["max_steps"] > 0:
        del specs["num_train_epochs"]
    for name in limits.keys() & specs.keys():
        choices = [choice for choice in specs[name]["choices"] if choice <= limits[name]]
        specs[name] = {"choices": choices}
        if len(choices) < 2:
            del specs[name]
    # An option without a value has no effect: without a learning rate of its own the head trains
    # with the encoder's, and with frozen_modules no layers are counted.
    return {
        name: spec
        for name, spec in specs.items()
        if name not in given and values.get(name) not in (None, 0)
    }


def _build_choices(spec: Mapping[str, Any]) -> CategoricalDistribution:
    choices = spec["choices"]
    if len(spec) > 1 or not isinstance(choices, list) or len(choices) < 2:
        raise ValueError(f"got {dict(spec)!r}; expected choices alone, a list of two or more.")
    for choice in choices:
        if not isinstance(choice, bool | int | float | str):
            raise ValueError(f"got the choice {choice!r}; expected numbers, words, true or false.")
    if len(set(map(str, choices))) < len(choices):
        raise ValueError(f"got {choices!r}; expected different choices.")
    return CategoricalDistribution(choices)


def _range(spec: Mapping[str, Any], value: Any) -> tuple[Any, Any]:
    if "factor" not in spec:
        return spec.get("low"), spec.get("high")
    factor = spec["factor"]
    if not _is_number(factor) or factor <= 1 or "low" in spec or "high" in spec:
        raise ValueError(f"got factor {factor!r}; expected a number above 1, without low and high.")
    if not _is_number(value) or value <= 0:
        raise ValueError(f"got a factor, but the value is {value!r}; expected low and high.")
    low, high = value / factor, value * factor
    return (max(1, round(low)), max(2, round(high))) if spec.get("step") == 1 else (low, high)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
