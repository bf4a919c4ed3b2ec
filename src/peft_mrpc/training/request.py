"""The former parser of training commands; `training/job.py` and `cli` replace it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from peft_mrpc.cli.flags import flag_value, load_recipe, parse_flags, typed_flags
from peft_mrpc.config import TRAIN_DEFAULTS, DataConfig, TrainConfig
from peft_mrpc.errors import UserError, logger, raise_faults
from peft_mrpc.methods.registry import Method, find_method, load_default_recipe, option_owners
from peft_mrpc.precision import disable_mixed_precision, precision_defaults
from peft_mrpc.training.job import TrainJob as NewJob
from peft_mrpc.training.job import training_argument_names
from peft_mrpc.training.optimizer_faults import keeps_gradients_from_us, schedule_faults
from peft_mrpc.training.request_faults import MAX_SEED, argument_faults, idle_faults
from peft_mrpc.training.selection import implied_arguments

TRAIN_DESCRIPTION = "Adapt a pretrained model to sentence-pair classification and write a Run."
FITTED_RATES = {"learning_rate", "head_learning_rate", "layer_decay"}


@dataclass(frozen=True)
class TrainJob:
    """What was asked for, parsed and checked as far as flags go."""

    config: TrainConfig
    data: DataConfig
    arguments: TrainingArguments
    method: Method
    options: Any
    given_options: Mapping[str, Any]
    output_dir: Path
    publish: bool
    keep_checkpoints: bool = True
    recipe_rates: frozenset[str] = frozenset()  # those that the user left to the method's recipe
    asked: frozenset[str] = frozenset()  # what the user gave, typed or in a recipe
    num_trainings: int = 1  # on these pairs: this one, and those of the same process after it

    @property
    def training_args(self) -> TrainingArguments:
        return self.arguments

    @property
    def method_options(self) -> Any:
        return self.options


def parse_request(argv: Sequence[str]) -> TrainJob:
    """Parse flags over the user's recipe over the method's default recipe.

    Raises:
        UserError: For unknown flags and methods, wrong values, flags that cannot stand together.
    """
    return parse_command(argv, "train", TRAIN_DESCRIPTION, ())[0]


def parse_command(
    argv: Sequence[str], verb: str, description: str, own: Sequence[type]
) -> tuple[TrainJob, list[Any]]:
    """Parse the command line of a verb that trains, with flags of its own beside those of train.

    A `null` in the user's recipe takes the line of the method's recipe away.

    Returns:
        What to train, and an instance of each dataclass in `own`.
    """
    path = flag_value(argv, "config")
    recipe = load_recipe(path) if path is not None else {}
    dropped = {key for key, value in recipe.items() if value is None}
    asked = {k: v for k, v in {**recipe, **typed_flags(argv)}.items() if v is not None}
    name = asked.get("method", TrainConfig.method)
    if not isinstance(name, str):
        raise UserError("--method: expected one name, such as lora.")
    method = find_method(name)
    default = {k: v for k, v in load_default_recipe(name, asked).items() if k not in dropped}
    is_saving_asked = "save_strategy" in asked
    implied = implied_arguments({**default, **asked}, is_saving_asked)
    implied |= precision_defaults(asked)
    (*mine, config, data, arguments), given = parse_flags(
        verb,
        description,
        (*own, TrainConfig, DataConfig, TrainingArguments),
        argv,
        [{**default, **implied}, recipe],
        method.option_types(),
        option_owners(),
        recipe_path=path,
    )
    _settle(name, config, arguments, asked)
    faults = settle_seeds(config, arguments, argv, recipe)
    options = _check(verb, method, config, arguments, given, asked, faults)
    publish_it = arguments.push_to_hub
    # The Trainer would upload its own folder; the Run is published whole, at the end, by us.
    arguments.push_to_hub = False
    if not method.is_peft:  # PEFT saves all of its config beside the adapter
        given = dict(vars(options))
    return TrainJob(
        *(config, data, arguments, method, options, given),
        output_dir=_output_dir(verb, argv, recipe, config, data),
        publish=publish_it,
        keep_checkpoints=is_saving_asked,
        recipe_rates=frozenset(FITTED_RATES - dropped - set(asked)),
        asked=frozenset(asked),
    ), mine


def _settle(
    method: str, config: TrainConfig, arguments: TrainingArguments, asked: Mapping[str, Any]
) -> None:
    """Undo what TrainingArguments and the recipe make of flags that were, or were not, given."""
    for field, value in TRAIN_DEFAULTS.items():
        if getattr(config, field) is None:
            setattr(config, field, value)
    disable_mixed_precision(arguments, asked)
    if "eval_steps" in asked and float(asked["eval_steps"]) == 0:
        arguments.eval_steps = 0  # the Trainer takes it for none given: as many as --logging_steps
    if arguments.n_gpu > 1:  # DataParallel is slow, and sums the losses of its copies
        logger.info("one of %d GPUs trains: `accelerate launch` takes all", arguments.n_gpu)
        arguments._n_gpu = 1
    keeper = keeps_gradients_from_us(arguments)
    if config.sam_rho and "sam_rho" not in asked and keeper:
        logger.info("%s: its --sam_rho %g is left out under %s", method, config.sam_rho, keeper)
        config.sam_rho = 0.0


def _check(
    verb: str,
    method: Method,
    config: TrainConfig,
    arguments: TrainingArguments,
    given: Mapping[str, Any],
    asked: Mapping[str, Any],
    faults: Sequence[str],
) -> Any:
    """The method's options, where these and all other flags are right and have an effect.

    Args:
        verb: The command.
        method: What trains.
        config: What the flags and recipes say.
        arguments: What they say of the Trainer.
        given: The method's own options.
        asked: What the user gave.
        faults: What is known to be wrong.
    Raises:
        UserError: With these faults and all others.
    """
    faults = [*faults, *argument_faults(config, arguments)]
    try:
        options = method.build_options(given)
    except UserError as error:  # said together with what is wrong with all other flags
        raise UserError(*faults, *error.faults) from error
    wrong = {fault.partition(":")[0].removeprefix("--") for fault in faults}
    idle = idle_faults(verb, config, arguments, options, set(asked))
    raise_faults(
        faults
        + [fault for fault in idle if fault.partition(":")[0].removeprefix("--") not in wrong]
    )
    unfreeze_every = getattr(options, "unfreeze_every", None)
    raise_faults(schedule_faults(arguments, unfreeze_every, config.sam_rho))
    return options


def _output_dir(
    verb: str,
    argv: Sequence[str],
    recipe: Mapping[str, Any],
    config: TrainConfig,
    data: DataConfig,
) -> Path:
    """Where the outcome goes: TrainingArguments fill in a name, so what was typed is asked for."""
    typed = flag_value(argv, "output_dir")
    given = recipe.get("output_dir") if typed is None else typed
    if given is not None:
        return Path(str(given)).expanduser()
    default = default_output_dir(config.method, config.model, data)
    if verb != "train":
        default = default.replace("runs/", f"runs/{verb}-", 1)
    return Path(default)


def default_output_dir(method: str, model: str, data: DataConfig) -> str:
    """`runs/DATASET-MODEL-METHOD`, in letters that any file system takes."""
    dataset = "files" if data.train_file or data.validation_file or data.test_file else data.dataset
    parts = [Path(dataset).name, Path(model).name, method]
    return "runs/" + "-".join(re.sub(r"[^\w.]+", "_", part).strip("_") for part in parts)


def settle_seeds(
    config: TrainConfig,
    arguments: TrainingArguments,
    argv: Sequence[str],
    recipe: Mapping[str, Any],
) -> list[str]:
    """Make `--seeds` of several spellings one list, and the first of them the seed of the data.

    A flag is stronger than the recipe: `--seed 3` over a recipe's `seeds` trains once.

    Returns:
        What is wrong with them.
    """
    is_typed = {name: flag_value(argv, name) is not None for name in ("seed", "seeds")}
    if is_typed["seed"] and not is_typed["seeds"]:
        config.seeds = None
    if config.seeds is None:
        return []
    texts = [text.strip() for text in ",".join(config.seeds).split(",")]
    faults = [
        f"--seeds: got {text!r}; expected whole numbers from 0 to {MAX_SEED}, such as 1,2,3."
        for text in texts
        if not (text.isascii() and text.isdigit() and int(text) <= MAX_SEED)
    ]
    if not faults:
        seeds = [int(text) for text in texts]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        faults += [f"--seeds: got {seed} twice; name each seed once." for seed in twice]
        if len(seeds) == 1:
            faults.append(f"--seeds: got {seeds[0]} alone; expected two or more, or --seed.")
        config.seeds = [str(seed) for seed in seeds]
        arguments.seed = seeds[0]
    if is_typed["seed"] or (not is_typed["seeds"] and "seed" in recipe):
        faults.append("--seeds: got --seed as well; drop one of them.")
    if arguments.resume_from_checkpoint is not None:
        faults.append(
            "--seeds: got --resume_from_checkpoint as well, which belongs to one seed; drop it: "
            "the same command goes on after the seeds that are finished."
        )
    return faults


def parse_train_command(argv: Sequence[str], command: str = "train") -> NewJob:
    """Parse a command line to the new job, until `cli` does."""
    path = flag_value(argv, "config")
    recipe = load_recipe(path) if path is not None else {}
    asked = {k: v for k, v in {**recipe, **typed_flags(argv)}.items() if v is not None}
    method = find_method(asked.get("method", TrainConfig.method))
    default = load_default_recipe(str(asked.get("method", TrainConfig.method)), asked)
    implied = implied_arguments({**default, **asked}, "save_strategy" in asked)
    (config, data, arguments), given = parse_flags(
        command,
        TRAIN_DESCRIPTION,
        (TrainConfig, DataConfig, TrainingArguments),
        argv,
        [{**default, **implied, **precision_defaults(asked)}, recipe],
        method.option_types(),
        option_owners(),
        recipe_path=path,
    )
    removed = {key for key, value in recipe.items() if value is None}
    names = training_argument_names() - {"output_dir"}
    output_dir = asked.get("output_dir")
    unset = {name: None for name in TRAIN_DEFAULTS if name not in asked}
    return NewJob(
        replace(config, **unset),
        data,
        {n: getattr(arguments, n) for n in asked if n in names}
        | {n: None for n in removed if n in names},
        {n: v for n, v in given.items() if n in asked},
        Path(str(output_dir)) if output_dir is not None else None,
        frozenset(removed),
    )
