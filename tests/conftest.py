"""Tiny models and a tokenizer built in memory, and ways to run the commands."""

import csv
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = "the a cat dog sat ran on mat road not same thing yes no answer sentence is it true".split()
CONFIGS = Path(__file__).parents[1] / "accelerate_configs"
MRPC = Path(__file__).parents[2] / "shared" / "data" / "glue" / "MRPC"
ROWS = [
    ("the cat sat on the mat", "on the mat the cat sat", "equivalent"),
    ("the dog ran on the road", "the dog sat on the mat", "not_equivalent"),
    ("a cat ran", "a cat ran not", "not_equivalent"),
    ("the dog is on the road", "it is true the dog is on the road", "equivalent"),
    ("a dog sat", "a dog sat on a mat on a road", "not_equivalent"),
    ("the same cat sat", "it is the same cat sat", "equivalent"),
    ("the cat is not on the mat", "the cat is on the mat", "not_equivalent"),
    ("the mat is the same thing", "the same thing is the mat", "equivalent"),
    ("no dog ran", "not a dog ran", "equivalent"),
]

# Numbers are compared in fp32, on a CPU with units for bf16 too, here and in what a test starts;
# test_precision.py has the trainings in bf16.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE"


requires_mrpc = pytest.mark.skipif(not MRPC.is_dir(), reason="MRPC is not beside this checkout")


def build_tokenizer(is_chat: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: BERT's special tokens, or a decoder's with label words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>"]
    words = [*special, *WORDS, "Yes", "No", "A", "B", "1", "2", ":", "?", ".", ","]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if is_chat:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 4)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="[UNK]",
            model_max_length=256,
        )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a BERT of 2 layers, 16 wide."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directory of a tiny model of each architecture that the matrix speaks of."""
    from tiny_models import ARCHITECTURES, write_tiny_model  # which build on this file

    folder = tmp_path_factory.mktemp("architectures")
    return {name: write_tiny_model(name, folder / name) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a causal LLaMA of 2 layers, 16 wide, without a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = build_tokenizer(is_chat=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=256,
        bos_token_id=4,
        eos_token_id=5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_csv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def pair_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of small train, validation and unlabelled files."""
    folder = tmp_path_factory.mktemp("data")
    header = ("sentence1", "sentence2", "label")
    return {
        "train": str(write_csv(folder / "train.csv", ROWS * 2, header)),
        "validation": str(write_csv(folder / "validation.csv", ROWS, header)),
        "unlabelled": str(write_csv(folder / "new.csv", [row[:2] for row in ROWS], header[:2])),
    }


@pytest.fixture(scope="session")
def data_flags(pair_files: dict[str, str]) -> list[str]:
    return ["--train_file", pair_files["train"], "--validation_file", pair_files["validation"]]


def launcher(processes: int) -> list[str]:
    """`accelerate launch` with the configuration we ship, for so many CPU processes."""
    config = CONFIGS / ("multi_cpu.yaml" if processes > 1 else "cpu.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    return [*command, "--num_processes", str(processes)] if processes > 1 else command


def run_command(
    *arguments: str,
    processes: int | None = None,
    env: dict[str, str] | None = None,
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a command in a new process, alone or under `accelerate launch` with several."""
    command = [sys.executable, "-m", f"peft_mrpc.{arguments[0]}", *arguments[1:]]
    if processes is not None:
        command = [*launcher(processes), "-m", f"peft_mrpc.{arguments[0]}", *arguments[1:]]
    return _run(command, env, stdin)


def run_script(
    source: str, folder: Path, *arguments: str, processes: int
) -> subprocess.CompletedProcess[str]:
    """Run Python that is written into this folder, and can import tests, in several processes."""
    script = folder / "script.py"
    folder_of_helpers = str(Path(__file__).parent)
    script.write_text(f"import sys; sys.path[:0] = [{folder_of_helpers!r}]\n{source}", "utf-8")
    return _run([*launcher(processes), str(script), *arguments])


def _run(
    command: list[str], env: dict[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        input=stdin,
        env={**os.environ, **(env or {})},
        timeout=300,
        check=False,
    )


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must end with exit code 2, and return its error message."""
    from peft_mrpc.cli.app import run_cli

    def run(main: Callable[[list[str]], None], *argv: str) -> str:
        assert run_cli(main, list(argv)) == 2
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return "\n".join(line for line in text.splitlines() if line.startswith("peft-mrpc:"))

    return run


def split_overrides(method: str, overrides: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A TrainConfig of the overrides that are its fields, and the others."""
    from peft_mrpc.config import TrainConfig

    fields = {item.name for item in dataclasses.fields(TrainConfig)}
    config = {key: value for key, value in overrides.items() if key in fields}
    others = {key: value for key, value in overrides.items() if key not in fields}
    return TrainConfig(method=method, **config), others


def build_training(folder: Path | str, data: Any, method: str, **overrides: Any) -> Any:
    """Build the Trainer of a job without training it.

    Args:
        folder: For checkpoints.
        data: A DataConfig, or examples in memory.
        method: The method.
        overrides: Fields of TrainConfig, TrainingArguments or the method's options, mixed.
    Returns:
        A namespace with `trainer`, `classifier`, `resolved` and `data` (its splits).
    """
    from peft_mrpc.training.job import TrainJob, convert_options

    config, others = split_overrides(method, {"disable_tqdm": True, **overrides})
    return build_job(folder, TrainJob(config, data, *convert_options(method, others)))


def build_from_flags(folder: Path | str, argv: list[str]) -> Any:
    """`build_training` of a command line."""
    from peft_mrpc.cli.train_arguments import parse_train_command

    return build_job(folder, parse_train_command(argv))


def build_job(folder: Path | str, job: Any) -> Any:
    """`build_training` of a job."""
    from transformers import set_seed

    from peft_mrpc.training.build import build_classifier, build_trainer
    from peft_mrpc.training.run import load_inputs, prepare_training

    inputs = load_inputs(job)
    training = prepare_training(job, inputs)
    resolved, splits = training.resolved, training.data
    set_seed(resolved.training_args.seed)
    classifier = build_classifier(resolved, inputs.base.tokenizer, splits.label_names)
    trainer, _ = build_trainer(resolved, splits, classifier, folder)
    return SimpleNamespace(
        trainer=trainer, classifier=classifier, resolved=resolved, data=splits, inputs=inputs
    )


@pytest.fixture(scope="session")
def tiny_data(pair_files: dict[str, str]) -> Any:
    """The tiny train and validation files as a DataConfig."""
    from peft_mrpc.config import DataConfig

    return DataConfig(train_file=pair_files["train"], validation_file=pair_files["validation"])


@pytest.fixture
def build_tiny(tiny_bert: str, tiny_data: Any, tmp_path: Path) -> Callable[..., Any]:
    """`build_training` for the tiny BERT on the tiny files: `build_tiny(method, **overrides)`."""

    def build(method: str = "layer_freeze", **overrides: Any) -> Any:
        from tiny_models import TINY_OPTIONS

        options = {
            **TINY_OPTIONS[method],
            **{"per_device_train_batch_size": 4, "model": tiny_bert, "data": tiny_data},
            **overrides,
        }
        return build_training(tmp_path, options.pop("data"), method, **options)

    return build


@pytest.fixture
def train_tiny(tiny_bert: str, tiny_data: Any, tmp_path: Path) -> Callable[..., Any]:
    """Train the tiny BERT on the tiny files by the API: `train_tiny(method, name, **overrides)`.

    Overrides are fields of TrainConfig, TrainingArguments or the method's options, mixed; `data`
    replaces the files. The Run goes to `tmp_path / name`.
    """

    def train(method: str = "layer_freeze", name: str = "run", **overrides: Any) -> Any:
        from tiny_models import TINY_OPTIONS

        from peft_mrpc import train_classifier

        options = {
            **TINY_OPTIONS[method],
            **{"num_train_epochs": 1, "per_device_train_batch_size": 4, "disable_tqdm": True},
            **{"data": tiny_data, "model": tiny_bert, "output_dir": tmp_path / name},
            **overrides,
        }
        config, others = split_overrides(method, options)
        return train_classifier(config, others.pop("data"), **others)

    return train


@pytest.fixture(scope="session")
def trained_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: str, data_flags: list[str]
) -> Path:
    """A layer_freeze Run of the tiny BERT."""
    from peft_mrpc.train import main

    folder = tmp_path_factory.mktemp("runs") / "layer_freeze"
    main(
        ["--model", tiny_bert, "--num_unfrozen_layers", "1", "--num_train_epochs", "1"]
        + ["--output_dir", str(folder), *data_flags]
    )
    return folder
