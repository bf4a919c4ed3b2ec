"""Search for settings on a held-out part of the training pairs, and write the best as a recipe."""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from peft_mrpc import config as cfg
from peft_mrpc.data import load_pairs, reported_splits
from peft_mrpc.errors import UserError, logger, raise_faults, run_verb, unknown_name
from peft_mrpc.flags import (
    config_record,
    flag_names,
    flag_value,
    load_recipe,
    recipe_to_flags,
    record_key,
    typed_flags,
)
from peft_mrpc.methods import load_default_recipe
from peft_mrpc.models import load_config
from peft_mrpc.pairs import PairData
from peft_mrpc.processes import prepare_processes, process_state
from peft_mrpc.reporting import describe_data
from peft_mrpc.requests import TrainRequest, parse_command
from peft_mrpc.search_space import Parameter, load_space
from peft_mrpc.selection import SELECTION, split_selection
from peft_mrpc.sources import ModelSource, find_model
from peft_mrpc.staging import check_output_dir
from peft_mrpc.train import build_classifier, check_fit, fit_rates
from peft_mrpc.training import build_trainer, check_against_data
from peft_mrpc.trunk_plan import count_trunks
from peft_mrpc.workers import run_workers, worker_count

if TYPE_CHECKING:
    from peft_mrpc.search import Plan

DESCRIPTION = "Search a method's settings with Optuna, and write the best as a recipe for train."
STUDY_FILE = "study.db"
SEARCH_CONTENTS = frozenset(
    {STUDY_FILE, f"{STUDY_FILE}-journal", "search.json"}
    | {"best.yaml", "trials.csv", "search.png", "search.svg"}
)
# How the Trainer runs a trial: judged after every epoch, and nothing kept.
OF_A_TRIAL = {
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}
# Flags of train that a search has no use for, with the reason.
REFUSED = {
    **dict.fromkeys(OF_A_TRIAL, "a trial is judged after every epoch and not kept"),
    "seeds": "a search has one --seed; train its recipe with --seeds",
    "push_to_hub": "a search publishes nothing",
    "resume_from_checkpoint": "a rerun of the same command goes on with the search",
    "overwrite": "a search goes on where it stands; name another --output_dir for a new one",
    "load_best_model_at_end": "a trial is judged by its last epoch",
    "early_stopping_patience": "a trial is judged by its last epoch",
}
# Flags that are the same for all trials, beside those of the data.
FIXED = {
    *("method", "model", "base_model_id", "config", "seed", "data_seed", "selection_fraction"),
    *("output_dir", "dry_run", "hub_model_id", "hub_private_repo", "report_to"),
}


@dataclass
class TuneConfig:
    """How a search goes."""

    _argument_group_name = "search"

    num_trials: int = cfg.option(20, "trials in all: a rerun goes on up to this number")
    search_space: str | None = cfg.option(
        None, "YAML file of what varies, such as `r: {choices: [4, 8]}` (packaged, if not given)"
    )
    objective: str = cfg.option(
        "accuracy", "accuracy, macro_f1, roc_auc or loss, on the held-out part of train"
    )
    pruner: str = cfg.option("median", "median: stop a trial that lags behind half of the others")
    storage: str | None = cfg.option(
        None, "database of the trials, shared by every command that names it (a file, if not given)"
    )
    num_workers: int = cfg.option(1, "processes that try values at the same time")


OWN = (TuneConfig,)


def main(argv: Sequence[str]) -> None:
    prepare_processes()
    request, (config,) = parse_command(argv, "tune", DESCRIPTION, OWN)
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(
            "tune: needs Optuna, which is not installed. Next: pip install 'peft-mrpc[tune]'"
        ) from error
    tune(list(argv), request, config)


def tune(argv: list[str], request: TrainRequest, config: TuneConfig) -> None:
    """Search, by this process or by several, and write the outcome.

    Raises:
        UserError: Before the first trial for all that is wrong with the command, after the last
            if none came to its end.
    """
    from peft_mrpc.search import begin_search, open_study, without_login
    from peft_mrpc.search_outcome import write_outcome

    given = _given_flags(argv)
    raise_faults(_faults(request, config, given))
    check_output_dir(request.output_dir, True, SEARCH_CONTENTS, "search")
    source = find_model(request.config.model, request.config.base_model_id)
    fit_rates(request, load_config(source))
    space = load_space(
        config.search_space,
        request.config.method,
        _flag_values(request),
        set(given),
        {*FIXED, *REFUSED, *flag_names(cfg.DataConfig, TuneConfig)},
    )
    _check_ends(argv, space, source)
    data = _held_out_data(request)
    size = len(data.splits[SELECTION])
    with tempfile.TemporaryDirectory() as scratch:
        build = _trainer_builder(argv, data, scratch, count_trunks(space) * worker_count())
        plan = _plan(request, config, space, data)
        trainer = build({}, 1)  # what cannot be built at all is said before anything is written
        if request.config.dry_run:
            _print_plan(plan, data)
            return
        begin_search(plan)
        try:
            if config.num_workers > 1:
                del trainer
                run_workers(argv, config.num_workers)
            else:
                _run_here(plan, trainer, build)
        except KeyboardInterrupt as error:
            where = without_login(plan.storage)
            error.add_note(f"Finished trials are kept in {where}: the same command goes on.")
            raise
    not_of_train = {"output_dir", "config", *flag_names(TuneConfig)}
    if request.config.threshold != "auto":  # which alone is chosen on it, in train
        not_of_train.add("selection_fraction")
    own = {name: value for name, value in given.items() if name not in not_of_train}
    default = load_default_recipe(request.config.method)
    values = _flag_values(request)
    fitted = {name: values[name] for name in request.recipe_rates & set(default)}
    recipe = {**default, **fitted, **own}
    said = write_outcome(plan, open_study(plan), recipe, f"{size} held-out training pairs")
    sys.stdout.write(said + "\n")


def _given_flags(argv: Sequence[str]) -> dict[str, Any]:
    """What the user typed or wrote into `--config`."""
    path = flag_value(argv, "config")
    given = {**(load_recipe(path) if path else {}), **typed_flags(argv)}
    switches = flag_names(TrainingArguments)
    return {
        **{name: value for name, value in given.items() if name[3:] not in switches},
        # `--no_X` is the twin of a switch that is on.
        **{name[3:]: False for name in given if name[:3] == "no_" and name[3:] in switches},
    }


def _faults(request: TrainRequest, config: TuneConfig, given: Mapping[str, Any]) -> list[str]:
    from peft_mrpc.search import OBJECTIVES, PRUNERS

    faults = [
        f"--{name}: {reason}; drop it."
        for name, reason in REFUSED.items()
        if name in given and str(given[name]).lower() not in ("false", "none", "no")
    ]
    for name in ("num_trials", "num_workers"):
        if getattr(config, name) < 1:
            faults.append(f"--{name}: got {getattr(config, name)}; expected at least 1.")
    if config.objective not in OBJECTIVES:
        faults += unknown_name("--objective", config.objective, OBJECTIVES).faults
    if config.pruner not in PRUNERS:
        faults += unknown_name("--pruner", config.pruner, PRUNERS).faults
    if process_state().num_processes > 1:
        faults.append("tune: got a job of several processes; start it alone, with --num_workers.")
    return faults


def _flag_values(request: TrainRequest) -> dict[str, Any]:
    """Every flag of train and of the method, with its value in this command."""
    return {
        **{name: getattr(request.options, name) for name in request.method.option_types()},
        **{name: vars(request.config)[name] for name in flag_names(cfg.TrainConfig)},
        **{name: getattr(request.arguments, name) for name in flag_names(TrainingArguments)},
        **request.given_options,
    }


def _check_ends(argv: Sequence[str], space: Sequence[Parameter], source: ModelSource) -> None:
    """Parse the command with the ends of every range and with every choice, and fit it to a model.

    Raises:
        UserError: Naming each value that `train` would refuse.
    """
    faults: list[str] = []
    for parameter in space:
        for value in parameter.ends():
            try:
                request, _ = parse_command(
                    [*argv, *_trial_flags({parameter.name: value})], "tune", "", OWN
                )
                check_fit(request, source)
            except UserError as error:
                faults += [f"{parameter.name} in the search space: {f}" for f in error.faults]
    raise_faults(list(dict.fromkeys(faults)))


def _trial_flags(values: Mapping[str, Any]) -> list[str]:
    return recipe_to_flags({**OF_A_TRIAL, **values})


def _held_out_data(request: TrainRequest) -> PairData:
    """The training pairs in two parts; the splits that are reported are not looked at."""
    data = load_pairs(request.data, request.arguments.seed)
    splits = reported_splits(data, request.data.split)
    check_against_data(request.config, request.arguments, data)
    parted = split_selection(request.config, request.arguments, splits, data)
    own = {name: parted.splits[name] for name in ("train", SELECTION)}
    return PairData(data.name, data.label_names, own)


def _trainer_builder(
    argv: Sequence[str], data: PairData, scratch: str, shares: int
) -> Callable[[Mapping[str, Any], int], Trainer]:
    """What builds the Trainer of one trial, as `train` would with the same values as flags.

    One in `shares` of the trials left after it finds the activations that this process keeps.
    """

    def build(values: Mapping[str, Any], num_left: int) -> Trainer:
        request, _ = parse_command([*argv, *_trial_flags(values)], "tune", DESCRIPTION, OWN)
        request = replace(request, num_trainings=1 + (num_left - 1) // shares)
        source = find_model(request.config.model, request.config.base_model_id)
        set_seed(request.arguments.seed)
        classifier = build_classifier(request, source, data)
        trainer, _ = build_trainer(request, data, classifier, scratch)
        trainer.remove_callback(PrinterCallback)
        return trainer

    return build


def _plan(
    request: TrainRequest, config: TuneConfig, space: Sequence[Parameter], data: PairData
) -> "Plan":
    """The search, named by all that its trials have in common."""
    from peft_mrpc.search import Plan

    fixed = {
        **config_record(request.config, request.data, request.arguments),
        "method_options": dict(request.given_options),
        "data": describe_data(data, list(data.splits)),
        "space": [str(parameter) for parameter in space],
        "objective": config.objective,
    }
    return Plan(
        f"{request.config.method}-{record_key(fixed)}",
        list(space),
        config.objective,
        config.num_trials,
        config.pruner,
        request.arguments.seed,
        config.storage or f"sqlite:///{(request.output_dir / STUDY_FILE).absolute()}",
        request.output_dir,
        fixed,
    )


def _run_here(
    plan: "Plan", trainer: Trainer, build: Callable[[Mapping[str, Any], int], Trainer]
) -> None:
    from peft_mrpc.search import run_trials

    # The first model said what trains and what was cut; each trial would say it again.
    level = logger.level
    logger.setLevel("WARNING")
    try:
        run_trials(plan, trainer, build)
    finally:
        logger.setLevel(level)


def _print_plan(plan: "Plan", data: PairData) -> None:
    kept, held = (len(data.splits[split]) for split in ("train", SELECTION))
    lines = [
        f"data: {data.name}, training on {kept:,} pairs, {plan.objective} on {held:,} held out",
        f"search: {'; '.join(map(str, plan.space))}",
        f"trials: {plan.num_trials}",
        "dry run: nothing was tried, nothing was written",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(run_verb(main))
