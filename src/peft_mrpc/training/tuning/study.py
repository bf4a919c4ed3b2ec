"""Search for a method's options with Optuna: every trial is a training with other options."""

import gc
import json
import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import TrialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from peft_mrpc import __version__
from peft_mrpc.config import DataConfig, TuneConfig, default_output_dir, record_key
from peft_mrpc.data.examples import DataSplits
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import TrainingDiverged, UserError, choice_faults, one_line, raise_faults
from peft_mrpc.formatting import mask_credentials
from peft_mrpc.runs.staging import DirectoryKind, check_output_dir
from peft_mrpc.runs.writer import describe_data
from peft_mrpc.serialization import read_json, user_path, write_json
from peft_mrpc.training.activation_cache.store import ActivationCache
from peft_mrpc.training.build import (
    build_classifier,
    build_empty_model,
    build_trainer,
)
from peft_mrpc.training.callbacks import package_log_level
from peft_mrpc.training.job import ResolvedJob, TrainJob
from peft_mrpc.training.model_selection import SELECTION
from peft_mrpc.training.resolve import BaseModel, resolve
from peft_mrpc.training.run import JobInputs, load_inputs
from peft_mrpc.training.tuning.outcome import (
    BEST_FILE,
    FAILURE,
    PLOTS,
    TRIALS_FILE,
    SearchOutcome,
    describe_values,
    finished_trials,
    write_outcome,
)
from peft_mrpc.training.tuning.search_space import (
    SearchSpace,
    describe_space,
    distribution_ends,
    load_search_space,
    suggest_values,
)
from peft_mrpc.training.validation import prepare_data, validate

logger = logging.getLogger(__name__)

STUDY_FILE, SEARCH_FILE = "study.db", "search.json"
SEARCH_CONTENTS = frozenset(
    {STUDY_FILE, f"{STUDY_FILE}-journal", SEARCH_FILE, BEST_FILE, TRIALS_FILE, *PLOTS}
)
# A search that was interrupted at its start has no file that identifies it.
SEARCH_DIRECTORY = DirectoryKind("search", SEARCH_CONTENTS, read=lambda folder: None)
# Objectives on the validation split: the Trainer's name of the metric, and the direction.
OBJECTIVES: Mapping[str, tuple[str, Literal["maximize", "minimize"]]] = {
    "accuracy": ("eval_accuracy", "maximize"),
    "macro_f1": ("eval_f1", "maximize"),
    "roc_auc": ("eval_roc_auc", "maximize"),
    "loss": ("eval_loss", "minimize"),
}
# Options that change the loss itself.
LOSS_OPTIONS = ("label_smoothing_factor", "class_weights")
# A trial is pruned if it is worse than the median of the others after the same epoch.
PRUNERS = {"median": optuna.pruners.MedianPruner, "none": optuna.pruners.NopPruner}
# Options of `train` that a search does not have, by the reason.
UNSUPPORTED_OPTIONS = {
    "a trial is evaluated after each epoch and not saved": (
        *("eval_strategy", "eval_steps", "save_strategy", "save_steps", "push_to_hub"),
        *("load_best_model_at_end", "early_stopping_patience"),
    ),
    "a search has one seed; train the best recipe with seeds": ("seeds",),
    "the same command again continues a search": ("overwrite", "resume_from_checkpoint"),
}
# Options that all trials have in common, beside those and those of the data.
FIXED_OPTIONS = {
    *("method", "model", "base_model_id", "config", "seed", "data_seed", "selection_fraction"),
    *("output_dir", "dry_run", "hub_model_id", "hub_private_repo", "report_to"),
}


@dataclass(frozen=True)
class Search:
    """A search that was validated and can be run.

    Attributes:
        job: What all trials have in common.
        config: Number of trials, objective, pruner.
        resolved: The job without a search, as `train` would run it.
        base: The base model without its weights.
        space: The options that vary.
        data: The splits `train` and `selection` (the validation split carved from it).
        recipe: The options that all trials have in common, as a recipe of `train`.
        storage: URL of the database with the trials.
    """

    job: TrainJob
    config: TuneConfig
    resolved: ResolvedJob
    base: BaseModel
    space: SearchSpace
    data: DataSplits
    recipe: Mapping[str, Any]
    storage: str

    @property
    def directory(self) -> Path:
        """The directory of the outcome."""
        return self.resolved.output_dir

    @property
    def record(self) -> dict[str, Any]:
        """The options, data and search space, which identify the search on every machine."""
        record = {
            **self.recipe,
            "data": describe_data(self.data, list(self.data.splits)),
            "search_space": describe_space(self.space),
            "objective": self.config.objective,
            "version": __version__,
        }
        return dict(json.loads(json.dumps(record, default=str)))

    @property
    def study_name(self) -> str:
        """The name of the study in its storage."""
        return f"{self.job.config.method}-{record_key(self.record)}"

    def describe(self) -> str:
        """Return the search as text, for a dry run."""
        num_train, num_validation = (len(self.data.splits[name]) for name in ("train", SELECTION))
        return (
            f"data: {self.data.name}, {num_train:,} examples for training, {num_validation:,} for "
            f"{self.config.objective}\n"
            f"search: {'; '.join(describe_space(self.space))}\n"
            f"trials: {self.config.num_trials}"
        )


def run_search(job: TrainJob, config: TuneConfig) -> SearchOutcome:
    """Search for a method's options, and write the outcome.

    A search continues where an earlier one with the same job stopped. Several processes may share
    the trials through one storage.

    Args:
        job: The training. Options with a value in it do not vary in the packaged search space.
        config: Search space, number of trials, objective, pruner and storage.
    Returns:
        The best trial and its recipe.
    Raises:
        UserError: Before the first trial for all errors in the job and the search space; at the
            end if no trial is complete.
    """
    search = prepare_search(job, config)
    study = begin_search(search)
    try:
        run_trials(search, study)
    except KeyboardInterrupt as error:
        error.add_note(
            f"Finished trials are in {mask_credentials(search.storage)}: the same command "
            "continues."
        )
        raise
    evaluated_on = f"{len(search.data.splits[SELECTION])} examples carved from train"
    return write_outcome(study, search.directory, config.objective, search.recipe, evaluated_on)


def prepare_search(job: TrainJob, config: TuneConfig) -> Search:
    """Validate a search: its options, search space, data, and the ends of every range.

    Raises:
        UserError: With all errors of the first step that has any.
    """
    raise_faults(_option_faults(job, config))
    directory = user_path(
        job.output_dir
        or default_output_dir(job.config.method, job.config.model, job.data, command="tune")
    )
    check_output_dir(directory, True, SEARCH_DIRECTORY)
    inputs = load_inputs(job)
    quiet = {"logging_strategy": "no", "disable_tqdm": True, **job.training_arguments}
    evaluated = {"eval_strategy": "epoch", "save_strategy": "no"}
    trial_job = replace(job, output_dir=directory, training_arguments={**quiet, **evaluated})
    resolved = resolve(trial_job, inputs.base, inputs.data.label_names)
    validate(resolved)
    data = prepare_data(resolved, inputs.data, inputs.reported)
    space = load_search_space(
        config.search_space,
        job.config.method,
        _option_values(resolved),
        job.explicit,
        {
            *FIXED_OPTIONS.union(*UNSUPPORTED_OPTIONS.values()),
            *(item.name for kind in (DataConfig, TuneConfig) for item in fields(kind)),
        },
        resolved.model_config.get_text_config().num_hidden_layers,
    )
    raise_faults(_space_faults(trial_job, config, inputs, space))
    splits = {name: data.splits[name] for name in ("train", SELECTION)}
    return Search(
        job=trial_job,
        config=config,
        resolved=resolved,
        base=inputs.base,
        space=space,
        data=replace(data, splits=splits),
        recipe=common_recipe(job),
        storage=config.storage or f"sqlite:///{(directory / STUDY_FILE).absolute()}",
    )


def common_recipe(job: TrainJob) -> dict[str, Any]:
    """Return the options that all trials have in common, as a recipe of `train`."""
    config = {n: v for n, v in vars(job.config).items() if n in job.explicit | job.removed}
    for name in ("config", "dry_run"):
        config.pop(name, None)
    if job.config.threshold != "auto":
        config.pop("selection_fraction", None)  # of no use in `train` then
    data = vars(job.data) if isinstance(job.data, DataConfig) else {}
    defaults = vars(DataConfig())
    return {
        "method": job.config.method,
        "model": job.config.model,
        **config,
        **job.training_arguments,
        **job.method_options,
        **{name: value for name, value in data.items() if value != defaults[name]},
    }


def begin_search(search: Search) -> optuna.Study:
    """Create or load the study, and write what identifies the search.

    Raises:
        UserError: If the directory contains another search, or the storage cannot be opened.
    """
    path = search.directory / SEARCH_FILE
    if path.is_file() and (previous := read_json(path)) != search.record:
        differences = [k for k, value in search.record.items() if previous.get(k) != value]
        raise UserError(
            f"output_dir: got {str(search.directory)!r}, which contains a search with another "
            f"{', '.join(differences[:5]) or 'command'}; choose another directory, or repeat the "
            "command of that search."
        )
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # this module logs the trials
    try:
        if not search.config.storage:
            search.directory.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=search.storage,
            study_name=search.study_name,
            direction=OBJECTIVES[search.config.objective][1],
            pruner=PRUNERS[search.config.pruner](),
            load_if_exists=True,
        )
    except Exception as error:  # SQLAlchemy and the drivers have no common error type
        raise UserError(
            f"storage: got {mask_credentials(search.storage)!r}, which cannot be opened: "
            f"{one_line(error)[:200]}. Expected a URL such as sqlite:///trials.db or "
            "postgresql://host/name, with its driver installed."
        ) from error
    search.directory.mkdir(parents=True, exist_ok=True)
    write_json(path, search.record)
    logger.info(
        "search: %s\n%d of %d trials are finished; %s",
        "; ".join(describe_space(search.space)),
        len(finished_trials(study)),
        search.config.num_trials,
        mask_credentials(search.storage),
    )
    return study


def run_trials(search: Search, study: optuna.Study) -> None:
    """Run trials until the study has the requested number of finished ones."""
    objective, num_trials = search.config.objective, search.config.num_trials
    cache = ActivationCache()
    logger.setLevel(logger.getEffectiveLevel())  # the trials are logged, not their trainings
    with package_log_level(logging.WARNING):
        while (num_finished := len(finished_trials(study))) < num_trials:
            trial = study.ask()
            # Seeded by the trial's number: a search that was interrupted samples the same values as
            # one that was not, and processes sample different ones.
            study.sampler = optuna.samplers.TPESampler(seed=search.job.seed + trial.number)
            values = suggest_values(trial, search.space)
            position = f"trial {trial.number} ({num_finished} of {num_trials} finished)"
            logger.info("%s: %s", position, describe_values(values))
            gc.collect()  # the model of the previous trial
            try:
                value = train_trial(search, trial, values, cache)
            except optuna.TrialPruned as pruned:
                study.tell(trial, state=TrialState.PRUNED)
                result = str(pruned)
            except Exception as error:
                reason = one_line(error) if isinstance(error, UserError) else repr(error)
                trial.set_user_attr(FAILURE, reason[:500])
                study.tell(trial, state=TrialState.FAIL)
                result = f"failed: {reason}"
            else:
                study.tell(trial, value)
                result = f"{objective} {value:.4f}; best {study.best_value:.4f}"
            logger.info("trial %d: %s", trial.number, result)


def train_trial(
    search: Search, trial: optuna.Trial, values: Mapping[str, Any], cache: ActivationCache
) -> float:
    """Train with the options of a trial; return the objective after the last epoch.

    Raises:
        TrialPruned: If the trial is worse than the others after the same epoch.
        TrainingDiverged: If the objective is not finite.
    """
    labels = search.data.label_names
    resolved = resolve(search.job.with_options(**values), search.base, labels)
    validate(resolved)
    set_seed(resolved.training_args.seed)
    classifier = build_classifier(resolved, search.base.tokenizer, labels)
    objective = ObjectiveCallback(trial, OBJECTIVES[search.config.objective][0])
    with tempfile.TemporaryDirectory() as directory:
        trainer, _ = build_trainer(
            resolved,
            search.data,
            classifier,
            directory,
            activation_cache=cache,
            callbacks=[objective],
        )
        trainer.train()
    return objective.value


class ObjectiveCallback(TrainerCallback):
    """Report the objective after each epoch, and end trials that are pruned or diverged.

    Attributes:
        value: The objective after the latest epoch.
    """

    def __init__(self, trial: optuna.Trial, metric: str) -> None:
        self.trial = trial
        self.metric = metric
        self.value = math.nan

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.value = kwargs["metrics"][self.metric]
        if not math.isfinite(self.value):
            raise TrainingDiverged
        epoch = math.ceil((state.epoch or 0) - 1e-6)
        self.trial.report(self.value, step=epoch)
        is_last = epoch >= state.num_train_epochs
        if not is_last and self.trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {epoch}")


def _option_faults(job: TrainJob, config: TuneConfig) -> list[str]:
    values = {**vars(job.config), **job.training_arguments}
    faults = [
        f"{name}: {reason}; remove it."
        for reason, names in UNSUPPORTED_OPTIONS.items()
        for name in names
        if name in job.explicit and values[name] not in (False, "no")
    ]
    faults += choice_faults(config, {"objective": list(OBJECTIVES), "pruner": list(PRUNERS)})
    if config.num_trials < 1:
        faults.append(f"num_trials: got {config.num_trials}; expected at least 1.")
    if process_state().num_processes > 1:
        faults.append(
            "tune: got several processes of one job; expected one. Start the same command several "
            "times with one storage to run trials in parallel."
        )
    return faults


def _option_values(resolved: ResolvedJob) -> dict[str, Any]:
    """Return the value of each option of the config, the Trainer and the method."""
    owners = (resolved.method_options, resolved.training_args, resolved.config)
    values = {name: value for owner in owners for name, value in vars(owner).items()}
    return {**values, **resolved.explicit_options}


def _space_faults(
    job: TrainJob, config: TuneConfig, inputs: JobInputs, space: SearchSpace
) -> list[str]:
    """Validate the job with the ends of every range and with every choice, without weights."""
    faults: list[str] = []
    for name, distribution in space.items():
        where = f"{name} in the search space"
        if config.objective == "loss" and name in LOSS_OPTIONS:
            faults.append(f"{where}: changes the loss, which is the objective; remove one of them.")
        for end in distribution_ends(distribution):
            try:
                trial_job = job.with_options(**{name: end})
                resolved = resolve(trial_job, inputs.base, inputs.data.label_names)
                validate(resolved)
                prepare_data(resolved, inputs.data)
                build_empty_model(resolved)
            except UserError as error:
                faults += [f"{where}: {fault}" for fault in error.faults]
    return list(dict.fromkeys(faults))
