"""What a command was asked to do: dataclasses whose fields are flags, recipe keys and help."""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml

from peft_mrpc.errors import UserError, closest, one_line, raise_faults

DEFAULT_CLASSIFIER = "bert-base-uncased"
DEFAULT_CAUSAL_LM = "meta-llama/Llama-3.1-8B-Instruct"

# The TrainingArguments shown in `train --help`, in our words; all the others are accepted too.
SHOWN_TRAINING_ARGUMENTS = {
    "output_dir": "where the Run goes (runs/DATASET-MODEL-METHOD if not given)",
    "learning_rate": "peak learning rate",
    "num_train_epochs": "passes over the training pairs",
    "per_device_train_batch_size": "training pairs a step and process",
    "per_device_eval_batch_size": "pairs in one forward pass when scoring",
    "seed": "fixes the head, the order of the pairs and dropout",
    "bf16": "mixed precision, where the hardware has it",
    "label_smoothing_factor": "share of each label spread over all of them in the loss",
    "eval_strategy": "no, epoch or steps: watch the held-out part of train as it trains",
    "load_best_model_at_end": "end with the checkpoint that was best on the held-out part",
    "metric_for_best_model": "what best means: loss, accuracy, f1 (of all labels) or roc_auc",
    "report_to": "trackers: tensorboard, wandb, mlflow, trackio, none",
    "push_to_hub": "publish the Run when it is written",
    "hub_model_id": "owner/name for --push_to_hub",
    "hub_private_repo": "make the new repository private",
    "resume_from_checkpoint": "checkpoint directory to go on from",
}


def option(default: Any, help: str) -> Any:
    """A dataclass field that is also a flag."""
    return field(default=default, metadata={"help": help})


@dataclass
class DataConfig:
    """Which pairs, and which of their columns."""

    _argument_group_name = "data"

    dataset: str = option(
        "mrpc",
        "mrpc (from the Hub), builtin:pairs, a Hub data set owner/name[:config], a directory in "
        "GLUE's layout (train.tsv, dev.tsv, test.tsv), or 'files' with --train_file and its kin",
    )
    train_file: str | None = option(None, "csv, tsv, jsonl or parquet file of training pairs")
    validation_file: str | None = option(None, "the same for the validation split")
    test_file: str | None = option(None, "the same for the test split")
    sentence1_column: str | None = option(None, "column of the first sentence (found if usual)")
    sentence2_column: str | None = option(None, "column of the second sentence (found if usual)")
    label_column: str | None = option(None, "column of the label (found if usual)")
    class_names: str | None = option(
        None, "names of labels 0, 1, ..., comma-separated; the last of two is the positive class"
    )
    max_train_samples: int | None = option(None, "train on this many pairs, drawn by --seed")
    max_eval_samples: int | None = option(None, "score only the first so many pairs of a split")
    split: str | None = option(
        None, "splits to score and report, comma-separated (default: validation and test)"
    )


@dataclass
class TrainConfig:
    """How a classifier is adapted."""

    _argument_group_name = "training"

    method: str = option(
        "layer_freeze",
        "strategy: full, layer_freeze, linear_probe, bitfit, ln_tuning, ia3, vera, lora, dora, "
        "oft, prompt_tuning, p_tuning or prefix_tuning",
    )
    model: str = option(
        DEFAULT_CLASSIFIER, "Hub id, local directory, builtin:minilm or builtin:smollm2"
    )
    pooling: str = option(
        "native",
        "what the head reads: native (the architecture's own head), or ours over cls, first, mean, "
        "last, segments (each sentence's mean, their difference and product) or aligned (each "
        "token beside its like in the other sentence); auto is aligned where the tokenizer "
        "separates the sentences, last where it does not",
    )
    head_learning_rate: float | None = option(
        None, "the head's own learning rate (--learning_rate if not given)"
    )
    quantization: str = option(
        "none", "the frozen base in none, nf4, fp4 or int8 (bitsandbytes); adapter and head in fp32"
    )
    dropout: float | None = option(
        None, "dropout in encoder and head while training (the checkpoint's own if not given)"
    )
    swap_sentences: bool = option(
        False, "train on each pair in either order, by chance: for a question without a direction"
    )
    selection_fraction: float = option(
        0.1,
        "share of the training pairs held out for what is chosen: early stopping, the best "
        "checkpoint, a threshold, tune's trials",
    )
    early_stopping_patience: int | None = option(
        None, "stop after so many evaluations without progress, and keep the best checkpoint"
    )
    threshold: str = option(
        "0.5",
        "probability above which the last of two labels is predicted; auto chooses it on the "
        "held-out part of train",
    )
    class_weights: str = option(
        "none", "each label's weight in the loss: none, balanced, or numbers such as 0.7,0.3"
    )
    focal_gamma: float = option(
        0.0, "turn the loss to the pairs that are still wrong (focal loss); 0 is cross-entropy"
    )
    max_length: int = option(128, "tokens of a pair, special and virtual tokens included")
    seeds: list[str] | None = option(  # noqa: RUF009 - a list as a type, None as the default
        None, "train once with each of these (1,2,3), and report mean and standard deviation"
    )
    base_model_id: str | None = option(
        None, "Hub id that a published adapter names as its base, for a --model that is a directory"
    )
    config: str | None = option(None, "recipe: a YAML file of any of these flags")
    overwrite: bool = option(False, "replace the Run in --output_dir")
    dry_run: bool = option(False, "check everything, say what would train, write nothing")


@dataclass
class HardPromptConfig:
    """How a causal LM is asked."""

    _argument_group_name = "hard prompt"

    model: str = option(DEFAULT_CAUSAL_LM, "Hub id, local directory or builtin:smollm2")
    template: str = option("paraphrase", "name of a packaged template, or a YAML file")
    quantization: str = option("nf4", "none, nf4, fp4 or int8 (bitsandbytes)")
    batch_size: int = option(16, "pairs in one forward pass")
    max_length: int = option(2048, "tokens of a prompt; a longer one is an error, never cut")
    output_dir: str | None = option(None, "where the Run goes (default: runs/DATASET-...)")
    base_model_id: str | None = option(
        None, "Hub id that a published card names, for a --model that is a local directory"
    )
    config: str | None = option(None, "recipe: a YAML file of any of these flags")
    seed: int = option(42, "recorded; scoring itself is deterministic")
    overwrite: bool = option(False, "replace the Run in --output_dir")
    push_to_hub: bool = option(False, "publish the Run when it is written")
    hub_model_id: str | None = option(None, "owner/name for --push_to_hub")
    hub_private_repo: bool = option(False, "make the new repository private")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with each flag spelled once and only the defaults that say something."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flag = action.option_strings[-1 if action.dest == "help" else 0]
        # A switch needs no value, everything else does.
        takes_value = action.nargs != 0 and not isinstance(action.const, bool)
        return f"{flag} {(action.metavar or 'X')}" if takes_value else flag

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, False, argparse.SUPPRESS) or "default" in str(action.help)
        return action.help if silent else super()._get_help_string(action)


def flag_names(*dataclass_types: type) -> set[str]:
    """Names of all flags that these dataclasses define."""
    return {f.name for kind in dataclass_types for f in dataclasses.fields(kind) if f.init}


def parse_known_flags(
    prog: str,
    description: str,
    dataclass_types: Sequence[type],
    argv: Sequence[str],
    shown_defaults: Mapping[str, Any],
    positional: Mapping[str, Any] | None = None,
) -> tuple[list[Any], list[str]]:
    """Parse flags into one instance of each dataclass, through transformers' HfArgumentParser.

    Returns:
        The instances (with `positional`, a namespace of what stood without a flag as well), and
        the tokens of flags that none of the dataclasses know.
    Raises:
        UserError: If a value has the wrong type or an instance refuses its values.
    """
    from transformers import HfArgumentParser, TrainingArguments

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{prog}: {message}. See {prog} --help.")

    parser = Parser(
        list(dataclass_types),  # type: ignore[arg-type]
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    if positional:
        parser.add_argument(**positional)
    for action in parser._actions:
        action.default = shown_defaults.get(action.dest, action.default)
    parser.usage = (
        f"peft-mrpc {prog}{' ' + positional['metavar'] if positional else ''} [--FLAG VALUE ...]"
    )
    if TrainingArguments in dataclass_types:
        parser._optionals.title = "training arguments"
        _shorten_help(parser, flag_names(TrainingArguments))
    try:
        *instances, rest = parser.parse_args_into_dataclasses(
            list(argv), look_for_args_file=False, return_remaining_strings=True
        )
    except (ValueError, TypeError, ImportError) as error:  # raised in a __post_init__
        raise UserError(f"{prog}: {one_line(error)}") from error
    return instances, rest


def _shorten_help(parser: argparse.ArgumentParser, names: set[str]) -> None:
    """Show the best-known TrainingArguments in the help, each on one line."""
    for action in parser._actions:
        if action.dest in names:
            # The `--no_X` twins of boolean flags share their dest.
            is_twin = any("--no_" in flag for flag in action.option_strings)
            ours = None if is_twin else SHOWN_TRAINING_ARGUMENTS.get(action.dest)
            action.help = ours or argparse.SUPPRESS
    parser.epilog = (
        "Every other option of transformers.TrainingArguments is accepted as it is, and so are "
        "the options of the chosen method (`--num_unfrozen_layers 2`, `--r 16`, "
        "`--num_virtual_tokens 20`, ...)."
    )


def parse_flags(
    prog: str,
    description: str,
    dataclass_types: Sequence[type],
    argv: Sequence[str],
    recipes: Sequence[Mapping[str, Any]] = (),
    method_options: Mapping[str, Any] | None = None,
    other_flags: Mapping[str, str] | None = None,
    positional: Mapping[str, Any] | None = None,
) -> tuple[list[Any], dict[str, Any]]:
    """Parse a whole command line; recipes come first, so that a flag overrides them.

    Args:
        prog: Name shown in errors.
        description: First line of the help.
        dataclass_types: The dataclasses whose fields are flags.
        argv: What the user typed.
        recipes: Mappings of flag names to values, weakest first.
        method_options: The method's options, which are flags too, with their defaults.
        other_flags: Flags known elsewhere, with what they belong to, for a better hint.
        positional: `add_argument` options of what stands without a flag.
    Returns:
        One instance of each dataclass (and a namespace, with `positional`), and the method's
        options that were given.
    Raises:
        UserError: Naming every unknown flag, with the nearest known one.
    """
    tokens = [token for recipe in recipes for token in recipe_to_flags(recipe)]
    defaults = {name: value for recipe in recipes for name, value in recipe.items()}
    instances, rest = parse_known_flags(
        prog, description, dataclass_types, [*tokens, *argv], defaults, positional
    )
    method_options = method_options or {}
    known = flag_names(*dataclass_types) | set(method_options)
    options: dict[str, Any] = {}
    faults: list[str] = []
    for name, values in _group_tokens(rest, faults):
        if name in method_options:
            options[name] = _parse_option(name, values, method_options[name], faults)
        elif other_flags and name in other_flags:
            faults.append(f"--{name}: got an option of {other_flags[name]}; drop it here.")
        else:
            faults.append(f"--{name}: got an unknown flag.{closest(name, known)}")
    raise_faults(faults)
    return instances, options


def _group_tokens(tokens: Sequence[str], faults: list[str]) -> list[tuple[str, list[str]]]:
    groups: list[tuple[str, list[str]]] = []
    takes_more = False
    for token in tokens:
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            groups.append((name.replace("-", "_"), [value] if equals else []))
            takes_more = not equals
        elif takes_more:
            groups[-1][1].append(token)
        else:
            faults.append(f"got {token!r}; expected a flag (--NAME VALUE).")
    return groups


def _parse_option(name: str, values: list[str], default: Any, faults: list[str]) -> Any:
    parsed = [parse_scalar(value) for value in values]
    value = True if not parsed else parsed[0] if len(parsed) == 1 else parsed
    for kind in (bool, int, float):
        # bool is an int in Python, so the first matching kind of the default decides.
        if isinstance(default, kind):
            allowed = (int, float) if kind is float else (kind,)
            if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
                faults.append(f"--{name}: got {value!r}; expected {kind.__name__}.")
            break
    return value


def parse_scalar(text: str) -> Any:
    """Read one value as YAML does, and `2e-5`, a string to PyYAML, as the number it is."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return text
    return value


def typed_flags(argv: Sequence[str]) -> dict[str, Any]:
    """A command line as a recipe, before it can be parsed: numbers as such, all else as typed."""
    flags: dict[str, Any] = {}
    for name, texts in _group_tokens(argv, []):
        values = [v if type(v := parse_scalar(text)) in (int, float) else text for text in texts]
        flags[name] = values if len(values) > 1 else values[0] if values else True
    return flags


def recipe_to_flags(recipe: Mapping[str, Any]) -> list[str]:
    """Write a recipe as command-line tokens, so that one parser reads both."""
    tokens: list[str] = []
    for name, value in recipe.items():
        if value is None:
            continue
        if isinstance(value, list):
            tokens += [f"--{name}", *map(str, value)]
        elif isinstance(value, Mapping):
            tokens.append(
                f"--{name}={yaml.safe_dump(dict(value), default_flow_style=True).strip()}"
            )
        else:
            tokens.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    return tokens


def load_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of flags.

    Raises:
        UserError: If the file is missing, is not YAML, or is no mapping of names to values.
    """
    recipe = read_yaml(path, "--config", "`name: value` lines, one for each flag")
    if "config" in recipe:
        raise UserError(f"{path}: got a key 'config'; a recipe names no other.")
    return recipe


def read_yaml(path: str | Path, flag: str, expected: str) -> dict[str, Any]:
    """Read a YAML file of names and what they stand for.

    Args:
        path: The file.
        flag: The flag that named it, for the message.
        expected: What it should hold, for the message.
    Raises:
        UserError: If the file is missing, is not YAML, or is no mapping of names.
    """
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{flag}: got {str(path)!r}; expected a readable YAML file. {one_line(error)}"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: expected {expected}.")
    return cast(dict[str, Any], content)


def config_record(*instances: Any) -> dict[str, Any]:
    """All fields of some configs as one JSON-ready mapping, without what is only machinery."""
    record: dict[str, Any] = {}
    for instance in instances:
        values = instance.to_dict() if hasattr(instance, "to_dict") else vars(instance)
        record |= {key: value for key, value in values.items() if not key.startswith("_")}
    for machinery in ("config", "dry_run", "hub_token", "logging_dir", "output_dir", "overwrite"):
        record.pop(machinery, None)
    return record


def record_key(record: Mapping[str, Any]) -> str:
    """A short name for a record: the same only for the same content."""
    text = json.dumps(record, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """The last value given for a flag, before the whole line can be parsed."""
    value = None
    for position, token in enumerate(argv):
        if token == f"--{name}" and position + 1 < len(argv):
            value = argv[position + 1]
        elif token.startswith(f"--{name}="):
            value = token.split("=", 1)[1]
    return value
