"""Search for settings on a held-out part of the training pairs, and write the best as a recipe."""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, Trainer, set_seed

from peft_mrpc import config as cfg
from peft_mrpc.cli.app import run_cli
from peft_mrpc.cli.flags import flag_names, recipe_to_flags
from peft_mrpc.config import config_record, record_key
from peft_mrpc.data.examples import DataSplits
from peft_mrpc.data.loading import load_data, reported_splits
from peft_mrpc.distributed import prepare_processes
from peft_mrpc.errors import UserError, logger, raise_faults
from peft_mrpc.methods.layer_freeze import warn_layers_never_unfrozen
from peft_mrpc.models.hub import ModelSource, resolve_model
from peft_mrpc.models.loading import load_config
from peft_mrpc.precision import is_default_precision, trainer_precision, warn_slow_bf16
from peft_mrpc.runs.staging import check_output_dir
from peft_mrpc.runs.writer import describe_data
from peft_mrpc.training.activation_cache.store import ActivationCache
from peft_mrpc.training.build_model import build_classifier, check_fit, fit_rates
from peft_mrpc.training.build_trainer import (
    build_activation_cache,
    build_trainer,
    check_against_data,
)
from peft_mrpc.training.head_layer import settle_reading
from peft_mrpc.training.request import TrainJob, parse_command
from peft_mrpc.training.selection import SELECTION, say_held_out, split_selection
from peft_mrpc.training.tuning.config import (
    FIXED,
    OF_A_TRIAL,
    REFUSED,
    TuneConfig,
    common_recipe,
    flag_values,
    given_flags,
    objective_faults,
    tune_faults,
)
from peft_mrpc.training.tuning.search_space import (
    Parameter,
    count_activation_sets,
    load_space,
)
from peft_mrpc.training.tuning.workers import run_workers, worker_count

if TYPE_CHECKING:
    from peft_mrpc.training.tuning.study import Plan

DESCRIPTION = "Search a method's settings with Optuna, and write the best as a recipe for train."
STUDY_FILE = "study.db"
SEARCH_CONTENTS = frozenset(
    {STUDY_FILE, f"{STUDY_FILE}-journal", "search.json"}
    | {"best.yaml", "trials.csv", "search.png", "search.svg"}
)
OWN = (TuneConfig,)
# Flags of which one bounds the other.
COUNTS_LAYERS = ("head_layer", "num_unfrozen_layers")


def main(argv: Sequence[str]) -> None:
    prepare_processes()
    request, (config,) = parse_command(argv, "tune", DESCRIPTION, OWN)
    warn_slow_bf16(request.arguments)
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(
            "tune: needs Optuna, which is not installed. Next: pip install 'peft-mrpc[tune]'"
        ) from error
    tune(list(argv), request, config)


def tune(argv: list[str], request: TrainJob, config: TuneConfig) -> None:
    """Search, by this process or by several, and write the outcome.

    Raises:
        UserError: Before the first trial for all that is wrong with the command, after the last
            if none came to its end.
    """
    from peft_mrpc.training.tuning.outcome import write_outcome
    from peft_mrpc.training.tuning.study import begin_search, open_study, without_login

    given = given_flags(argv)
    raise_faults(tune_faults(request, config, given))
    check_output_dir(request.output_dir, True, SEARCH_CONTENTS, "search")
    source = resolve_model(request.config.model, request.config.base_model_id)
    read, _ = settle_reading(replace(request, config=replace(request.config)), source)
    sizes = load_config(read)
    fit_rates(request, sizes)
    warn_layers_never_unfrozen(request.options, request.arguments)
    space = load_space(
        config.search_space,
        request.config.method,
        flag_values(request),
        set(given),
        {*FIXED, *REFUSED, *flag_names(cfg.DataConfig, TuneConfig)},
        {"num_unfrozen_layers": sizes.get_text_config().num_hidden_layers},
    )
    raise_faults(objective_faults(config.objective, [parameter.name for parameter in space]))
    _check_ends(argv, space, source)
    data = _held_out_data(request)
    size = len(data.splits[SELECTION])
    with tempfile.TemporaryDirectory() as scratch:
        build = _trainer_builder(
            argv,
            data,
            scratch,
            build_activation_cache(request),
            count_activation_sets(space) * worker_count(),
        )
        plan = _plan(request, config, given, space, data)
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
    recipe = common_recipe(request, given, [parameter.name for parameter in space])
    said = write_outcome(plan, open_study(plan), recipe, f"{size} held-out training pairs")
    sys.stdout.write(said + "\n")


def _check_ends(argv: Sequence[str], space: Sequence[Parameter], source: ModelSource) -> None:
    """Parse the command with the ends of every range and with every choice, and fit it to a model.

    What counts layers is tried together: a model that is cut at its head's layer has fewer to
    unfreeze.

    Raises:
        UserError: Naming each value that `train` would refuse.
    """
    layers = [p for p in space if p.name in COUNTS_LAYERS]
    trials = [{p.name: end} for p in space if p not in layers for end in p.ends()]
    names = [p.name for p in layers]
    ends = product(*(p.ends() for p in layers))
    trials += [dict(zip(names, one, strict=True)) for one in ends if names]
    raise_faults(_refused(argv, trials, source))


def _refused(
    argv: Sequence[str], trials: Sequence[Mapping[str, Any]], source: ModelSource
) -> list[str]:
    """What `train` would say against each of these trials."""
    faults: list[str] = []
    for values in trials:
        try:
            request, _ = parse_command([*argv, *_trial_flags(values)], "tune", "", OWN)
            check_fit(request, source)
        except UserError as error:
            said = " with ".join(values)
            faults += [f"{said} in the search space: {fault}" for fault in error.faults]
    return list(dict.fromkeys(faults))


def _trial_flags(values: Mapping[str, Any]) -> list[str]:
    return recipe_to_flags({**OF_A_TRIAL, **values})


def _held_out_data(request: TrainJob) -> DataSplits:
    """The training pairs in two parts; the splits that are reported are not looked at."""
    data = load_data(request.data, request.arguments.seed)
    splits = reported_splits(data, request.data.split)
    check_against_data(request.config, request.arguments, data)
    parted = split_selection(request.config, request.arguments, splits, data)
    say_held_out(parted)
    own = {name: parted.splits[name] for name in ("train", SELECTION)}
    return DataSplits(data.name, data.label_names, own)


def _trainer_builder(
    argv: Sequence[str], data: DataSplits, scratch: str, cache: ActivationCache, shares: int
) -> Callable[[Mapping[str, Any], int], Trainer]:
    """What builds the Trainer of one trial, as `train` would with the same values as flags.

    One in `shares` of the trials left after it finds the activations that this process keeps.
    """

    def build(values: Mapping[str, Any], num_left: int) -> Trainer:
        request, _ = parse_command([*argv, *_trial_flags(values)], "tune", DESCRIPTION, OWN)
        source = resolve_model(request.config.model, request.config.base_model_id)
        set_seed(request.arguments.seed)
        classifier = build_classifier(request, source, data)
        cache.num_trainings = 1 + (num_left - 1) // shares
        trainer, _ = build_trainer(request, data, classifier, scratch, cache)
        trainer.remove_callback(PrinterCallback)
        return trainer

    return build


def _plan(
    request: TrainJob,
    config: TuneConfig,
    given: Mapping[str, Any],
    space: Sequence[Parameter],
    data: DataSplits,
) -> "Plan":
    """The search, named by all that its trials have in common on whatever machine."""
    from peft_mrpc.training.tuning.study import Plan

    record = config_record(request.config, request.data, request.arguments)
    if is_default_precision(given):
        record = {k: v for k, v in record.items() if k not in ("bf16", "use_cpu")}
    else:
        record["precision"] = trainer_precision(request.arguments)
    fixed = {
        **record,
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
    from peft_mrpc.training.tuning.study import run_trials

    # The first model said what trains and what was cut; each trial would say it again.
    level = logger.level
    logger.setLevel("WARNING")
    try:
        run_trials(plan, trainer, build)
    finally:
        logger.setLevel(level)


def _print_plan(plan: "Plan", data: DataSplits) -> None:
    kept, held = (len(data.splits[split]) for split in ("train", SELECTION))
    lines = [
        f"data: {data.name}, training on {kept:,} pairs, {plan.objective} on {held:,} held out",
        f"search: {'; '.join(map(str, plan.space))}",
        f"trials: {plan.num_trials}",
        "dry run: nothing was tried, nothing was written",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(run_cli(main))
