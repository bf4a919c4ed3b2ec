"""Bars that Runs have to meet, for jobs that should fail where they do not."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_mrpc.errors import UserError, raise_faults, unknown_name

if TYPE_CHECKING:
    from peft_mrpc.config import CompareConfig
    from peft_mrpc.report.comparison import Comparison

# Of the last two less is better: they may lie above a baseline's, and under no bar.
ERRORS = ("brier", "ece")
SCORES = ("accuracy", "macro_f1", "mcc", "roc_auc", "average_precision")
# F1 of every label, or of one: f1.equivalent.
F1, ONE_F1 = "f1", "f1."

Bars = Mapping[str, float]


def parse_bars(config: "CompareConfig") -> tuple[Bars, Bars]:
    """What `--fail_under` and `--no_worse_than` say, checked as far as they can be without Runs.

    Returns:
        Bars and slacks by metric; with a baseline and no slack accuracy's is 0.
    Raises:
        UserError: For a metric that is none, or a number that none of its can be.
    """
    under, faults = _parse("--fail_under", config.fail_under, SCORES)
    slack, more = _parse("--no_worse_than", config.no_worse_than, (*SCORES, *ERRORS), "accuracy")
    faults += more
    if config.no_worse_than is not None and not config.baseline:
        faults.append("--no_worse_than: got no --baseline; expected one of the Runs.")
    raise_faults(faults)
    return under, slack or {"accuracy": 0.0}


def _parse(
    flag: str, given: str | None, metrics: Sequence[str], alone: str = ""
) -> tuple[dict[str, float], list[str]]:
    """`METRIC=NUMBER,...`, or a number for the metric `alone`: what it says, and what is wrong."""
    bars: dict[str, float] = {}
    faults: list[str] = []
    for text in given.split(",") if given is not None else ():
        name, is_named, value = text.strip().rpartition("=")
        number = _share(value)
        if number is None or not (is_named or alone):
            either = " or a number" if alone else ""
            faults.append(
                f"{flag}: got {text.strip()!r}; expected METRIC=NUMBER{either}, 0 to 1."
                f" Metrics: {', '.join([*metrics, F1, ONE_F1 + 'LABEL'])}."
            )
            continue
        name = name.strip() if is_named else alone
        if name not in (*metrics, F1) and not name.startswith(ONE_F1):
            why = " Less is better of it: hold it against a --baseline." if name in ERRORS else ""
            faults += [fault + why for fault in unknown_name(flag, name, (*metrics, F1)).faults]
        if name in bars:
            faults.append(f"{flag}: got {name} twice; name each metric once.")
        bars[name] = number
    return bars, faults


def _share(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and 0 <= number <= 1 else None


def check_labels(bars: Bars, slack: Bars, label_names: Sequence[str]) -> None:
    """Make sure that F1 is asked of labels that there are.

    Raises:
        UserError: If there is none of that name.
    """
    faults: list[str] = []
    for flag, wanted in (("--fail_under", bars), ("--no_worse_than", slack)):
        for name in wanted:
            if name.startswith(ONE_F1) and name.removeprefix(ONE_F1) not in label_names:
                known = [ONE_F1 + label for label in label_names]
                faults += unknown_name(flag, name, known).faults
    raise_faults(faults)


def find_baseline(config: "CompareConfig", comparison: "Comparison") -> int | None:
    """Which of the Runs is the baseline.

    Raises:
        UserError: If it is none of them.
    """
    if config.baseline is None:
        return None
    wanted = Path(config.baseline).resolve()
    for number, run in enumerate(comparison.runs):
        if wanted in (run.path.resolve(), *(one.path.resolve() for one in run.seed_runs)):
            return number
    known = ", ".join(str(run.path) for run in comparison.runs)
    raise UserError(
        f"--baseline: got {config.baseline!r}; expected one of the Runs compared: {known}."
    )


def missed_bars(
    comparison: "Comparison", bars: Bars, baseline: int | None, slack: Bars
) -> list[str]:
    """Which Run misses what, one line each."""
    values = [
        _figures(run.metrics[comparison.split], (*SCORES, *ERRORS)) for run in comparison.runs
    ]
    missed = [
        f"{name}: {_said(metric)} {_number(found)} is under {bar:g}"
        for wanted, bar in bars.items()
        for name, own in zip(comparison.names, values, strict=True)
        for metric, found in _chosen(own, wanted)
        if found is None or found < bar - 1e-12
    ]
    if baseline is None:
        return missed
    for wanted, most in slack.items():
        for name, own in zip(comparison.names, values, strict=True):
            for metric, found in _chosen(own, wanted):
                mark = values[baseline][metric]
                sign, side = (-1, "above") if metric in ERRORS else (1, "below")
                # What is defined for neither is no worse: the rows are the same.
                if None not in (found, mark) and sign * (mark - found) > most + 1e-12:
                    missed.append(
                        f"{name}: {_said(metric)} {_number(found)} is more than {most:g} {side} "
                        f"{comparison.names[baseline]}'s {_number(mark)}"
                    )
    return missed


def _figures(values: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    own = {name: values[name] for name in metrics}
    return own | {ONE_F1 + label: value for label, value in values["f1"].items()}


def _chosen(own: Mapping[str, Any], wanted: str) -> list[tuple[str, Any]]:
    """The figures that a bar is about: its own, or F1 of every label."""
    if wanted != F1:
        return [(wanted, own[wanted])]
    return [(name, value) for name, value in own.items() if name.startswith(ONE_F1)]


def _said(metric: str) -> str:
    is_f1 = metric.startswith(ONE_F1)
    return f"F1 of {metric.removeprefix(ONE_F1)!r}" if is_f1 else metric


def _number(value: float | None) -> str:
    return "(not defined: a label has no rows)" if value is None else f"{value:.4f}"
