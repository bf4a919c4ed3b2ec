"""The files of a search, from trials that were never trained."""

import csv
from pathlib import Path

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


def trial(
    r: int, rate: float, value: float | None, state: TrialState = TrialState.COMPLETE
) -> optuna.trial.FrozenTrial:
    return create_trial(
        state=state,
        value=value,
        params={"r": r, "learning_rate": rate},
        distributions=dict(SPACE),
        user_attrs={FAILURE: "no memory"} if state == TrialState.FAIL else {},
    )


def write(study: optuna.Study, directory: Path) -> SearchOutcome:
    recipe = {"method": "lora", "learning_rate": 5.0, "model": "builtin:minilm"}
    return write_outcome(study, directory, "accuracy", recipe, "5 validation examples")


def test_a_search_writes_a_recipe_a_table_and_plots(tmp_path: Path) -> None:
    study = build_study(
        trial(4, 1e-3, 0.7),
        trial(8, 2e-3, 0.75),
        trial(8, 9e-3, 0.4, TrialState.PRUNED),
        trial(4, 3e-3, None, TrialState.FAIL),
        trial(4, 1e-3, None, TrialState.RUNNING),
    )
    outcome = write(study, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("best.yaml", "trials.csv", "history.png", "slice.png", "importances.png")
    }
    text = outcome.recipe_file.read_text()
    assert text.startswith("# Trial 1 of a search: accuracy 0.7500 on 5 validation examples.\n")
    assert load_yaml(text) == {
        **{"method": "lora", "learning_rate": 2e-3, "model": "builtin:minilm", "r": 8}
    }
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["state"], row["accuracy"]) for row in rows] == [
        *(("0", "COMPLETE", "0.7"), ("1", "COMPLETE", "0.75")),
        *(("2", "PRUNED", "0.4"), ("3", "FAIL", "")),  # and not the interrupted one
    ]
    assert rows[3]["failure"] == "no memory" and rows[2]["r"] == "8"
    assert str(outcome).splitlines()[0] == "4 trials: 2 complete, 1 pruned, 1 fail"
    assert outcome.best_trial.params == {"r": 8, "learning_rate": 2e-3}


def test_interrupted_trials_do_not_count(tmp_path: Path) -> None:
    running = trial(4, 1e-3, None, TrialState.RUNNING)
    study = build_study(running, trial(4, 1e-3, None, TrialState.FAIL))
    assert [t.number for t in finished_trials(study)] == [1]
    with pytest.raises(UserError, match="none of 1 trials is complete. The first failed: no mem"):
        write(study, tmp_path)


def test_one_trial_is_enough_for_the_plots(tmp_path: Path) -> None:
    write(build_study(trial(4, 1e-3, 0.5)), tmp_path)
    assert (tmp_path / "history.png").exists() and (tmp_path / "slice.png").exists()
