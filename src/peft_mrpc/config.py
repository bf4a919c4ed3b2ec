"""What a command was asked to do: dataclasses whose fields are flags, recipe keys and help."""

from dataclasses import dataclass, field
from typing import Any

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
        "last, segments (each sentence's mean, their difference and product), aligned (each token "
        "beside its like in the other sentence) or weighted (aligned, by a learned weight of each "
        "token); auto is aligned or weighted, by the method, and last where the tokenizer does not "
        "separate sentences",
    )
    head_layer: str = option(
        "last",
        "encoder layer whose output our head reads, those above it left out: a number, last, or "
        "auto, which is two thirds up for an aligned head",
    )
    prompt_position: str = option(
        "before", "where virtual tokens stand with our heads: before [CLS] or right after it"
    )
    head_learning_rate: float | None = option(
        None, "the head's own learning rate (--learning_rate if not given)"
    )
    layer_decay: float | None = option(
        None, "each layer's learning rate over that of the layer above, up to 1 (embeddings last)"
    )
    sam_rho: float = option(
        0.0,
        "sharpness-aware minimization: take each gradient so far uphill (0.05 is usual), at the "
        "price of a second pass and a copy of what trains; 0 for plain gradients",
    )
    quantization: str = option(
        "none", "the frozen base in none, nf4, fp4 or int8 (bitsandbytes); adapter and head in fp32"
    )
    dropout: float | None = option(
        None, "dropout in encoder and head while training (the checkpoint's own if not given)"
    )
    attention: str = option(
        "auto",
        "attention's implementation while training: eager, sdpa, or another of transformers'; auto "
        "is the model's own, but on a CPU eager in bf16 or with dropout",
    )
    swap_sentences: str = option(
        "auto",
        "train on each pair in either order, by chance: true, false, or auto, which is true where "
        "the labels' names say that the order does not matter (equivalent, duplicate, similar)",
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
    pad_to_multiple_of: int | None = option(
        None, "tokens that the length of a training batch is a multiple of (default: by precision)"
    )
    trunk_cache: str = option(
        "auto",
        "run layers that are frozen once for each pair and keep what they give: auto, disk, "
        "memory or off",
    )
    trunk_cache_dtype: str = option(
        "auto", "what it is kept in: auto (as computed: exact), float32, bfloat16 or float16"
    )
    trunk_cache_memory: str = option("2GB", "the most of it in memory; the rest is read from disk")
    trunk_cache_limit: str = option("20GB", "the most that may be kept on disk, of all trainings")
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
class PromptConfig:
    """How a causal LM is asked."""

    _argument_group_name = "hard prompt"

    model: str = option(DEFAULT_CAUSAL_LM, "Hub id, local directory or builtin:smollm2")
    template: str = option(
        "paraphrase",
        "packaged template or YAML file; several, comma-separated; all, all_direct or "
        "all_channel: every packaged one that answers these labels",
    )
    combine: str = option(
        "ensemble", "of several templates: ensemble (all together) or best (chosen on train)"
    )
    scoring: str = option(
        "words",
        "words: the label words' probabilities; generate: beside them, what the model writes, read "
        "for the label's word (answers.jsonl)",
    )
    endpoint: str | None = option(
        None,
        "ask a served model instead of loading --model: URL of an OpenAI-compatible API that gives "
        "log-probabilities, such as http://localhost:8000/v1 (key: OPENAI_API_KEY)",
    )
    num_demonstrations: int = option(0, "labelled training pairs shown before each question")
    demonstrations: str = option(
        "balanced",
        "which: balanced (drawn by --seed, as many of each label), first (of train) or nearest (to "
        "the pair asked about, by the embeddings of builtin:minilm)",
    )
    calibration: str = option(
        "none",
        "none, contextual (divide by the answers to pairs without content), batch (by the mean "
        "over the pairs scored) or affine (fitted to labelled training pairs)",
    )
    label_prior: str = option(
        "none", "none, uniform or train: predict each label as often (train: as it is there)"
    )
    num_calibration_pairs: int = option(
        400, "training pairs for --calibration affine and --combine best, drawn by --seed"
    )
    quantization: str = option("nf4", "none, nf4, fp4 or int8 (bitsandbytes)")
    device_map: str = option(
        "replica", "replica: the whole model in each process; auto: spread over all GPUs of one"
    )
    batch_size: int = option(16, "the most pairs in one forward pass (fewer if memory runs out)")
    batch_tokens: int = option(8192, "the most tokens in one, what all prompts share not counted")
    share_prefix: bool = option(
        True, "run what all prompts begin with (instruction, demonstrations) through the model once"
    )
    max_length: int = option(4096, "tokens of a prompt; a longer one is an error, never cut")
    output_dir: str | None = option(None, "where the Run goes (default: runs/DATASET-...)")
    base_model_id: str | None = option(
        None, "Hub id that a published card names, for a --model that is a local directory"
    )
    config: str | None = option(None, "recipe: a YAML file of any of these flags")
    seed: int = option(42, "draws demonstrations and calibration pairs; scoring is deterministic")
    overwrite: bool = option(False, "replace the Run in --output_dir")
    dry_run: bool = option(
        False, "check everything, show the first pair's prompts, ask nothing, write nothing"
    )
    push_to_hub: bool = option(False, "publish the Run when it is written")
    hub_model_id: str | None = option(None, "owner/name for --push_to_hub")
    hub_private_repo: bool = option(False, "make the new repository private")
