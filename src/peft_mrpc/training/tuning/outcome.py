"""The files that a search writes: the best trial as a recipe, a table of all trials, plots."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib import pyplot as plt
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as optuna_plots

from peft_mrpc.errors import UserError
from peft_mrpc.evaluation.plot_style import save_figure
from peft_mrpc.runs.staging import staged_file
from peft_mrpc.serialization import dump_yaml

BEST_FILE, TRIALS_FILE = "best.yaml", "trials.csv"
PLOTS: Mapping[str, Callable[..., Any]] = {
    "history.png": optuna_plots.plot_optimization_history,
    "slice.png": optuna_plots.plot_slice,
    "importances.png": optuna_plots.plot_param_importances,
}
# An interrupted trial stays in the state RUNNING, and does not count.
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
FAILURE = "failure"  # user attribute of a failed trial: the error


@dataclass(frozen=True)
class SearchOutcome:
    """The result of a search.

    Attributes:
        recipe_file: Recipe for `train` with the best values.
        objective: Name of the objective.
        best_trial: The best trial.
        num_trials: Number of finished trials by state: `complete`, `pruned`, `fail`.
    """

    recipe_file: Path
    objective: str
    best_trial: FrozenTrial
    num_trials: Mapping[str, int]

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.num_trials.items())
        return (
            f"{sum(self.num_trials.values())} trials: {counts}\n"
            f"best: trial {self.best_trial.number}, {self.objective} {self.best_trial.value:.4f}\n"
            f"  {describe_values(self.best_trial.params)}\n"
            f"Recipe: {self.recipe_file} (peft-mrpc train --config {self.recipe_file})"
        )


def write_outcome(
    study: optuna.Study,
    directory: Path,
    objective: str,
    recipe: Mapping[str, Any],
    evaluated_on: str,
) -> SearchOutcome:
    """Write the table of trials, the recipe of the best one, and the plots.

    Args:
        study: The trials.
        directory: Where the files are written.
        objective: Name of the objective.
        recipe: The options that all trials have in common.
        evaluated_on: The examples that the objective was computed on, as text.
    Raises:
        UserError: If no trial is complete, or a file cannot be written.
    """
    trials = finished_trials(study)
    attributes = ("number", "state", "value", "duration", "params", "user_attrs")
    table = study.trials_dataframe(attributes)
    table = table[table["number"].isin([trial.number for trial in trials])]
    table["duration"] = table["duration"].dt.total_seconds()
    table.columns = [name.removeprefix("params_").removeprefix("user_attrs_") for name in table]
    table = table.rename(columns={"number": "trial", "value": objective, "duration": "seconds"})
    with staged_file(directory / TRIALS_FILE) as path:
        table.to_csv(path, index=False)
    counts = Counter(trial.state.name.lower() for trial in trials)
    if not counts["complete"]:
        failures = [trial.user_attrs[FAILURE] for trial in trials if FAILURE in trial.user_attrs]
        first = f" The first failed: {failures[0]}" if failures else ""
        raise UserError(f"tune: none of {len(trials)} trials is complete.{first}")
    outcome = SearchOutcome(directory / BEST_FILE, objective, study.best_trial, counts)
    with staged_file(outcome.recipe_file) as path:
        best = outcome.best_trial
        head = f"# Trial {best.number} of a search: {objective} {best.value:.4f} on {evaluated_on}."
        path.write_text(f"{head}\n{dump_yaml({**recipe, **best.params})}", encoding="utf-8")
    _write_plots(study, directory, objective)
    return outcome


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return all trials but the running and the interrupted ones."""
    return study.get_trials(deepcopy=False, states=FINISHED)


def describe_values(values: Mapping[str, Any]) -> str:
    """Return the values of a trial in one line."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


def _write_plots(study: optuna.Study, directory: Path, objective: str) -> None:
    # Optuna warns that its plots are experimental, and sets a style for the whole process.
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, plot in PLOTS.items():
            # The importances of few or equal trials cannot be computed, or have no bars to draw.
            failures = (ValueError, RuntimeError, ZeroDivisionError)
            with suppress(*failures), staged_file(directory / name) as path:
                figure = np.ravel(plot(study, target_name=objective))[0].figure
                figure.set_layout_engine("constrained")
                save_figure(figure, path)
                plt.close(figure)
