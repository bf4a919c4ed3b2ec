"""The quality gate of a comparison: minimum values, and limits relative to a baseline."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peft_mrpc.errors import UserError, raise_faults, unknown_name
from peft_mrpc.evaluation.metrics import (
    F1_OF_LABEL,
    METRICS,
    REPORTED_METRICS,
    flatten_metrics,
)
from peft_mrpc.report.comparison import Comparison

# Differences of this size are rounding errors.
ROUNDING = 1e-12
# Metrics of each Run, by its name.
RunValues = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class QualityGate:
    """Thresholds for the metrics of all Runs.

    Attributes:
        minimum: Minimum values by metric; `f1` applies to every label, `f1.LABEL` to one.
        baseline: Directory of the Run that the others are compared with.
        tolerance: How much worse than the baseline a metric may be.
    """

    minimum: Mapping[str, float]
    baseline: str | None
    tolerance: Mapping[str, float]

    def failures(self, comparison: Comparison) -> list[str]:
        """One line for each Run and metric that fails.

        Raises:
            UserError: If a label does not exist, the baseline is not among the Runs, or a metric
                with a minimum is not defined.
        """
        self._check_labels(comparison.label_names)
        values = dict(zip(comparison.names, map(flatten_metrics, comparison.metrics), strict=True))
        return [*self._failed_minimums(values, comparison), *self._losses(values, comparison)]

    def _failed_minimums(self, values: RunValues, comparison: Comparison) -> Iterator[str]:
        for option, minimum in self.minimum.items():
            for name, run_values in values.items():
                for metric, value in _select(run_values, option):
                    if value is None:
                        raise UserError(
                            f"fail_under: {name} has no {option}, because a label has no examples "
                            f"in {comparison.split!r}. Remove {option}, or compare another split."
                        )
                    if value < minimum - ROUNDING:
                        yield f"{name}: {_describe(metric)} {value:.4f} is under {minimum:g}"

    def _losses(self, values: RunValues, comparison: Comparison) -> Iterator[str]:
        """Metrics that are worse than the baseline's by more than their tolerance."""
        if self.baseline is None:
            return
        baseline = self._find_baseline(comparison)
        for option, tolerance in self.tolerance.items():
            for name, run_values in values.items():
                for metric, value in _select(run_values, option):
                    reference = values[baseline][metric]
                    # Undefined for both Runs, because the examples are the same: not worse.
                    if value is None or reference is None:
                        continue
                    is_score = _is_higher_better(metric)
                    loss = reference - value if is_score else value - reference
                    if loss > tolerance + ROUNDING:
                        side = "below" if is_score else "above"
                        yield (
                            f"{name}: {_describe(metric)} {value:.4f} is more than "
                            f"{tolerance:g} {side} {baseline}'s {reference:.4f}"
                        )

    def _check_labels(self, label_names: Sequence[str]) -> None:
        known = [F1_OF_LABEL + label for label in label_names]
        faults: list[str] = []
        for argument, options in (("fail_under", self.minimum), ("no_worse_than", self.tolerance)):
            for option in options:
                if option.startswith(F1_OF_LABEL) and option not in known:
                    faults += unknown_name(argument, option, known).faults
        raise_faults(faults)

    def _find_baseline(self, comparison: Comparison) -> str:
        """Name of the baseline."""
        path = Path(self.baseline or "").resolve()
        for name, run in zip(comparison.names, comparison.runs, strict=True):
            if path in (run.path.resolve(), *(seed.path.resolve() for seed in run.seed_runs)):
                return name
        known = ", ".join(str(run.path) for run in comparison.runs)
        raise UserError(
            f"baseline: got {self.baseline!r}; expected one of the compared Runs: {known}."
        )


def parse_quality_gate(
    fail_under: str | None = None, baseline: str | None = None, no_worse_than: str | None = None
) -> QualityGate:
    """Parse the options of the quality gate.

    Args:
        fail_under: `METRIC=NUMBER,...`: minimum values.
        baseline: Directory of one of the Runs.
        no_worse_than: `METRIC=NUMBER,...`, or a number for accuracy: tolerance relative to the
            baseline; by default no accuracy may be lower.
    Raises:
        UserError: If a metric is unknown or a number is not between 0 and 1.
    """
    scores = [metric.name for metric in REPORTED_METRICS if metric.higher_is_better]
    every = [metric.name for metric in REPORTED_METRICS]
    minimum, faults = _parse("fail_under", fail_under, scores)
    tolerance, more = _parse("no_worse_than", no_worse_than, every, default_metric="accuracy")
    faults += more
    if no_worse_than is not None and not baseline:
        faults.append("no_worse_than: needs a baseline; set baseline to one of the Runs.")
    raise_faults(faults)
    return QualityGate(minimum, baseline, tolerance or {"accuracy": 0.0})


def _parse(
    argument: str, text: str | None, metrics: Sequence[str], default_metric: str = ""
) -> tuple[dict[str, float], list[str]]:
    """Values by metric, and faults."""
    values: dict[str, float] = {}
    faults: list[str] = []
    for part in text.split(",") if text is not None else ():
        name, equals, number = (word.strip() for word in part.rpartition("="))
        value = _parse_share(number)
        if value is None or not (equals or default_metric):
            alternative = " or a number" if default_metric else ""
            faults.append(
                f"{argument}: got {part.strip()!r}; expected METRIC=NUMBER{alternative}, 0 to 1. "
                f"Metrics: {', '.join([*metrics, F1_OF_LABEL + 'LABEL'])}."
            )
            continue
        name = name if equals else default_metric
        if name not in metrics and not name.startswith(F1_OF_LABEL):
            note = ""
            if name in METRICS and not METRICS[name].higher_is_better:
                note = " Lower values of it are better: compare it with a baseline."
            faults += [fault + note for fault in unknown_name(argument, name, metrics).faults]
        if name in values:
            faults.append(f"{argument}: got {name} twice; name each metric once.")
        values[name] = value
    return values, faults


def _parse_share(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= 1 else None


def _select(values: Mapping[str, float | None], option: str) -> Iterator[tuple[str, float | None]]:
    """The metrics of an option: one, or F1 of every label."""
    for metric, value in values.items():
        if metric == option or (option == "f1" and metric.startswith(F1_OF_LABEL)):
            yield metric, value


def _is_higher_better(metric: str) -> bool:
    return metric.startswith(F1_OF_LABEL) or METRICS[metric].higher_is_better


def _describe(metric: str) -> str:
    if metric.startswith(F1_OF_LABEL):
        return f"F1 of {metric.removeprefix(F1_OF_LABEL)!r}"
    return metric
