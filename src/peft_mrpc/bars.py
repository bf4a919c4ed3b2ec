"""Bars that Runs have to meet, for jobs that should fail where they do not."""

from pathlib import Path
from typing import TYPE_CHECKING

from peft_mrpc.errors import UserError, raise_faults, unknown_name

if TYPE_CHECKING:
    from peft_mrpc.compare import CompareConfig
    from peft_mrpc.comparison import Comparison

BAR_METRICS = ("accuracy", "macro_f1", "roc_auc", "mcc")


def parse_bars(config: "CompareConfig") -> dict[str, float]:
    """What `--fail_under` says, checked.

    Raises:
        UserError: For a metric that is none, or a bar that is no share.
    """
    faults, bars = [], {}
    for text in (config.fail_under or "").split(",") if config.fail_under is not None else ():
        name, _, value = text.strip().partition("=")
        try:
            bars[name] = float(value)
        except ValueError:
            faults.append(f"--fail_under: got {text!r}; expected METRIC=NUMBER.")
        if name not in BAR_METRICS:
            faults += unknown_name("--fail_under", name, BAR_METRICS).faults
    if not 0 <= config.no_worse_than < 1:
        faults.append(f"--no_worse_than: got {config.no_worse_than}; expected 0 to 1.")
    if config.no_worse_than and not config.baseline:
        faults.append("--no_worse_than: got no --baseline; expected one of the Runs.")
    raise_faults(faults)
    return bars


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
    raise UserError(f"--baseline: got {config.baseline!r}; expected one of the Runs compared.")


def missed_bars(
    comparison: "Comparison", bars: dict[str, float], baseline: int | None, no_worse_than: float
) -> list[str]:
    """Which Run misses what, one line each."""
    values = [run.metrics[comparison.split] for run in comparison.runs]
    missed = [
        f"{name}: {metric} {own[metric]:.4f} is under {bar:g}"
        for metric, bar in bars.items()
        for name, own in zip(comparison.names, values, strict=True)
        if own[metric] < bar
    ]
    if baseline is not None:
        wanted = values[baseline]["accuracy"] - no_worse_than
        missed += [
            f"{name}: accuracy {own['accuracy']:.4f} is more than {no_worse_than:g} below "
            f"{comparison.names[baseline]}'s {values[baseline]['accuracy']:.4f}"
            for name, own in zip(comparison.names, values, strict=True)
            if own["accuracy"] < wanted - 1e-12
        ]
    return missed
