"""Trials of a search, one after another, through the Trainer's own hyperparameter search."""

import contextlib
import fcntl
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from peft_mrpc.errors import UserError, one_line
from peft_mrpc.serialization import read_json, write_json
from peft_mrpc.training.tuning.search_space import Parameter

SEARCH_FILE = "search.json"
# What a trial is judged by, on the held-out pairs.
OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "macro_f1": "maximize",
    "roc_auc": "maximize",
    "loss": "minimize",
}
# What `train` calls them when it evaluates on the held-out pairs.
WATCHED = {name: f"eval_{name.removeprefix('macro_')}" for name in OBJECTIVES}
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    # Stops a trial that is worse than half of the others were after as many steps.
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5),
    "none": optuna.pruners.NopPruner,
}
# Attributes of the Trainer that belong to the search: all others are the trial's own.
OF_THE_SEARCH = {
    *("args", "model_init", "is_in_train", "_memory_tracker", "objective"),
    *("hp_search_backend", "hp_space", "hp_name", "compute_objective"),
}


@dataclass(frozen=True)
class Plan:
    """A search that can be gone on with.

    Attributes:
        name: Of the study: the same for the same command.
        space: What varies.
        objective: One of `OBJECTIVES`.
        num_trials: How many there shall be in all, by all workers and all reruns.
        pruner: One of `PRUNERS`.
        seed: Fixes what is tried, given the trials before.
        storage: Address of the database.
        folder: Where the outcome goes.
        fixed: What every trial has in common, for the record.
    """

    name: str
    space: list[Parameter]
    objective: str
    num_trials: int
    pruner: str
    seed: int
    storage: str
    folder: Path
    fixed: Mapping[str, Any]


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Connect to the database of trials.

    Raises:
        UserError: If the address is none, its driver is missing, or nothing answers.
    """
    # Workers wait for each other's writes.
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except Exception as error:  # SQLAlchemy's and the drivers' errors have no common base
        raise UserError(
            f"--storage: got {without_login(url)!r}, which cannot be opened: "
            f"{one_line(error)[:200]}. Expected an address such as sqlite:///trials.db or "
            "postgresql://host/name, whose driver is installed."
        ) from error


def without_login(url: str) -> str:
    """An address to show: without the user and password in it."""
    return re.sub(r"//[^/]*@", "//", url)


def open_study(plan: Plan) -> optuna.Study:
    """The study of a plan, made if it is new; trials of workers that died are given up."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # we say what happens
    study = optuna.create_study(
        storage=open_storage(plan.storage),
        study_name=plan.name,
        direction=OBJECTIVES[plan.objective],
        load_if_exists=True,
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, process = trial.user_attrs.get("worker", (None, None))
        if host == socket.gethostname() and not _is_alive(process):
            study.set_user_attr(f"interrupted {trial.number}", True)
            study.tell(trial.number, state=TrialState.FAIL)
    return study


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def counted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All trials but those that were interrupted: a failed one counts, it would fail again."""
    interrupted = {key for key in study.user_attrs if key.startswith("interrupted ")}
    return [t for t in study.get_trials() if f"interrupted {t.number}" not in interrupted]


def begin_search(plan: Plan) -> None:
    """Make or find the study, and write down what is searched.

    Raises:
        UserError: If the directory holds a search of another command.
    """
    record = plan.folder / SEARCH_FILE
    if record.is_file() and (theirs := read_json(record)).get("study") != plan.name:
        differing = [key for key, value in plan.fixed.items() if theirs["fixed"].get(key) != value]
        raise UserError(
            f"--output_dir: got {str(plan.folder)!r}, which holds a search with another "
            f"{', '.join(differing[:5]) or 'command'}; name another directory, or give what it had."
        )
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        known = len(counted_trials(open_study(plan)))
    except UserError:
        with contextlib.suppress(OSError):
            plan.folder.rmdir()  # unless something is in it
        raise
    fixed = json.loads(json.dumps(dict(plan.fixed), default=str))
    write_json(record, {"study": plan.name, "fixed": fixed})
    sys.stderr.write(
        f"search: {'; '.join(map(str, plan.space))}\n"
        f"{known} of {plan.num_trials} trials are there; {without_login(plan.storage)}\n"
    )


def run_trials(
    plan: Plan, trainer: Trainer, build: Callable[[Mapping[str, Any], int], Trainer]
) -> None:
    """Try values until the study has as many trials as it shall have.

    Args:
        plan: The search.
        trainer: Carries the search from trial to trial.
        build: The Trainer of one trial, from its values and the number of trials left with it;
            any flag may vary, and so each trial has a model, features and callbacks of its own.
    """
    study = open_study(plan)
    # Held from counting the trials until the new one is counted: of two workers, one is the last.
    turn = os.open(plan.folder, os.O_RDONLY)
    begun: list[tuple[int, float]] = []

    def model_init(trial: optuna.Trial) -> Any:
        fcntl.flock(turn, fcntl.LOCK_UN)
        begun[:] = [(trial.number, time.perf_counter())]
        trial.set_user_attr("worker", [socket.gethostname(), os.getpid()])
        # By its number: a search that is gone on with draws as if it had never stopped, and no
        # two workers draw the same.
        trial.study.sampler = optuna.samplers.TPESampler(seed=plan.seed + trial.number)
        values = {parameter.name: parameter.suggest(trial) for parameter in plan.space}
        _say(f"trial {trial.number}: {describe_values(values)}")
        fresh = build(values, plan.num_trials - len(counted_trials(trial.study)) + 1)
        vars(trainer.args).update(vars(fresh.args))
        vars(trainer).update({k: v for k, v in vars(fresh).items() if k not in OF_THE_SEARCH})
        trainer.add_callback(SayEpoch(trial.number, plan.objective))
        return fresh.model

    trainer.model_init = model_init
    try:
        while True:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if len(counted_trials(study)) >= plan.num_trials:
                return
            begun.clear()
            _run_one(plan, trainer, study, begun)
    finally:
        os.close(turn)


class SayEpoch(TrainerCallback):
    """Say where a trial stands after each epoch but the last, whose figure is the trial's."""

    def __init__(self, number: int, objective: str) -> None:
        self.number = number
        self.objective = objective

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        epoch, figure = state.epoch or 0, (metrics or {}).get(WATCHED[self.objective])
        if figure is not None and epoch < state.num_train_epochs:
            _say(
                f"trial {self.number}: epoch {epoch:g} of {state.num_train_epochs}, "
                f"{self.objective} {figure:.4f}"
            )


def _run_one(
    plan: Plan, trainer: Trainer, study: optuna.Study, begun: list[tuple[int, float]]
) -> None:
    """One trial; what it dies of is recorded, and the search goes on."""
    try:
        trainer.hyperparameter_search(
            backend="optuna",
            n_trials=1,
            direction=OBJECTIVES[plan.objective],
            compute_objective=lambda metrics: metrics[WATCHED[plan.objective]],
            hp_space=lambda trial: {},  # model_init has set the values already
            study_name=plan.name,
            storage=study._storage,
            load_if_exists=True,
            pruner=PRUNERS[plan.pruner](),
        )
    except KeyboardInterrupt:
        if begun:
            study.set_user_attr(f"interrupted {begun[0][0]}", True)
        raise
    except Exception as error:
        # A pruned first trial ends here too: the Trainer asks for the best and there is none.
        if not begun:
            raise
        if study.get_trials(deepcopy=False)[begun[0][0]].state == TrialState.FAIL:
            reason = one_line(error) if isinstance(error, UserError) else repr(error)
            study.set_user_attr(f"failure {begun[0][0]}", reason[:500])
    _say(_outcome_line(plan, study, *begun[0]))


def _outcome_line(plan: Plan, study: optuna.Study, number: int, started: float) -> str:
    trial = study.get_trials(deepcopy=False)[number]
    took = f"{time.perf_counter() - started:,.0f} s"
    done = sum(t.state.is_finished() for t in counted_trials(study))
    place = f"trial {number} ({done} of {plan.num_trials} done)"
    if trial.state == TrialState.FAIL:
        return f"{place}: failed: {failure_of(study, trial)}"
    if trial.state == TrialState.PRUNED:
        last = trial.intermediate_values[max(trial.intermediate_values)]
        epochs = len(trial.intermediate_values)
        return f"{place}: pruned after epoch {epochs}, {plan.objective} {last:.4f}, {took}"
    best = study.best_trial
    return (
        f"{place}: {plan.objective} {trial.value:.4f}, {took}; "
        f"best {best.value:.4f} (trial {best.number})"
    )


def failure_of(study: optuna.Study, trial: FrozenTrial) -> str:
    """Why a trial failed; a score that is no number raises nothing and leaves no reason."""
    return str(study.user_attrs.get(f"failure {trial.number}", "the training diverged"))


def describe_values(values: Mapping[str, Any]) -> str:
    """Values of a trial on one line."""
    texts = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in values.values())
    return ", ".join(f"{name} {text}" for name, text in zip(values, texts, strict=True))


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
