"""What a search varies: a YAML file of ranges and choices, checked before the first trial."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from peft_mrpc.errors import closest, raise_faults
from peft_mrpc.serialization import load_yaml, parse_scalar, read_yaml

KEYS = ("low", "high", "log", "step", "factor", "choices")
EVERY_METHOD = "every_method"


@dataclass(frozen=True)
class Parameter:
    """One flag that a search varies: over a range, or among choices.

    Attributes:
        name: The flag.
        low: Least value of a range.
        high: Greatest value of a range; both whole numbers if only such are meant.
        log: Whether the range is searched by its logarithm.
        step: Width of a grid in the range; None for none.
        choices: The values, where it is no range.
    """

    name: str
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: Any) -> Any:
        """The value of an Optuna trial."""
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.name, self.low, self.high, step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def ends(self) -> tuple[Any, ...]:
        """Values to try the flag with: the ends of a range, or every choice."""
        return self.choices or (self.low, self.high)

    def count(self) -> int:
        """How many values it has, where they are choices or whole numbers."""
        return len(self.choices) or int((self.high - self.low) // (self.step or 1)) + 1

    def __str__(self) -> str:
        if self.choices:
            return f"{self.name} in {', '.join(map(str, self.choices))}"
        how = ", log" if self.log else f", step {self.step:g}" if self.step else ""
        return f"{self.name} from {self.low:g} to {self.high:g}{how}"


def load_space(
    path: str | None,
    method: str,
    known: Mapping[str, Any],
    given: set[str],
    fixed: set[str],
    most: Mapping[str, int],
) -> list[Parameter]:
    """Read the user's search space, or the packaged one of a method.

    Args:
        path: YAML file; None for the packaged space.
        method: Name of the method.
        known: Every flag that may vary, with its value in the recipe.
        given: Flags that the user gave a value: the packaged space leaves them alone.
        fixed: Flags that a search needs as they are.
        most: The largest values that the model has room for; the packaged space keeps to them.
    Raises:
        UserError: Naming every fault of the file.
    """
    where = path or "searches/default.yaml"
    if path is None:
        specs = _packaged_specs(method, known, given, most)
    else:
        line = "lines `name: {low: 1e-5, high: 1e-3, log: true}`"
        specs = read_yaml(path, "--search_space", line)
    faults: list[str] = []
    parameters = []
    for name, spec in specs.items():
        if name in fixed:
            faults.append(f"{where}: {name}: is the same for all trials; drop it.")
        elif name not in known:
            faults.append(f"{where}: {name}: is no flag of {method}.{closest(name, known)}")
        elif name in given:
            faults.append(f"{where}: {name}: is given as a flag or in --config too; drop one.")
        else:
            found = _parse(name, spec, known[name])
            if isinstance(found, str):
                faults.append(f"{where}: {name}: {found}")
            else:
                parameters.append(found)
    if not specs:
        faults.append(f"{where}: leaves nothing to search; expected `name: {{low: 1, high: 8}}`.")
    raise_faults(faults)
    return parameters


def _packaged_specs(
    method: str, known: Mapping[str, Any], given: set[str], most: Mapping[str, int]
) -> dict[str, Any]:
    text = (resources.files("peft_mrpc") / "searches" / "default.yaml").read_text("utf-8")
    spaces = load_yaml(text)
    specs = {**spaces[EVERY_METHOD], **spaces.get(method, {})}
    if known["max_steps"] > 0:
        del specs["num_train_epochs"]
    for name in most.keys() & specs.keys():
        fitting = [choice for choice in specs[name]["choices"] if choice <= most[name]]
        specs[name] = {"choices": fitting}
        if len(fitting) < 2:
            del specs[name]
    # What has no value here has no part in it: a head without a rate of its own learns at the rate
    # that is searched already, and --frozen_modules leave no layers to count.
    return {
        name: spec
        for name, spec in specs.items()
        if name not in given and known.get(name) not in (None, 0)
    }


def _parse(name: str, spec: Any, recipe_value: Any) -> Parameter | str:
    """The parameter, or what is wrong with it."""
    if not isinstance(spec, dict):
        return f"got {spec!r}; expected {{low, high, log, step}}, {{factor, log}} or {{choices}}."
    unknown = [key for key in spec if key not in KEYS]
    if unknown:
        return f"got {unknown[0]!r}; expected {', '.join(KEYS)}.{closest(str(unknown[0]), KEYS)}"
    if "choices" in spec:
        return _parse_choices(name, spec)
    bounds = _parse_bounds(spec, recipe_value)
    if isinstance(bounds, str):
        return bounds
    low, high = bounds
    log, step = spec.get("log", False), _number(spec.get("step"))
    if not isinstance(log, bool):
        return f"got log {log!r}; expected true or false."
    if log and low <= 0:
        return f"got log with low {low:g}; expected low above 0."
    if "step" in spec and (step is None or not 0 < step <= high - low or log):
        return f"got step {spec['step']!r}; expected a number up to high - low, and no log."
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, float):
        low, high = float(low), float(high)
    return Parameter(name, low, high, log, step)


def _parse_choices(name: str, spec: Mapping[str, Any]) -> Parameter | str:
    choices = spec["choices"]
    if len(spec) > 1 or not isinstance(choices, list) or len(choices) < 2:
        return f"got {dict(spec)!r}; expected choices alone, a list of two or more."
    values = [parse_scalar(c) if isinstance(c, str) else c for c in choices]
    bad = [value for value in values if not isinstance(value, bool | int | float | str)]
    if bad:
        return f"got the choice {bad[0]!r}; expected numbers, words, true or false."
    if len({str(value) for value in values}) < len(values):
        return f"got {choices!r}; expected choices that differ."
    return Parameter(name, choices=tuple(values))


def _parse_bounds(spec: Mapping[str, Any], recipe_value: Any) -> tuple[float, float] | str:
    if "factor" not in spec:
        low, high = _number(spec.get("low")), _number(spec.get("high"))
        if low is None or high is None or not low < high:
            return (
                f"got low {spec.get('low')!r} and high {spec.get('high')!r}; expected two numbers, "
                "the lower first."
            )
        return low, high
    factor, value = _number(spec["factor"]), _number(recipe_value)
    if factor is None or factor <= 1 or "low" in spec or "high" in spec:
        return f"got factor {spec['factor']!r}; expected a number above 1, and no low or high."
    if value is None or value <= 0:
        return f"got a factor, but the recipe has {recipe_value!r} here; expected low and high."
    low, high = value / factor, value * factor
    if "step" in spec and spec["step"] == 1:
        return max(1, round(low)), max(2, round(high))
    return low, high


def _number(value: Any) -> float | None:
    """A finite number, also one that YAML reads as a string (`1e-5`)."""
    value = parse_scalar(value) if isinstance(value, str) else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


# Options of which each value has activations of its own.
ACTIVATION_OPTIONS = {
    *("num_unfrozen_layers", "frozen_modules", "unfrozen_modules", "pooling", "head_layer"),
    *("bf16", "fp16", "tf32", "attention"),
}


def count_activation_sets(space: Sequence[Parameter]) -> int:
    """How many sets of cached activations the trials of a search need."""
    return math.prod(
        parameter.count() for parameter in space if parameter.name in ACTIVATION_OPTIONS
    )
