"""The configuration of each command: dataclasses whose fields are options, YAML keys and help."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

DEFAULT_CLASSIFIER = "bert-base-uncased"
DEFAULT_CAUSAL_LM = "meta-llama/Llama-3.1-8B-Instruct"
# Name of data that is passed as objects, in `run.json`.
IN_MEMORY = "in_memory"
# NumPy's generators accept seeds up to this one.
MAX_SEED = (1 << 32) - 1

# Fields of TrainConfig that a method's recipe may set, with the value where neither the user nor
# the recipe sets them.
TRAIN_DEFAULTS: dict[str, Any] = {
    "pooling": "native",
    "head_layer": "last",
    "head_learning_rate": None,
    "layer_decay": None,
    "sam_rho": 0.0,
    "dropout": None,
    "swap_sentences": "auto",
}

# The TrainingArguments in the short help of the commands that train. All others are accepted too.
COMMON_TRAINING_ARGUMENTS = {
    "output_dir": "directory of the Run (default: runs/DATASET-MODEL-METHOD)",
    "learning_rate": "peak learning rate",
    "num_train_epochs": "number of training epochs",
    "per_device_train_batch_size": "training batch size per process",
    "per_device_eval_batch_size": "evaluation batch size per process",
    "seed": "random seed (default: 42)",
    "bf16": "bfloat16 mixed precision (default: if the hardware supports it)",
    "eval_strategy": "no, epoch or steps: evaluate while training, on a part of train",
    "load_best_model_at_end": "keep the checkpoint with the best metric_for_best_model",
    "report_to": "tensorboard, wandb, mlflow, trackio or none",
    "push_to_hub": "upload the Run to the Hub repository hub_model_id",
    "resume_from_checkpoint": "checkpoint to continue from (default: auto, of this command)",
}


def option(default: Any, help: str, *, common: bool = False) -> Any:
    """A dataclass field that is an option of a command.

    Args:
        default: Its default value.
        help: One sentence for `--help`.
        common: Whether the short help shows it; `--help_all` shows every option.
    """
    return field(default=default, metadata={"help": help, "common": common})


@dataclass(frozen=True)
class DataConfig:
    """A data set and its columns."""

    group: ClassVar[str] = "data"

    dataset: str = option(
        "mrpc",
        "mrpc, builtin:pairs, Hub id or GLUE directory",
        common=True,
    )
    train_file: str | None = option(None, "csv, tsv, jsonl or parquet file", common=True)
    validation_file: str | None = option(None, "file of the validation split", common=True)
    test_file: str | None = option(None, "file of the test split", common=True)
    sentence1_column: str | None = option(
        None, "column of the first sentence (default: the usual names)"
    )
    sentence2_column: str | None = option(
        None, "column of the second sentence (default: the usual names)"
    )
    label_column: str | None = option(None, "column of the label (default: the usual names)")
    class_names: str | None = option(
        None,
        "label names by index, comma-separated; the last of two is positive",
        common=True,
    )
    drop_invalid_rows: bool = option(
        False,
        "drop training rows without a label, and rows with an empty or invalid sentence",
    )
    max_train_samples: int | None = option(
        None, "truncate train to this many examples, sampled with seed"
    )
    max_eval_samples: int | None = option(
        None, "truncate each evaluation split to its first examples"
    )
    split: str | None = option(
        None, "splits to evaluate, comma-separated (default: validation,test)", common=True
    )


@dataclass(frozen=True)
class TrainConfig:
    """A model, the method that adapts it, and its classification head.

    A field that is None takes the value of the method's recipe, or else of `TRAIN_DEFAULTS`.
    """

    group: ClassVar[str] = "training"

    method: str = option(
        "layer_freeze",
        "full, layer_freeze, linear_probe, bitfit, ln_tuning, ia3, vera, lora, dora, oft, "
        "prompt_tuning, p_tuning or prefix_tuning",
        common=True,
    )
    model: str = option(
        DEFAULT_CLASSIFIER,
        "Hub id, directory, builtin:minilm or :smollm2",
        common=True,
    )
    pooling: str | None = option(
        None,
        "input of the head: native (the architecture's own head), cls, first, mean, last, "
        "segments, aligned, weighted, or auto (aligned or weighted, by the method)",
    )
    head_layer: str | None = option(
        None,
        "layer that the head reads, without those above it: a number, last, or auto (two thirds of "
        "the depth for aligned and weighted)",
    )
    prompt_position: str = option(
        "before", "position of virtual tokens with our heads: before [CLS], or after it"
    )
    head_learning_rate: float | None = option(
        None, "learning rate of the head (default: learning_rate)"
    )
    layer_decay: float | None = option(
        None, "learning rate of a layer, divided by that of the layer above it"
    )
    sam_rho: float | None = option(
        None, "radius of sharpness-aware minimization (0: off), which doubles the time of a step"
    )
    quantization: str = option(
        "none", "quantize the base model: none, nf4, fp4 or int8", common=True
    )
    dropout: float | None = option(
        None, "dropout probability of encoder and head (default: the checkpoint's)"
    )
    attention: str | None = option(
        "auto",
        "attention implementation while training: eager, sdpa, ..., or auto (the model's; eager "
        "on a CPU in bf16)",
    )
    swap_sentences: str | None = option(
        None,
        "swap the sentences of a training example with probability 0.5: true, false, or auto (if "
        "the label names are symmetric, such as equivalent or duplicate)",
    )
    selection_fraction: float = option(
        0.1, "fraction of train that becomes the validation split for model selection"
    )
    early_stopping_patience: int | None = option(
        None, "stop after this many evaluations without improvement", common=True
    )
    threshold: str = option(
        "0.5",
        "minimum probability of the second label, or auto",
        common=True,
    )
    class_weights: str = option(
        "none", "weights of the labels in the loss: none, balanced, or numbers such as 0.7,0.3"
    )
    max_length: int = option(
        128, "maximum tokens of an example, special ones included", common=True
    )
    pad_to_multiple_of: int | None = option(
        None, "pad training batches to a multiple of this length (default: 8 in 16-bit precision)"
    )
    activation_cache: str = option(
        "auto",
        "run frozen first layers once per example, and train on their activations: auto, on, off",
    )
    seeds: tuple[int, ...] | None = option(
        None, "train once per seed (1,2,3); report mean and standard deviation", common=True
    )
    base_model_id: str | None = option(
        None, "Hub id to publish as the base model, if model is a local directory"
    )
    trust_remote_code: bool = option(
        False, "run the Python code of a model whose architecture is not in transformers"
    )
    allow_pickle: bool = option(
        False, "load weights from pickle files (.bin), which can execute code"
    )
    config: str | None = option(None, "YAML file of options; the command line wins", common=True)
    overwrite: bool = option(False, "replace the Run in output_dir", common=True)
    dry_run: bool = option(False, "validate everything, print the plan, write nothing", common=True)


@dataclass(frozen=True)
class PromptConfig:
    """A causal LM, its prompt, and how its scores become probabilities."""

    group: ClassVar[str] = "hard prompt"

    model: str = option(
        DEFAULT_CAUSAL_LM, "Hub id, local directory or builtin:smollm2", common=True
    )
    template: str = option(
        "paraphrase",
        "packaged templates or YAML files, comma-separated, or all; several are averaged",
        common=True,
    )
    endpoint: str | None = option(
        None,
        "URL of an OpenAI-compatible server (key: OPENAI_API_KEY)",
        common=True,
    )
    num_demonstrations: int = option(
        0, "labelled training examples in each prompt (few-shot)", common=True
    )
    demonstrations: str = option(
        "balanced",
        "balanced (a random sample) or first (of train)",
        common=True,
    )
    calibration: str = option(
        "none",
        "none, contextual, batch or affine (fitted on train)",
        common=True,
    )
    label_prior: str = option(
        "none", "match the predicted label frequencies: none, uniform, or train (those of train)"
    )
    num_calibration_pairs: int = option(
        400, "training examples for affine calibration, sampled with seed"
    )
    quantization: str = option("nf4", "none, nf4, fp4 or int8 (bitsandbytes)", common=True)
    device_map: str = option(
        "replica", "replica: the whole model in each process; auto: split it over all GPUs"
    )
    batch_size: int = option(16, "maximum batch size; smaller if memory runs out", common=True)
    batch_tokens: int = option(8192, "maximum tokens in a batch, the shared prefix excluded")
    share_prefix: bool = option(
        True, "compute the common prefix of all prompts (instruction, demonstrations) once"
    )
    max_length: int = option(4096, "maximum prompt length in tokens; longer prompts are an error")
    output_dir: str | None = option(
        None, "directory of the Run (default: runs/DATASET-MODEL-...)", common=True
    )
    base_model_id: str | None = option(
        None, "Hub id to publish as the base model, if model is a local directory"
    )
    trust_remote_code: bool = option(
        False, "run the Python code of a model whose architecture is not in transformers"
    )
    allow_pickle: bool = option(
        False, "load weights from pickle files (.bin), which can execute code"
    )
    config: str | None = option(None, "YAML file of options; the command line wins", common=True)
    seed: int = option(42, "random seed of demonstrations and calibration examples", common=True)
    overwrite: bool = option(False, "replace the Run in output_dir", common=True)
    dry_run: bool = option(False, "validate everything, print the first prompts", common=True)
    push_to_hub: bool = option(False, "upload the Run to the Hub", common=True)
    hub_model_id: str | None = option(None, "owner/name for push_to_hub", common=True)
    hub_private_repo: bool = option(False, "create a private repository")


@dataclass(frozen=True)
class CompareConfig:
    """What a comparison of Runs computes, and where the report goes."""

    group: ClassVar[str] = "comparison"

    output_dir: str = option("comparison", "directory of the report", common=True)
    split: str | None = option(
        None,
        "split to compare on (default: test if every Run has labels for it, else validation)",
        common=True,
    )
    aggregate_seeds: bool = option(
        True,
        "aggregate Runs that differ only in their seed: mean and standard deviation",
        common=True,
    )
    equivalence_margin: float = option(
        0.02, "accuracies that differ by less are equivalent (0.02: two points)", common=True
    )
    max_examples: int = option(
        5000, "examples in the report, those with errors first (0: none)", common=True
    )
    fail_under: str | None = option(
        None,
        "exit with code 3 if a Run is below: accuracy=0.80,f1=0.6 (f1: of each label; f1.LABEL: "
        "of one)",
        common=True,
    )
    baseline: str | None = option(
        None,
        "one of the Runs; exit with code 3 if another is worse by more than no_worse_than",
        common=True,
    )
    no_worse_than: str | None = option(
        None,
        "tolerance of baseline: 0.01 (of accuracy), or f1=0.02,roc_auc=0.01,ece=0.02 "
        "(default: accuracy=0)",
        common=True,
    )
    overwrite: bool = option(False, "replace the report in output_dir", common=True)


@dataclass(frozen=True)
class PredictConfig:
    """Examples without labels, and where their predictions go."""

    group: ClassVar[str] = "prediction"

    input: str | None = option(None, "csv, tsv, jsonl or parquet file, or - (csv)", common=True)
    output: str = option("-", "file in one of these formats, or - (csv)", common=True)
    sentence1_column: str | None = option(None, "column of the first sentence", common=True)
    sentence2_column: str | None = option(None, "column of the second sentence", common=True)
    class_names: str | None = option(
        None, "label names of a model or adapter that another tool saved", common=True
    )
    endpoint: str | None = option(
        None, "URL of the server of a hard prompt's model, http://HOST:PORT/v1", common=True
    )
    trust_remote_code: bool = option(
        False, "run the Python code of a model whose architecture is not in transformers"
    )
    allow_pickle: bool = option(
        False, "load weights from pickle files (.bin), which can execute code"
    )
    batch_size: int = option(32, "batch size", common=True)
    overwrite: bool = option(False, "replace the output file", common=True)


@dataclass(frozen=True)
class PushConfig:
    """A repository on the Hub."""

    group: ClassVar[str] = "Hub"

    repo_id: str | None = option(None, "owner/name of the repository", common=True)
    private: bool = option(False, "create a private repository", common=True)
    base_model_id: str | None = option(
        None, "Hub id of the base model, if it was a local directory", common=True
    )
    dry_run: bool = option(False, "list the files, upload nothing", common=True)


@dataclass(frozen=True)
class QuickstartConfig:
    """Where the quickstart writes."""

    group: ClassVar[str] = "quickstart"

    output_dir: str = option("runs/quickstart", "directory of the Runs and the report", common=True)


@dataclass(frozen=True)
class TuneConfig:
    """A hyperparameter search."""

    group: ClassVar[str] = "search"

    num_trials: int = option(
        20, "number of trials; the same command again continues up to it", common=True
    )
    search_space: str | None = option(
        None,
        "YAML file with lines such as `r: {choices: [4, 8]}` (default: the packaged one)",
        common=True,
    )
    objective: str = option(
        "accuracy",
        "accuracy, macro_f1, roc_auc or loss on the validation split carved from train",
        common=True,
    )
    pruner: str = option(
        "median", "median: stop a trial that is worse than the median of the others", common=True
    )
    storage: str | None = option(
        None, "URL of an Optuna storage shared by several commands (default: a file)", common=True
    )


@dataclass(frozen=True)
class DoctorConfig:
    """What `doctor` describes, and the training set of a cost estimate."""

    group: ClassVar[str] = "cost estimate"

    method: str | None = option(None, "one method (default: the matrix of all methods)")
    model: str | None = option(None, "one model (default: the matrix of architectures)")
    num_examples: int | None = option(
        None, "number of training examples (default: those of the data set)", common=True
    )
    mean_tokens: int | None = option(
        None, "mean length in tokens (default: that of the data set)", common=True
    )
    estimate: bool = option(
        True,
        "with method and model: run some steps on random weights, print time and memory",
        common=True,
    )


def default_output_dir(
    method: str, model: str, data: DataConfig | Mapping[str, Any], command: str = "train"
) -> Path:
    """`runs/DATASET-MODEL-METHOD` in characters that every file system accepts.

    The name begins with the command, unless that is `train`.
    """
    if not isinstance(data, DataConfig):
        dataset = IN_MEMORY
    elif data.train_file or data.validation_file or data.test_file:
        dataset = "files"
    else:
        dataset = data.dataset
    parts = [Path(dataset).name, Path(model).name, method]
    prefix = [] if command == "train" else [command]
    return Path(
        "runs", "-".join([*prefix, *(re.sub(r"[^\w.]+", "_", p).strip("_") for p in parts)])
    )


def config_record(*configs: Any) -> dict[str, Any]:
    """All fields of some configs as one mapping for `run.json`, without paths and secrets."""
    record: dict[str, Any] = {}
    for config in configs:
        values = config.to_dict() if hasattr(config, "to_dict") else vars(config)
        record |= {key: value for key, value in values.items() if not key.startswith("_")}
    for name in ("config", "dry_run", "hub_token", "logging_dir", "output_dir", "overwrite"):
        record.pop(name, None)
    return record


def record_key(record: Mapping[str, Any]) -> str:
    """A short hash of a record's content."""
    text = json.dumps(record, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
