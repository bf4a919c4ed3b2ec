"""The flags of `tune`: its own, those of `train` that it takes, and what is wrong with them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import TrainingArguments

from peft_mrpc import config as cfg
from peft_mrpc.cli.flags import flag_names, flag_value, load_recipe, typed_flags
from peft_mrpc.config import TuneConfig
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import unknown_name
from peft_mrpc.methods.registry import load_default_recipe
from peft_mrpc.training.request import TrainJob

# How the Trainer runs a trial: judged after every epoch, and nothing kept.
OF_A_TRIAL = {
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}
# Flags of train that a search has no use for, with the reason.
REFUSED = {
    **dict.fromkeys(
        ("eval_strategy", "eval_steps", "save_strategy", "save_steps", "logging_strategy"),
        "a trial is judged after every epoch and not kept",
    ),
    "disable_tqdm": "the bars of trials are not shown",
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


def given_flags(argv: Sequence[str]) -> dict[str, Any]:
    """What the user typed or wrote into `--config`."""
    path = flag_value(argv, "config")
    given = {**(load_recipe(path) if path is not None else {}), **typed_flags(argv)}
    switches = flag_names(TrainingArguments)
    return {
        **{name: value for name, value in given.items() if name[3:] not in switches},
        # `--no_X` is the twin of a switch that is on.
        **{name[3:]: False for name in given if name[:3] == "no_" and name[3:] in switches},
    }


def tune_faults(request: TrainJob, config: TuneConfig, given: Mapping[str, Any]) -> list[str]:
    from peft_mrpc.training.tuning.study import OBJECTIVES, PRUNERS

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


def objective_faults(objective: str, names: Sequence[str]) -> list[str]:
    """Parameters of a search that change what its trials are judged by."""
    return [
        f"{name} in the search space: changes the loss that --objective loss judges by; use "
        "another --objective, or drop it."
        for name in names
        if objective == "loss"
        and name in ("focal_gamma", "label_smoothing_factor", "class_weights")
    ]


def flag_values(request: TrainJob) -> dict[str, Any]:
    """Every flag of train and of the method, with its value in this command."""
    return {
        **{name: getattr(request.options, name) for name in request.method.option_types()},
        **{name: vars(request.config)[name] for name in flag_names(cfg.TrainConfig)},
        **{name: getattr(request.arguments, name) for name in flag_names(TrainingArguments)},
        **request.given_options,
    }


def common_recipe(
    request: TrainJob, given: Mapping[str, Any], varied: Iterable[str]
) -> dict[str, Any]:
    """What every trial had in common, as a recipe of `train`, beside what varied."""
    not_of_train = {"output_dir", "config", *flag_names(TuneConfig)}
    if request.config.threshold != "auto":  # which alone is chosen on it, in train
        not_of_train.add("selection_fraction")
        keeps_best = {"load_best_model_at_end", "early_stopping_patience"} & set(given)
        if not keeps_best and given.get("save_strategy") != "best":
            not_of_train.add("metric_for_best_model")
    own = {name: value for name, value in given.items() if name not in not_of_train}
    default = load_default_recipe(request.config.method, {*given, *varied})
    values = flag_values(request)
    fitted = {name: values[name] for name in request.recipe_rates & set(default)}
    if "layer_decay" in request.recipe_rates:  # spread by `train` over the layers of each trial
        for rates in (default, fitted):
            rates.pop("layer_decay", None)
    if "sam_rho" in default:  # a recipe's is left out where it cannot be
        default["sam_rho"] = request.config.sam_rho
    return {**default, **fitted, **own}
