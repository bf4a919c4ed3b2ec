"""The command line of every verb that trains, and all that can be wrong with its flags."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from peft_mrpc import config as cfg
from peft_mrpc.config import DataConfig, TrainConfig
from peft_mrpc.errors import choice_faults, one_line, raise_faults
from peft_mrpc.flags import flag_value, load_recipe, parse_flags, typed_flags
from peft_mrpc.losses import loss_faults
from peft_mrpc.methods import Method, find_method, load_default_recipe, method_flags
from peft_mrpc.optimizer_faults import number_faults, schedule_faults
from peft_mrpc.pair_model import POOLINGS, PROMPT_POSITIONS
from peft_mrpc.precision import keep_off, precision_defaults
from peft_mrpc.quantization import QUANTIZATIONS
from peft_mrpc.selection import implied_arguments, selection_faults
from peft_mrpc.trunk_plan import trunk_faults

MAX_SEED = (1 << 32) - 1
SWAPS = ("auto", "true", "false")
# What train and doctor ask about a model.
MODEL_CHOICES: dict[str, Sequence[str]] = {
    "pooling": ("auto", "native", *POOLINGS),
    "prompt_position": PROMPT_POSITIONS,
    "quantization": QUANTIZATIONS,
}
TRAIN_DESCRIPTION = "Adapt a pretrained model to sentence-pair classification and write a Run."
# Methods that leave whole layers as they are.
FREEZING = ("layer_freeze", "linear_probe")
FITTED_RATES = {"learning_rate", "head_learning_rate", "layer_decay"}


@dataclass(frozen=True)
class TrainRequest:
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
    num_trainings: int = 1  # on these pairs: this one, and those of the same process after it


def argument_faults(config: TrainConfig, arguments: TrainingArguments) -> list[str]:
    """What is wrong with flags before any data or model is looked at."""
    faults = []
    if arguments.hub_token:
        faults.append("--hub_token: got a token; log in with `hf auth login` or set HF_TOKEN.")
    if arguments.push_to_hub and not arguments.hub_model_id:
        faults.append("--push_to_hub: got no --hub_model_id; expected owner/name.")
    if config.max_length < 8:
        faults.append(f"--max_length: got {config.max_length}; expected at least 8 tokens.")
    faults += choice_faults(config, {**MODEL_CHOICES, "swap_sentences": SWAPS})
    faults += head_layer_faults(config.head_layer)
    if config.dropout is not None and not 0 <= config.dropout < 1:
        faults.append(f"--dropout: got {config.dropout}; expected 0 or more and below 1.")
    faults += _rate_faults(config, arguments)
    if (step := config.pad_to_multiple_of) is not None and step < 1:
        faults.append(f"--pad_to_multiple_of: got {step}; expected at least 1.")
    counts = ("per_device_train_batch_size", "per_device_eval_batch_size")
    for name in (*counts, "gradient_accumulation_steps"):
        if getattr(arguments, name) < 1:
            faults.append(f"--{name}: got {getattr(arguments, name)}; expected at least 1.")
    if arguments.max_steps != -1 and arguments.max_steps < 1:
        faults.append(f"--max_steps: got {arguments.max_steps}; expected at least 1.")
    faults += [
        f"--{name}: got {seed}; expected 0 to {MAX_SEED}."
        for name, seed in (("seed", arguments.seed), ("data_seed", arguments.data_seed))
        if seed is not None and not 0 <= seed <= MAX_SEED
    ]
    if arguments.fp16 and not torch.accelerator.is_available():
        faults.append("--fp16: got true, but there is no GPU here; drop it.")
    faults += selection_faults(config, arguments) + trunk_faults(config)
    faults += loss_faults(
        config.class_weights, config.focal_gamma, arguments.label_smoothing_factor
    )
    return faults + [
        *number_faults(arguments),
        *_tracker_faults(arguments),
        *_checkpoint_faults(arguments),
    ]


def head_layer_faults(head_layer: str) -> list[str]:
    """What is wrong with the flag, whatever the model."""
    if head_layer in ("auto", "last") or (head_layer.isdecimal() and int(head_layer) > 0):
        return []
    return [
        f"--head_layer: got {head_layer!r}; expected the number of a layer from 1 on, last or auto."
    ]


def _rate_faults(config: TrainConfig, arguments: TrainingArguments) -> list[str]:
    faults = []
    if config.layer_decay is not None and not 0 < config.layer_decay <= 1:
        faults.append(f"--layer_decay: got {config.layer_decay}; expected above 0 and at most 1.")
    rates = {"learning_rate": arguments.learning_rate}
    if config.head_learning_rate is not None:
        rates["head_learning_rate"] = config.head_learning_rate
    if arguments.max_steps == -1:
        rates["num_train_epochs"] = arguments.num_train_epochs
    return faults + [
        f"--{name}: got {value}; expected a number above 0."
        for name, value in rates.items()
        if not (math.isfinite(value) and value > 0)
    ]


def _tracker_faults(arguments: TrainingArguments) -> list[str]:
    names = [name for name in arguments.report_to or [] if name not in ("none", "all")]
    try:
        get_reporting_integration_callbacks(names)
    except ValueError as error:
        return [f"--report_to: {one_line(error)}"]
    available = get_available_reporting_integrations()
    return [
        f"--report_to: got {name!r}, which is not installed. Next: pip install {name}"
        for name in names
        if name not in available
    ]


def _checkpoint_faults(arguments: TrainingArguments) -> list[str]:
    faults = []
    checkpoint = arguments.resume_from_checkpoint
    if checkpoint is not None and not (Path(checkpoint) / "trainer_state.json").is_file():
        faults.append(
            f"--resume_from_checkpoint: got {checkpoint!r}, which holds no trainer_state.json; "
            "expected a directory checkpoint-N."
        )
    return faults


def parse_request(argv: Sequence[str]) -> TrainRequest:
    """Parse flags over the user's recipe over the method's default recipe.

    Raises:
        UserError: For unknown flags and methods, wrong values, flags that cannot stand together.
    """
    return parse_command(argv, "train", TRAIN_DESCRIPTION, ())[0]


def parse_command(
    argv: Sequence[str], verb: str, description: str, own: Sequence[type]
) -> tuple[TrainRequest, list[Any]]:
    """Parse the command line of a verb that trains, with flags of its own beside those of train.

    A `null` in the user's recipe takes the line of the method's recipe away.

    Returns:
        What to train, and an instance of each dataclass in `own`.
    """
    path = flag_value(argv, "config")
    recipe = load_recipe(path) if path else {}
    name = flag_value(argv, "method") or recipe.get("method") or cfg.TrainConfig.method
    method = find_method(str(name))
    dropped = {key for key, value in recipe.items() if value is None}
    default = {k: v for k, v in load_default_recipe(str(name)).items() if k not in dropped}
    asked = {k: v for k, v in {**recipe, **typed_flags(argv)}.items() if v is not None}
    is_saving_asked = "save_strategy" in asked
    implied = implied_arguments({**default, **asked}, is_saving_asked)
    implied |= precision_defaults(asked)
    (*mine, config, data, arguments), given = parse_flags(
        verb,
        description,
        (*own, cfg.TrainConfig, cfg.DataConfig, TrainingArguments),
        argv,
        [{**default, **implied}, recipe],
        method.option_types(),
        method_flags(),
        recipe_path=path,
    )
    keep_off(arguments, asked)
    raise_faults(settle_seeds(config, arguments, argv, recipe) + argument_faults(config, arguments))
    publish_it = arguments.push_to_hub
    # The Trainer would upload its own folder; the Run is published whole, at the end, by us.
    arguments.push_to_hub = False
    options = method.build_options(given)
    faults = _idle_faults(verb, config, arguments, options, set(asked))
    raise_faults(faults + schedule_faults(arguments, getattr(options, "unfreeze_every", None)))
    if not method.is_peft:  # PEFT saves all of its config beside the adapter
        given = dict(vars(options))
    # TrainingArguments fills in a name of its own, so what was typed is asked for.
    given_dir = flag_value(argv, "output_dir") or recipe.get("output_dir")
    default_dir = default_output_dir(config.method, config.model, data)
    if verb != "train":
        default_dir = default_dir.replace("runs/", f"runs/{verb}-", 1)
    output_dir = Path(str(given_dir or default_dir)).expanduser()
    return TrainRequest(
        *(config, data, arguments, method, options, given, output_dir, publish_it),
        keep_checkpoints=is_saving_asked,
        recipe_rates=frozenset(FITTED_RATES - dropped - set(asked)),
    ), mine


def _idle_faults(
    verb: str, config: TrainConfig, arguments: TrainingArguments, options: Any, asked: set[str]
) -> list[str]:
    """Flags that were given where nothing would heed them."""
    faults = []
    in_no_layer = (
        config.method == "linear_probe"
        or getattr(options, "is_prompt_learning", False)
        or getattr(options, "num_unfrozen_layers", None) == 0
    )
    if "layer_decay" in asked and config.layer_decay is not None and in_no_layer:
        faults.append(
            f"--layer_decay: got {config.layer_decay}, but {config.method} trains nothing in a "
            "layer; drop it."
        )
    if arguments.neftune_noise_alpha and getattr(options, "is_prompt_learning", False):
        faults.append(
            f"--neftune_noise_alpha: got {arguments.neftune_noise_alpha:g}, but transformers does "
            f"not find the word embeddings under {config.method}; drop it, or use lora."
        )
    is_kept = "trunk_cache" in asked and config.trunk_cache in ("disk", "memory")
    if is_kept and config.method not in FREEZING:
        faults.append(
            f"--trunk_cache: got {config.trunk_cache!r}, but {config.method} has no frozen "
            f"layers to run once; expected auto or off, or --method {' or '.join(FREEZING)}."
        )
    if verb != "train":  # tune's trials are chosen on the held-out part
        return faults
    is_judged = arguments.eval_strategy != "no"
    if "selection_fraction" in asked and not is_judged and config.threshold != "auto":
        faults.append(
            f"--selection_fraction: got {config.selection_fraction}, but nothing is chosen on a "
            "part of train; add --eval_strategy epoch, --early_stopping_patience or --threshold "
            "auto, or drop it."
        )
    keeps_best = arguments.load_best_model_at_end or arguments.save_strategy == "best"
    if "metric_for_best_model" in asked and not keeps_best and config.threshold != "auto":
        faults.append(
            f"--metric_for_best_model: got {arguments.metric_for_best_model}, but nothing is "
            "chosen by it; add --load_best_model_at_end or --threshold auto, or drop it."
        )
    return faults


def default_output_dir(method: str, model: str, data: cfg.DataConfig) -> str:
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
