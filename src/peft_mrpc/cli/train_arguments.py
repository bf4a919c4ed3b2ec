"""Parse the options of the commands that train: `train`, `tune` and `doctor`.

They accept the fields of TrainConfig and DataConfig, all fields of transformers'
TrainingArguments, and the options of the method.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peft_mrpc.cli.parser import (
    HelpGroup,
    HelpOption,
    build_config,
    option_names,
    print_help,
    split_arguments,
    with_file,
)
from peft_mrpc.config import COMMON_TRAINING_ARGUMENTS, TRAIN_DEFAULTS, DataConfig, TrainConfig
from peft_mrpc.errors import raise_faults
from peft_mrpc.options import Argument, convert_arguments, option_types, packaged_recipe
from peft_mrpc.serialization import user_path

if TYPE_CHECKING:
    from peft_mrpc.training.job import TrainJob

DESCRIPTIONS = {
    "train": "Adapt a pretrained model to a classification data set, evaluate it, write a Run.",
    "tune": "Search a method's hyperparameters with Optuna; write the best as a file for train.",
    "doctor": "Print what is installed and which methods work on which models; with --method and "
    "--model,\nwhat would train, and an estimate of time and memory.",
}
# The options of `train` in the short help of the other commands.
SHARED_OPTIONS = {
    *("method", "model", "config", "dry_run", "dataset", "train_file", "validation_file"),
    *("output_dir", "num_train_epochs", "per_device_train_batch_size", "seed", "bf16"),
}
# Built by accelerate from its own configuration; no text describes it.
NOT_OPTIONS = {"parallelism_config"}


def parse_train_command(argv: Sequence[str], command: str = "train") -> "TrainJob":
    """Parse the command line of a training.

    Returns:
        The job: the options that were given, typed.
    Raises:
        UserError: With one line for each unknown option and wrong type.
        SystemExit: After `--help`.
    """
    return parse_command_with_job(argv, command)[0]


def parse_command_with_job(
    argv: Sequence[str], command: str, config_types: Sequence[type] = ()
) -> tuple["TrainJob", list[Any]]:
    """Parse the command line of a command that trains and has options of its own.

    Returns:
        The job, and an instance of each of `config_types`.
    """
    arguments, _, faults = split_arguments(argv)
    if {"help", "help_all"} & {argument.name for argument in arguments}:
        _print_help(command, arguments, config_types)
    arguments, file_faults = with_file(arguments)
    arguments = _one_kind_of_seed(arguments)

    from peft_mrpc.methods.registry import find_method, option_owners
    from peft_mrpc.training.job import TrainJob, split_options

    method = _method_name(arguments)
    configs = (*config_types, TrainConfig, DataConfig)
    config_annotations = {n: kind for c in configs for n, kind in option_types(c).items()}
    annotations = {
        **find_method(method).option_types(),
        **training_argument_types(),
        **config_annotations,
    }
    values, value_faults = convert_arguments(arguments, annotations, option_owners())
    raise_faults([*faults, *file_faults, *value_faults])

    removed = {a.name for a in arguments if a.value is None} - set(values)
    training_arguments, method_options = split_options(method, {**dict.fromkeys(removed), **values})
    output_dir = training_arguments.pop("output_dir", None)
    *others, config, data = (build_config(kind, values) for kind in configs)
    job = TrainJob(
        config,
        data,
        training_arguments,
        method_options,
        user_path(output_dir) if output_dir is not None else None,
        frozenset(removed & option_names(TrainConfig)),
    )
    return job, others


def training_argument_types() -> dict[str, Any]:
    """The annotation of each field of TrainingArguments that is an option."""
    from transformers import TrainingArguments

    types = option_types(TrainingArguments)
    return {name: kind for name, kind in types.items() if name not in NOT_OPTIONS}


def _method_name(arguments: Sequence[Argument]) -> str:
    """The method, which decides the options that are known."""
    values, faults = convert_arguments(
        [a for a in arguments if a.name == "method"], {"method": str}
    )
    raise_faults(faults)
    return str(values.get("method", TrainConfig.method))


def _one_kind_of_seed(arguments: Sequence[Argument]) -> list[Argument]:
    """Without the file's `seeds` if the command line has `seed`, and the other way round."""
    typed = {a.name for a in arguments if a.is_typed} & {"seed", "seeds"}
    replaced = {"seed", "seeds"} - typed if typed else set()
    return [a for a in arguments if a.is_typed or a.name not in replaced]


def _print_help(command: str, arguments: Sequence[Argument], config_types: Sequence[type]) -> None:
    """Print the help; torch and transformers are imported only if a method or all are shown."""
    arguments, _ = with_file(arguments)
    method = _method_name(arguments)
    is_short = not any(argument.name == "help_all" for argument in arguments)
    has_method = any(argument.name == "method" for argument in arguments)
    if has_method or not is_short:
        from peft_mrpc.methods.registry import find_method

        find_method(method)
    recipe = packaged_recipe(method)
    groups = [HelpGroup.of_config(kind) for kind in config_types]
    if has_method:
        groups.append(_method_group(method, recipe))
    defaults = {**TRAIN_DEFAULTS, **recipe}
    groups.append(HelpGroup.of_config(TrainConfig, defaults))
    groups.append(HelpGroup.of_config(DataConfig))
    training = [
        HelpOption(name, text, recipe.get(name)) for name, text in COMMON_TRAINING_ARGUMENTS.items()
    ]
    if not is_short:
        training += _other_training_arguments(recipe)
    groups.append(HelpGroup("transformers.TrainingArguments", training))
    if command != "train" and is_short:
        groups = [
            replace(group, options=[o for o in group.options if o.name in SHARED_OPTIONS])
            if position >= len(config_types) + has_method
            else group
            for position, group in enumerate(groups)
        ]
    if has_method and is_short:  # one screen: the method's options in place of the common ones
        method_group = groups[len(config_types)]
        groups = [replace(method_group, options=[o.one_line() for o in method_group.options])]
    if has_method:
        epilog = f"`peft-mrpc {command} --method {method} --help_all` shows all options."
    else:
        epilog = (
            f"`peft-mrpc {command} --method M --help` shows the options of a method. The defaults "
            f"here are those of\n{method}. Every field of TrainingArguments is an option."
        )
    print_help(command, DESCRIPTIONS[command], groups, is_short, epilog=epilog)


def _method_group(method: str, recipe: Mapping[str, Any]) -> HelpGroup:
    """The options of a method, with the recipe's values, or else PEFT's, as defaults."""
    from peft_mrpc.methods.registry import find_method

    entry = find_method(method)
    fields = {field.name: field for field in dataclasses.fields(entry.options)}
    options = []
    for name in entry.option_types():
        field = fields[name]
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        default = getattr(default, "value", default)
        text = " ".join(str(field.metadata.get("help", "")).split())
        options.append(HelpOption(name, text, recipe.get(name, default)))
    return HelpGroup(f"options of {method}", options)


def _other_training_arguments(recipe: Mapping[str, Any]) -> list[HelpOption]:
    from transformers import TrainingArguments

    fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    options = []
    for name in training_argument_types():
        if name not in COMMON_TRAINING_ARGUMENTS:
            default = fields[name].default
            default = None if default is dataclasses.MISSING else getattr(default, "value", default)
            text = " ".join(str(fields[name].metadata.get("help", "")).split())
            options.append(HelpOption(name, text, recipe.get(name, default), is_common=False))
    return options
