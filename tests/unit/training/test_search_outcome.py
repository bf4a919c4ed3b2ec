"""The files of a search, from trials that were never trained."""

import csv
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from peft_mrpc.errors import UserError
from peft_mrpc.serialization import load_yaml
from peft_mrpc.training.tuning.outcome import (
    FAILURE,
    SearchOutcome,
    finished_trials,
    write_outcome,
)

SPACE = {
    "r": CategoricalDistribution([4, 8]),
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
}


def build_study(*trials: optuna.trial.FrozenTrial) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        study.add_trial(trial)
    return study


def trial(r: int, rate: float, values: list[float], state: TrialState = TrialState.COMPLETE) -> Any:
    return create_trial(
        state=state,
        value=values[-1] if state == TrialState.COMPLETE else None,
        params={"r": r, "learning_rate": rate},
        distributions=dict(SPACE),
        intermediate_values=dict(enumerate(values, 1)),
        user_attrs={FAILURE: "no memory"} if state == TrialState.FAIL else {},
    )


def interrupted_trial() -> Any:
    return create_trial(
        state=TrialState.FAIL, params={"r": 4, "learning_rate": 1e-3}, distributions=dict(SPACE)
    )


def write(study: optuna.Study, directory: Path) -> SearchOutcome:
    recipe = {"method": "lora", "learning_rate": 5.0, "model": "builtin:minilm"}
    return write_outcome(
        study, SPACE, directory, "accuracy", recipe, "5 validation examples", "lora"
    )


def test_a_search_writes_a_recipe_a_table_and_a_plot(tmp_path: Path) -> None:
    study = build_study(
        trial(4, 1e-3, [0.5, 0.7]),
        trial(8, 2e-3, [0.6, 0.75]),
        trial(8, 9e-3, [0.4], TrialState.PRUNED),
        trial(4, 3e-3, [], TrialState.FAIL),
        interrupted_trial(),
    )
    outcome = write(study, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("best.yaml", "trials.csv", "search.png", "search.svg")
    }
    text = outcome.recipe_file.read_text()
    assert text.startswith("# The best trial of a search: trial 1, accuracy 0.7500 on 5 validation")
    assert load_yaml(text) == {
        **{"method": "lora", "learning_rate": 2e-3, "model": "builtin:minilm", "r": 8}
    }
    with outcome.trials_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["state"], row["accuracy"]) for row in rows] == [
        *(("0", "complete", "0.7"), ("1", "complete", "0.75")),
        *(("2", "pruned", "0.4"), ("3", "failed", "")),  # and not the interrupted one
    ]
    assert rows[3]["failure"] == "no memory" and rows[2]["r"] == "8"
    assert outcome.summary().splitlines()[0] == "4 trials: 2 complete, 1 pruned, 1 failed"
    assert outcome.best_values == {"r": 8, "learning_rate": 2e-3}
    assert outcome.plot_file.stat().st_size > 20_000


def test_interrupted_trials_do_not_count(tmp_path: Path) -> None:
    study = build_study(interrupted_trial(), trial(4, 1e-3, [], TrialState.FAIL))
    assert [t.number for t in finished_trials(study)] == [1]
    with pytest.raises(UserError, match="none of 1 trials is complete. The first failed: no mem"):
        write(study, tmp_path)


def test_importances_are_shown_for_enough_trials(tmp_path: Path) -> None:
    trials = [trial(4 + 4 * (i % 2), 1e-3 * (i + 1), [0.5 + 0.1 * (i % 2)]) for i in range(8)]
    outcome = write(build_study(*trials), tmp_path)
    svg = outcome.plot_file.with_suffix(".svg").read_text()
    assert "share of the option in the variance" in svg
