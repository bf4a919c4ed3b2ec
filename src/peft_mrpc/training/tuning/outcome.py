"""The files that a search writes: the best trial as a recipe, a table of all trials, a plot."""

import csv
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from peft_mrpc.errors import UserError
from peft_mrpc.evaluation.plot_style import save_figure
from peft_mrpc.runs.staging import staged_file
from peft_mrpc.serialization import dump_yaml
from peft_mrpc.training.tuning.plots import plot_search
from peft_mrpc.training.tuning.search_space import SearchSpace

BEST_FILE, TRIALS_FILE, PLOT_NAME = "best.yaml", "trials.csv", "search"
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
# User attribute of a trial with the error that ended it. A failed trial without it was
# interrupted, and does not count.
FAILURE = "failure"
MIN_TRIALS_FOR_IMPORTANCE = 8


@dataclass(frozen=True)
class SearchOutcome:
    """The result of a search.

    Attributes:
        recipe_file: Recipe for `train` with the best values.
        trials_file: CSV file with all trials.
        plot_file: The plot.
        objective: Name of the objective.
        evaluated_on: The examples that the objective was computed on, as text.
        best_trial: Number of the best trial.
        best_value: Its value of the objective.
        best_values: Its values of the options in the search space.
        num_trials: Number of trials by state: `complete`, `pruned`, `failed`.
    """

    recipe_file: Path
    trials_file: Path
    plot_file: Path
    objective: str
    evaluated_on: str
    best_trial: int
    best_value: float
    best_values: Mapping[str, Any]
    num_trials: Mapping[str, int]

    def describe_best(self) -> str:
        """Return the best trial and its value in one line."""
        return (
            f"trial {self.best_trial}, {self.objective} {self.best_value:.4f} on "
            f"{self.evaluated_on}"
        )

    def summary(self) -> str:
        """Return the outcome as text for a terminal."""
        counts = ", ".join(f"{count} {state}" for state, count in self.num_trials.items() if count)
        return (
            f"{sum(self.num_trials.values())} trials: {counts}\n"
            f"best: {self.describe_best()}\n"
            f"  {describe_values(self.best_values)}\n"
            f"Recipe: {self.recipe_file} (peft-mrpc train --config {self.recipe_file})"
        )


def write_outcome(
    study: optuna.Study,
    space: SearchSpace,
    directory: Path,
    objective: str,
    recipe: Mapping[str, Any],
    evaluated_on: str,
    title: str,
) -> SearchOutcome:
    """Write the recipe, the table of trials and the plot.

    Args:
        study: The trials.
        space: The search space.
        directory: Where the files are written.
        objective: Name of the objective.
        recipe: The options that all trials have in common.
        evaluated_on: The examples that the objective was computed on, as text.
        title: Title of the plot.
    Raises:
        UserError: If no trial is complete, or a file cannot be written.
    """
    rows = [_trial_row(trial) for trial in finished_trials(study)]
    _write_trials(directory / TRIALS_FILE, rows, objective, list(space))
    if all(row["state"] != "complete" for row in rows):
        failures = [row["failure"] for row in rows if row["failure"]]
        first = f" The first failed: {failures[0]}" if failures else ""
        raise UserError(f"tune: none of {len(rows)} trials is complete.{first}")
    best = study.best_trial
    counts = Counter(row["state"] for row in rows)
    outcome = SearchOutcome(
        recipe_file=directory / BEST_FILE,
        trials_file=directory / TRIALS_FILE,
        plot_file=directory / f"{PLOT_NAME}.png",
        objective=objective,
        evaluated_on=evaluated_on,
        best_trial=best.number,
        best_value=float(best.value or 0),
        best_values=dict(best.params),
        num_trials={state: counts[state] for state in STATES.values()},
    )
    with staged_file(outcome.recipe_file) as path:
        head = f"# The best trial of a search: {outcome.describe_best()}.\n"
        path.write_text(head + dump_yaml({**recipe, **best.params}), encoding="utf-8")
    figure = plot_search(
        rows,
        objective,
        study.direction == StudyDirection.MAXIMIZE,
        [name for name, distribution in space.items() if getattr(distribution, "log", False)],
        {n: list(d.choices) for n, d in space.items() if isinstance(d, CategoricalDistribution)},
        _importances(study),
        title,
    )
    for suffix in (".png", ".svg"):
        with staged_file(outcome.plot_file.with_suffix(suffix)) as path:
            save_figure(figure, path)
    return outcome


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return all finished trials but the interrupted ones."""
    trials = study.get_trials(deepcopy=False, states=tuple(STATES))
    return [t for t in trials if t.state != TrialState.FAIL or FAILURE in t.user_attrs]


def describe_values(values: Mapping[str, Any]) -> str:
    """Return the values of a trial in one line."""
    texts = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in values.values())
    return ", ".join(f"{name} {text}" for name, text in zip(values, texts, strict=True))


def _trial_row(trial: FrozenTrial) -> dict[str, Any]:
    reports = trial.intermediate_values
    value = reports[max(reports)] if trial.state == TrialState.PRUNED else trial.value
    return {
        "number": trial.number,
        "state": STATES[trial.state],
        "value": value,
        "seconds": trial.duration.total_seconds() if trial.duration else None,
        "values": dict(trial.params),
        "failure": trial.user_attrs.get(FAILURE, ""),
    }


def _write_trials(
    path: Path, rows: Sequence[Mapping[str, Any]], objective: str, names: Sequence[str]
) -> None:
    with staged_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", objective, "seconds", *names, "failure"])
        for row in rows:
            values = [row["values"].get(name) for name in names]
            numbers = [row["number"], row["state"], row["value"], row["seconds"]]
            writer.writerow([*numbers, *values, row["failure"]])


def _importances(study: optuna.Study) -> dict[str, float]:
    """Return each option's share in the variance of the objective; empty for few trials."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = {trial.value for trial in complete}
    if len(complete) < MIN_TRIALS_FOR_IMPORTANCE or len(values) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with warnings.catch_warnings(), suppress(ValueError, RuntimeError):
        warnings.simplefilter("ignore")
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {}
