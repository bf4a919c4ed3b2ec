"""The two descriptions of a training: what was requested, and what it resolves to.

`TrainJob` is what a command line, a YAML file or a caller of the API requested, with nothing filled
in. `training/resolve.py` turns it into a `ResolvedJob`, in which every `auto` is decided. Both are
frozen. This module imports neither torch nor transformers, so that a command line can be parsed
without them.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_mrpc.config import MAX_SEED, DataConfig, TrainConfig
from peft_mrpc.errors import raise_faults
from peft_mrpc.options import Argument, convert_arguments, option_types

if TYPE_CHECKING:
    from transformers import PretrainedConfig, TrainingArguments

    from peft_mrpc.methods.registry import Method
    from peft_mrpc.models.sources import ModelSource


@dataclass(frozen=True)
class TrainJob:
    """A training as it was requested.

    Attributes:
        config: Model, method and head. A field that is None takes the value of the method's recipe.
        data: A data set, or examples in memory: split name -> list of tuples, `datasets.Dataset` or
            pandas `DataFrame`.
        training_arguments: The fields of `TrainingArguments` that were given, typed. None removes
            the recipe's value: transformers' default applies.
        method_options: The options of the method that were given, typed. None removes the recipe's
            value.
        output_dir: Directory of the Run; None for `runs/DATASET-MODEL-METHOD`.
        removed: Fields of `config` whose recipe values do not apply (`null` in a YAML file).
    """

    config: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig | Mapping[str, Any] = field(default_factory=DataConfig)
    training_arguments: Mapping[str, Any] = field(default_factory=dict)
    method_options: Mapping[str, Any] = field(default_factory=dict)
    output_dir: Path | None = None
    removed: frozenset[str] = frozenset()

    @property
    def explicit(self) -> frozenset[str]:
        """Names of all options that were given, and have a value other than their default."""
        defaults = TrainConfig()
        names = {
            item.name
            for item in dataclasses.fields(TrainConfig)
            if getattr(self.config, item.name) != getattr(defaults, item.name)
        }
        values = {**self.training_arguments, **self.method_options}
        return frozenset(names | {name for name, value in values.items() if value is not None})

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of a multi-seed training; empty for one training.

        Raises:
            UserError: If they are not two or more different seeds.
        """
        if self.config.seeds is None:
            return ()
        seeds = tuple(self.config.seeds)
        faults = [
            f"seeds: got {seed!r}; expected integers from 0 to {MAX_SEED}, such as 1,2,3."
            for seed in seeds
            if not (type(seed) is int and 0 <= seed <= MAX_SEED)
        ]
        raise_faults(faults)
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        faults = [f"seeds: got {seed} twice; expected different seeds." for seed in twice]
        if len(seeds) == 1:
            faults.append(f"seeds: got {seeds[0]} alone; expected two or more, or use seed.")
        for name in ("seed", "resume_from_checkpoint"):
            if self.training_arguments.get(name) not in (None, "auto"):
                faults.append(f"seeds: got {name} as well. Remove one of the two.")
        raise_faults(faults)
        return seeds

    @property
    def seed(self) -> int:
        """The random seed, the first one of several."""
        if seeds := self.seeds:
            return seeds[0]
        seed = self.training_arguments.get("seed")
        return 42 if seed is None else int(seed)

    def with_options(self, **options: Any) -> "TrainJob":
        """This job with other values for some fields of its config, the Trainer or the method.

        Raises:
            UserError: For a name that is none of these, and for each wrong type.
        """
        types = option_types(TrainConfig)
        arguments = [Argument(n, v, n, is_typed=False) for n, v in options.items() if n in types]
        values, faults = convert_arguments(arguments, types)
        raise_faults(faults)
        config: dict[str, Any] = {n: values.get(n) for n in options if n in types}
        others = {name: value for name, value in options.items() if name not in types}
        method = config.get("method") or self.config.method
        training_arguments, method_options = convert_options(method, others)
        return dataclasses.replace(
            self,
            config=dataclasses.replace(self.config, **config),
            training_arguments={**self.training_arguments, **training_arguments},
            method_options={**self.method_options, **method_options},
        )


@dataclass(frozen=True)
class ResolvedJob:
    """A training with every option decided, as `training/resolve.py` returns it.

    Attributes:
        job: What was requested.
        config: Model, method and head; no field is `auto` that the model or the data decide.
        data: The data set; for examples in memory its name is `in_memory`.
        training_args: For the Trainer, but for the directory of its checkpoints.
        method: How the model is made trainable.
        method_options: The method's options (PEFT's config for its methods).
        explicit_options: The method's options that the user or the recipe sets.
        source: The base model, up to the layer that the head reads.
        model_config: Its configuration.
        max_length: Maximum tokens of an example, without virtual tokens.
        output_dir: Directory of the Run.
        push_to_hub: Whether the Run is published when it is written.
        keep_checkpoints: Whether checkpoints stay in the Run.
        explicit: Names of the options that the user gave.
    """

    job: TrainJob
    config: TrainConfig
    data: DataConfig
    training_args: "TrainingArguments"
    method: "Method"
    method_options: Any
    explicit_options: Mapping[str, Any]
    source: "ModelSource"
    model_config: "PretrainedConfig"
    max_length: int
    output_dir: Path
    push_to_hub: bool
    keep_checkpoints: bool
    explicit: frozenset[str]


def split_options(method: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split converted options into fields of `TrainingArguments` and a method's options.

    Args:
        method: Name of the method.
        values: Values by name, mixed. None removes a value of the recipe. Others are ignored.
    Raises:
        UserError: For an unknown method.
    """
    from transformers import TrainingArguments

    from peft_mrpc.methods.registry import find_method

    types = option_types(TrainingArguments), find_method(method).option_types()
    training_arguments, method_options = (
        {name: values[name] for name in names if name in values} for names in types
    )
    return training_arguments, method_options


def convert_options(
    method: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert the options of a Python caller, and split them as `split_options` does.

    Args:
        method: Name of the method.
        options: Values by name, mixed.
    Returns:
        The fields of `TrainingArguments`, and the method's options.
    Raises:
        UserError: For an unknown method; for each unknown name and wrong type.
    """
    from transformers import TrainingArguments

    from peft_mrpc.methods.registry import find_method, option_owners

    annotations = {**find_method(method).option_types(), **option_types(TrainingArguments)}
    owners = {**option_owners(), **dict.fromkeys(option_types(TrainConfig), "TrainConfig")}
    arguments = [Argument(name, value, name, is_typed=False) for name, value in options.items()]
    values, faults = convert_arguments(arguments, annotations, owners)
    raise_faults(faults)
    return split_options(method, {**dict.fromkeys(options), **values})
