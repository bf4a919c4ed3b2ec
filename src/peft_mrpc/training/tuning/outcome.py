"""What a search leaves: the best trial as a recipe, a table of all, a picture."""

import contextlib
import csv
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from peft_mrpc.errors import UserError, one_line
from peft_mrpc.evaluation.plot_style import DPI
from peft_mrpc.serialization import dump_yaml
from peft_mrpc.training.tuning.plots import plot_search
from peft_mrpc.training.tuning.study import (
    OBJECTIVES,
    Plan,
    counted_trials,
    describe_values,
    failure_of,
)

BEST_FILE, TRIALS_FILE, PLOT_FILE = "best.yaml", "trials.csv", "search.png"
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


def write_outcome(plan: Plan, study: optuna.Study, recipe: Mapping[str, Any], where: str) -> str:
    """Write `best.yaml`, `trials.csv` and the pictures.

    Args:
        plan: The search.
        study: Its trials.
        recipe: What every trial had in common, as a recipe of `train`.
        where: What the objective was measured on.
    Returns:
        What the terminal shows.
    Raises:
        UserError: If no trial was finished.
    """
    trials = counted_trials(study)
    rows = [_row(study, trial) for trial in trials if trial.state in STATES]
    _write_trials(plan, rows)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        reasons = [failure_of(study, t) for t in trials if t.state == TrialState.FAIL]
        said = f" The first failed: {reasons[0]}" if reasons else ""
        raise UserError(f"tune: none of {len(rows)} trials came to its end.{said}")
    best = study.best_trial
    found = f"trial {best.number}, {plan.objective} {best.value:.4f} on {where}"
    _write_best(plan, {**recipe, **best.params}, found)
    _write_plots(plan, study, rows)
    counts = Counter(row["state"] for row in rows)
    numbers = ", ".join(f"{counts[state]} {state}" for state in STATES.values() if counts[state])
    return (
        f"{len(rows)} trials: {numbers}\nbest: {found}\n  {describe_values(best.params)}\n"
        f"Recipe: {plan.folder / BEST_FILE} (peft-mrpc train --config {plan.folder / BEST_FILE})"
    )


def _row(study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    seconds = trial.duration.total_seconds() if trial.duration else None
    reports = trial.intermediate_values
    failed = trial.state == TrialState.FAIL
    return {
        "number": trial.number,
        "state": STATES[trial.state],
        "value": reports[max(reports)] if reports and not failed else trial.value,
        "seconds": seconds,
        "params": dict(trial.params),
        "failure": failure_of(study, trial) if failed else "",
    }


def _write_trials(plan: Plan, rows: list[dict[str, Any]]) -> None:
    names = [parameter.name for parameter in plan.space]
    with _replacing(plan.folder / TRIALS_FILE) as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", plan.objective, "seconds", *names, "failure"])
        for row in rows:
            values = [row["params"].get(name, "") for name in names]
            numbers = ["" if row[key] is None else row[key] for key in ("value", "seconds")]
            writer.writerow([row["number"], row["state"], *numbers, *values, row["failure"]])


def _write_best(plan: Plan, recipe: Mapping[str, Any], found: str) -> None:
    head = f"# The best of a search: {found}.\n"
    with _replacing(plan.folder / BEST_FILE) as path:
        path.write_text(head + dump_yaml(dict(recipe)), encoding="utf-8")


def _write_plots(plan: Plan, study: optuna.Study, rows: list[dict[str, Any]]) -> None:
    figure = plot_search(
        [row for row in rows if row["state"] != "running"],
        plan.objective,
        OBJECTIVES[plan.objective] == "maximize",
        [parameter.name for parameter in plan.space if parameter.log],
        {parameter.name: parameter.choices for parameter in plan.space if parameter.choices},
        _importances(study),
        f"{plan.fixed['method']} · {Path(str(plan.fixed['model'])).name}, {len(rows)} trials",
    )
    for suffix in (".png", ".svg"):
        with _replacing((plan.folder / PLOT_FILE).with_suffix(suffix)) as path:
            figure.savefig(path, dpi=DPI, format=suffix[1:])


def _importances(study: optuna.Study) -> dict[str, float]:
    """Each parameter's share in the objective's variance; nothing where that is only noise."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 8 or len({trial.value for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with warnings.catch_warnings(), contextlib.suppress(ValueError, RuntimeError):
        warnings.simplefilter("ignore")
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {}


@contextlib.contextmanager
def _replacing(path: Path) -> Any:
    """A file beside its place that takes it whole: other workers write the same one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {one_line(error)}") from error
    finally:
        beside.unlink(missing_ok=True)
