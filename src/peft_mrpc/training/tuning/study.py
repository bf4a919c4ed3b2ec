"""Search for a method's options with Optuna: every trial is a training with other options."""

import gc
import json
import logging
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import TrialState
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from peft_mrpc.config import (
    DataConfig,
    TrainConfig,
    TuneConfig,
    config_record,
    default_output_dir,
    record_key,
)
from peft_mrpc.data.examples import DataSplits
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import TrainingDiverged, UserError, one_line, raise_faults, unknown_name
from peft_mrpc.options import convert, option_types
from peft_mrpc.runs.staging import DirectoryKind, check_output_dir
from peft_mrpc.runs.writer import describe_data
from peft_mrpc.serialization import read_json, write_json
from peft_mrpc.training.activation_cache.store import ActivationCache
from peft_mrpc.training.build import (
    build_activation_cache,
    build_classifier,
    build_empty_model,
    build_trainer,
    freeze,
)
from peft_mrpc.training.callbacks import LogMetricsCallback
from peft_mrpc.training.job import ResolvedJob, TrainJob
from peft_mrpc.training.model_selection import SELECTION
from peft_mrpc.training.resolve import BaseModel, resolve
from peft_mrpc.training.run import load_inputs
from peft_mrpc.training.tuning.outcome import (
    BEST_FILE,
    FAILURE,
    PLOT_NAME,
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
    {STUDY_FILE, f"{STUDY_FILE}-journal", SEARCH_FILE, BEST_FILE, TRIALS_FILE}
    | {f"{PLOT_NAME}.png", f"{PLOT_NAME}.svg"}
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
LOSS_OPTIONS = ("focal_gamma", "label_smoothing_factor", "class_weights")
# A trial is pruned if it is worse than the median of the others after the same epoch.
PRUNERS = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5),
    "none": optuna.pruners.NopPruner,
}
# TrainingArguments of a trial: one evaluation per epoch, nothing saved.
TRIAL_ARGUMENTS: Mapping[str, Any] = {
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}
# Options of `train` that a search does not have, with the reason.
UNSUPPORTED_OPTIONS = {
    **dict.fromkeys(
        ("eval_strategy", "eval_steps", "save_strategy", "save_steps", "logging_strategy"),
        "a trial is evaluated after each epoch and not saved",
    ),
    "disable_tqdm": "trials have no progress bars",
    "seeds": "a search has one seed; train the best recipe with seeds",
    "push_to_hub": "a search publishes nothing",
    "resume_from_checkpoint": "the same command again continues a search",
    "overwrite": "the same command again continues a search; choose another output_dir",
    "load_best_model_at_end": "the last epoch of a trial counts",
    "early_stopping_patience": "the last epoch of a trial counts",
}
# Options that all trials have in common, beside those of the data.
FIXED_OPTIONS = {
    *("method", "model", "base_model_id", "config", "seed", "data_seed", "selection_fraction"),
    *("output_dir", "dry_run", "hub_model_id", "hub_private_repo", "report_to"),
}
# Options whose defaults depend on the machine.
MACHINE_OPTIONS = {"bf16", "use_cpu", "pad_to_multiple_of"}
# Options that limit each other: a model that is cut at head_layer has fewer layers to unfreeze.
LAYER_OPTIONS = ("head_layer", "num_unfrozen_layers")


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
        record: What identifies the search: the same for the same command and data.
        storage: URL of the database with the trials.
    """

    job: TrainJob
    config: TuneConfig
    resolved: ResolvedJob
    base: BaseModel
    space: SearchSpace
    data: DataSplits
    recipe: Mapping[str, Any]
    record: Mapping[str, Any]
    storage: str

    @property
    def directory(self) -> Path:
        """The directory of the outcome."""
        return self.resolved.output_dir

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
        The best trial, and the paths of the files.
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
            f"Finished trials are in {hide_login(search.storage)}: the same command continues."
        )
        raise
    method, model = search.job.config.method, Path(search.job.config.model).name
    return write_outcome(
        study,
        search.space,
        search.directory,
        config.objective,
        search.recipe,
        f"{len(search.data.splits[SELECTION])} examples carved from train",
        f"{method} · {model}",
    )


def prepare_search(job: TrainJob, config: TuneConfig) -> Search:
    """Validate a search: its options, search space, data, and the ends of every range.

    Raises:
        UserError: With all errors of the first step that has any.
    """
    raise_faults(_validate_options(job, config))
    directory = job.output_dir or default_output_dir(
        job.config.method, job.config.model, job.data, "tune"
    )
    directory = Path(directory).expanduser()
    check_output_dir(directory, True, SEARCH_DIRECTORY)
    job = replace(job, output_dir=directory)
    trial_job = job.with_options(**TRIAL_ARGUMENTS)
    inputs = load_inputs(job)
    base = inputs.base
    resolved = resolve(trial_job, base, inputs.data.label_names)
    validate(resolved)
    data = prepare_data(resolved, inputs.data, inputs.reported)
    space = _load_space(job, resolved, config)
    _validate_ends(trial_job, base, inputs.data, space)
    splits = {name: data.splits[name] for name in ("train", SELECTION)}
    data = DataSplits(data.name, data.label_names, splits)
    return Search(
        job=trial_job,
        config=config,
        resolved=resolved,
        base=base,
        space=space,
        data=data,
        recipe=common_recipe(job),
        record=_search_record(resolved, data, space, config),
        storage=config.storage or f"sqlite:///{(directory / STUDY_FILE).absolute()}",
    )


def _validate_options(job: TrainJob, config: TuneConfig) -> list[str]:
    given = {**vars(job.config), **job.training_arguments}
    errors = [
        f"{name}: {reason}; remove it."
        for name, reason in UNSUPPORTED_OPTIONS.items()
        if name in job.explicit and given[name] not in (False, "no")
    ]
    if config.num_trials < 1:
        errors.append(f"num_trials: got {config.num_trials}; expected at least 1.")
    for name, choices in (("objective", OBJECTIVES), ("pruner", PRUNERS)):
        if getattr(config, name) not in choices:
            errors += unknown_name(name, getattr(config, name), choices).faults
    if process_state().num_processes > 1:
        errors.append(
            "tune: got several processes of one job; expected one. Start the same command several "
            "times with one storage to run trials in parallel."
        )
    return errors


def _load_space(job: TrainJob, resolved: ResolvedJob, config: TuneConfig) -> SearchSpace:
    values = option_values(resolved)
    depth = resolved.model_config.get_text_config().num_hidden_layers
    fixed = {item.name for kind in (DataConfig, TuneConfig) for item in fields(kind)}
    space = load_search_space(
        config.search_space,
        job.config.method,
        values,
        job.explicit,
        fixed | FIXED_OPTIONS | set(UNSUPPORTED_OPTIONS),
        {"num_unfrozen_layers": depth},
    )
    annotations = option_annotations(resolved)
    errors = []
    for name, distribution in space.items():
        for end in distribution_ends(distribution):
            try:
                convert(end, annotations[name])
            except ValueError as error:
                errors.append(f"{name} in the search space: {error}")
    errors += [
        f"{name} in the search space: changes the loss, which is the objective; remove one of them."
        for name in space
        if config.objective == "loss" and name in LOSS_OPTIONS
    ]
    raise_faults(errors)
    return space


def option_annotations(resolved: ResolvedJob) -> dict[str, Any]:
    """Return the type of every option of the config, the Trainer and the method."""
    return {
        **resolved.method.option_types(),
        **option_types(TrainConfig),
        **option_types(TrainingArguments),
    }


def option_values(resolved: ResolvedJob) -> dict[str, Any]:
    """Return every option of the config, the Trainer and the method with its value."""
    owners = (resolved.config, resolved.training_args, resolved.method_options)
    values = {
        name: next(getattr(owner, name) for owner in owners if hasattr(owner, name))
        for name in option_annotations(resolved)
    }
    return {**values, **resolved.given_options}


def _validate_ends(job: TrainJob, base: BaseModel, data: DataSplits, space: SearchSpace) -> None:
    """Validate the job with the ends of every range and with every choice, without weights.

    Options that limit each other are combined.

    Raises:
        UserError: For each value that `train` would reject.
    """
    ends = {name: distribution_ends(distribution) for name, distribution in space.items()}
    trials = [{name: end} for name in ends if name not in LAYER_OPTIONS for end in ends[name]]
    layers = [name for name in LAYER_OPTIONS if name in ends]
    if layers:
        combinations = product(*(ends[name] for name in layers))
        trials += [dict(zip(layers, values, strict=True)) for values in combinations]
    errors: list[str] = []
    for values in trials:
        names = " with ".join(values)
        try:
            resolved = resolve(job.with_options(**values), base, data.label_names)
            validate(resolved)
            prepare_data(resolved, data)
            build_empty_model(resolved)
        except UserError as error:
            errors += [f"{names} in the search space: {fault}" for fault in error.faults]
    raise_faults(list(dict.fromkeys(errors)))


def _search_record(
    resolved: ResolvedJob, data: DataSplits, space: SearchSpace, config: TuneConfig
) -> dict[str, Any]:
    """Return what identifies a search."""
    record = config_record(resolved.config, resolved.data, resolved.training_args)
    # Machines that differ in their default precision can share a search.
    for name in MACHINE_OPTIONS - resolved.explicit:
        record.pop(name, None)
    return {
        **record,
        "method_options": dict(resolved.given_options),
        "data": describe_data(data, list(data.splits)),
        "space": describe_space(space),
        "objective": config.objective,
    }


def common_recipe(job: TrainJob) -> dict[str, Any]:
    """Return the options that all trials have in common, as a recipe of `train`."""
    given: dict[str, Any] = {**vars(job.config), **job.training_arguments, **job.method_options}
    recipe = {name: value for name, value in given.items() if name in job.explicit}
    recipe |= {name: None for name, value in given.items() if value is None and name in job.removed}
    if isinstance(job.data, DataConfig):
        defaults = vars(DataConfig())
        recipe |= {n: value for n, value in vars(job.data).items() if value != defaults[n]}
    not_of_train = {"config", "dry_run", "output_dir"}
    if job.config.threshold != "auto":
        not_of_train.add("selection_fraction")  # of no use in `train` then
    return {
        "method": job.config.method,
        "model": job.config.model,
        **{name: value for name, value in recipe.items() if name not in not_of_train},
    }


def begin_search(search: Search) -> optuna.Study:
    """Create or load the study, and write what identifies the search.

    Raises:
        UserError: If the directory contains another search, or the storage cannot be opened.
    """
    path = search.directory / SEARCH_FILE
    record = json.loads(json.dumps(dict(search.record), default=str))
    if path.is_file() and (previous := read_json(path)).get("study") != search.study_name:
        differences = [k for k, value in record.items() if previous["fixed"].get(k) != value]
        raise UserError(
            f"output_dir: got {str(search.directory)!r}, which contains a search with another "
            f"{', '.join(differences[:5]) or 'command'}; choose another directory, or repeat the "
            "command of that search."
        )
    is_new = not search.directory.exists()
    search.directory.mkdir(parents=True, exist_ok=True)
    try:
        study = open_study(search)
    except UserError:
        if is_new:
            search.directory.rmdir()
        raise
    write_json(path, {"study": search.study_name, "fixed": record})
    logger.info(
        "search: %s\n%d of %d trials are finished; %s",
        *("; ".join(describe_space(search.space)), len(finished_trials(study))),
        *(search.config.num_trials, hide_login(search.storage)),
    )
    return study


def open_study(search: Search) -> optuna.Study:
    """Connect to the storage, and create or load the study.

    Raises:
        UserError: If the storage cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # this module logs the trials
    # Processes wait for each other's writes.
    options = {"connect_args": {"timeout": 60}} if search.storage.startswith("sqlite") else {}
    try:
        storage = optuna.storages.RDBStorage(search.storage, engine_kwargs=options)
    except Exception as error:  # SQLAlchemy and the drivers have no common error type
        raise UserError(
            f"storage: got {hide_login(search.storage)!r}, which cannot be opened: "
            f"{one_line(error)[:200]}. Expected a URL such as sqlite:///trials.db or "
            "postgresql://host/name, with its driver installed."
        ) from error
    return optuna.create_study(
        storage=storage,
        study_name=search.study_name,
        direction=OBJECTIVES[search.config.objective][1],
        pruner=PRUNERS[search.config.pruner](),
        load_if_exists=True,
    )


def hide_login(url: str) -> str:
    """Return a URL without user and password."""
    return re.sub(r"//[^/]*@", "//", url)


def run_trials(search: Search, study: optuna.Study) -> None:
    """Run trials until the study has the requested number of finished ones."""
    num_trials = search.config.num_trials

    def stop_or_log(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        logger.info("%s", describe_trial(study, trial, search))
        if len(finished_trials(study)) >= num_trials:
            study.stop()

    if len(finished_trials(study)) >= num_trials:
        return
    # The cache holds the activations of one set of layers.
    num_reuses = 1 if set(LAYER_OPTIONS) & set(search.space) else num_trials
    cache = build_activation_cache(search.resolved, num_reuses)
    with cache, _trial_logs_only():
        study.optimize(
            lambda trial: run_trial(search, trial, cache),
            catch=(Exception,),
            callbacks=[stop_or_log],
        )


def run_trial(search: Search, trial: optuna.Trial, cache: ActivationCache) -> float:
    """Train with the options of a trial; return the objective after the last epoch.

    Raises:
        TrialPruned: If the trial is worse than the others after the same epoch.
        TrainingDiverged: If the objective is not finite.
    """
    # Seeded by the trial's number: a search that was interrupted draws the same values as one that
    # was not, and processes draw different ones.
    trial.study.sampler = optuna.samplers.TPESampler(seed=search.job.seed + trial.number)
    values = suggest_values(trial, search.space)
    logger.info("trial %d: %s", trial.number, describe_values(values))
    gc.collect()  # the model of the previous trial
    try:
        return _train_trial(search, trial, values, cache)
    except optuna.TrialPruned:
        raise
    except Exception as error:
        reason = one_line(error) if isinstance(error, UserError) else repr(error)
        trial.set_user_attr(FAILURE, reason[:500])
        raise


def _train_trial(
    search: Search, trial: optuna.Trial, values: Mapping[str, Any], cache: ActivationCache
) -> float:
    labels = search.data.label_names
    resolved = resolve(search.job.with_options(**values), search.base, labels)
    validate(resolved)
    set_seed(resolved.training_args.seed)
    classifier = build_classifier(resolved, search.base.tokenizer, labels)
    freeze(resolved, classifier.model)
    objective = ObjectiveCallback(trial, search.config.objective)
    with tempfile.TemporaryDirectory() as directory:
        trainer, _ = build_trainer(
            *(resolved, search.data, classifier, directory),
            activation_cache=cache,
            callbacks=[objective],
        )
        trainer.remove_callback(LogMetricsCallback)
        trainer.train()
    if not math.isfinite(objective.value):
        raise TrainingDiverged
    if objective.is_pruned:
        raise optuna.TrialPruned
    return objective.value


def describe_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial, search: Search) -> str:
    """Return the result of a finished trial in one line."""
    objective, num_trials = search.config.objective, search.config.num_trials
    start = f"trial {trial.number} ({len(finished_trials(study))} of {num_trials} finished)"
    seconds = trial.duration.total_seconds() if trial.duration else 0
    if trial.state == TrialState.FAIL:
        return f"{start}: failed: {trial.user_attrs.get(FAILURE)}"
    if trial.state == TrialState.PRUNED:
        epoch, value = max(trial.intermediate_values.items())
        return f"{start}: pruned after epoch {epoch}, {objective} {value:.4f}, {seconds:.0f} s"
    best = study.best_trial
    return (
        f"{start}: {objective} {trial.value:.4f}, {seconds:.0f} s; best {best.value:.4f} "
        f"(trial {best.number})"
    )


class ObjectiveCallback(TrainerCallback):
    """Report the objective after each epoch, and stop trials that are pruned or diverged.

    Attributes:
        value: The objective after the latest epoch.
        is_pruned: Whether the trial was stopped because it is worse than the others.
    """

    def __init__(self, trial: optuna.Trial, objective: str) -> None:
        self.trial = trial
        self.objective = objective
        self.value = math.nan
        self.is_pruned = False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.value = (metrics or {})[OBJECTIVES[self.objective][0]]
        if not math.isfinite(self.value):
            control.should_training_stop = True
            return
        epoch = state.epoch or 0
        self.trial.report(self.value, step=math.ceil(epoch - 1e-6))
        if epoch < state.num_train_epochs:
            logger.info(
                "trial %d: epoch %g of %d, %s %.4f",
                *(self.trial.number, epoch, state.num_train_epochs, self.objective, self.value),
            )
            self.is_pruned = self.trial.should_prune()
            control.should_training_stop |= self.is_pruned


@contextmanager
def _trial_logs_only() -> Iterator[None]:
    """Log the trials, but not what every single training logs."""
    package = logging.getLogger("peft_mrpc")
    level, own_level = package.level, logger.level
    logger.setLevel(logger.getEffectiveLevel())
    package.setLevel(logging.WARNING)
    try:
        yield
    finally:
        package.setLevel(level)
        logger.setLevel(own_level)
