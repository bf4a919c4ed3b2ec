"""What trains in `layer_freeze.py`: the script that users write today, and `peft-mrpc train`.

The peer is the Hugging Face Trainer on `AutoModelForSequenceClassification`, as its examples have
it: pairs tokenized in advance, padded to 128 tokens or (with `DataCollatorWithPadding`) to the
longest of their batch. Ours is what `peft-mrpc train` does, with the peer's head, dropout,
gradients, batch sizes and epochs. Both are timed from text to scored dev pairs, without loading the
model. Ours computes in what `train` chooses for the hardware; where that is bf16 there are
contenders that tell what of the gain is due to it.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from peft_mrpc.cli.train_arguments import parse_train_command
from peft_mrpc.data.examples import DataSplits, Example
from peft_mrpc.methods.registry import METHODS, load_default_recipe
from peft_mrpc.models.architecture import parameter_counts
from peft_mrpc.models.sources import resolve_model
from peft_mrpc.precision import trainer_precision
from peft_mrpc.training.activation_cache.callback import ActivationCacheCallback
from peft_mrpc.training.activation_cache.store import ActivationCache
from peft_mrpc.training.build import build_classifier, build_trainer, unwrap_trained_model
from peft_mrpc.training.job import ResolvedJob
from peft_mrpc.training.resolve import load_base_model, resolve

# Held by this process from one seed to the next, as `train --seeds` does.
CACHE = ActivationCache(memory_bytes=2 * 10**9)
SEED, BATCH_SIZE, EVAL_BATCH_SIZE, MAX_LENGTH = 1, 16, 32, 128
QUIET = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 10**6}


@dataclass(frozen=True)
class Task:
    """What every contender of a comparison is given."""

    model: str
    data: DataSplits
    epochs: int
    method: str = "layer_freeze"


# What makes ours the peer's training: its head, its dropout, its gradients, each pair as it comes.
ALIKE = ("--pooling", "native", "--swap_sentences", "false", "--max_length", str(MAX_LENGTH))
ALIKE += ("--sam_rho", "0")


@dataclass(frozen=True)
class Outcome:
    """What a contender did.

    Attributes:
        seconds: From text to scored dev pairs.
        tail_seconds: Of these, its epochs.
        steps: How often it changed the weights.
        trained: How many parameters.
        accuracy: On the dev pairs.
        flops: Matrix operations of its epochs, where they were counted.
        num_computed: Examples that the frozen layers ran for at the start; None without the cache.
    """

    seconds: float
    tail_seconds: float
    steps: int
    trained: int
    accuracy: float
    flops: int = 0
    num_computed: int | None = None


def write_bert_base(folder: Path) -> str:
    """A model of bert-base's shape with random weights, and MiniLM's tokenizer, which is BERT's."""
    if not folder.is_dir():
        set_seed(SEED)
        BertForSequenceClassification(BertConfig()).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(resolve_model("builtin:minilm").location)
        tokenizer.save_pretrained(folder)
    return str(folder)


class EpochsMeter(TrainerCallback):
    """The time from the first step of a training to its last, and the operations in between."""

    def __init__(self, counts_flops: bool = False) -> None:
        self.counter = FlopCounterMode(display=False) if counts_flops else None
        self.began = self.seconds = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.began:
            self.began = time.perf_counter()
            if self.counter:
                self.counter.__enter__()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = time.perf_counter() - self.began

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.counter:
            self.counter.__exit__(None, None, None)


def train_plain(task: Task, pads_by_batch: bool, in_bf16: bool = False) -> Outcome:
    """What users write: tokenize, freeze, Trainer, predict."""
    location = resolve_model(task.model).location
    tokenizer = AutoTokenizer.from_pretrained(location)
    set_seed(SEED)
    model: Any = AutoModelForSequenceClassification.from_pretrained(location, num_labels=2)
    if task.method == "layer_freeze":
        layers = model.bert.encoder.layer
        model.bert.requires_grad_(False)
        for part in (*layers[-2:], model.bert.pooler):
            part.requires_grad_(True)
    else:
        method = METHODS[task.method]
        model = method.apply(model, method.build_options(peer_options(task.method)))
    padding = {} if pads_by_batch else {"padding": "max_length"}

    def encode(pairs: Sequence[Example]) -> list[dict[str, Any]]:
        texts = ([p.sentence1 for p in pairs], [p.sentence2 for p in pairs])
        encoded = tokenizer(*texts, truncation=True, max_length=MAX_LENGTH, **padding)
        rows = (dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True))
        return [{**row, "labels": pair.label} for row, pair in zip(rows, pairs, strict=True)]

    meter, started = EpochsMeter(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                folder,
                num_train_epochs=task.epochs,
                per_device_train_batch_size=BATCH_SIZE,
                per_device_eval_batch_size=EVAL_BATCH_SIZE,
                seed=SEED,
                **({"bf16": True, "use_cpu": True} if in_bf16 else {}),
                **QUIET,
            ),
            train_dataset=encode(task.data.splits["train"]),
            data_collator=DataCollatorWithPadding(tokenizer) if pads_by_batch else None,
            callbacks=[meter],
        )
        trainer.train()
        predicted = trainer.predict(encode(task.data.splits["validation"])).predictions
    seconds = time.perf_counter() - started
    return describe(task, trainer, predicted, seconds, meter)


def describe(
    task: Task, trainer: Trainer, scores: Any, seconds: float, meter: EpochsMeter
) -> Outcome:
    labels = [pair.label for pair in task.data.splits["validation"]]
    return Outcome(
        seconds,
        tail_seconds=meter.seconds,
        steps=trainer.state.global_step,
        trained=parameter_counts(trainer.model)[0],
        accuracy=float((scores.argmax(axis=1) == labels).mean()),
        flops=meter.counter.get_total_flops() if meter.counter else 0,
    )


def peer_options(method: str) -> dict[str, Any]:
    """The options of a PEFT method: those of our recipe, for both sides."""
    names = METHODS[method].option_types()
    return {k: v for k, v in load_default_recipe(method).items() if k in names}


def our_job(
    task: Task, seed: int = SEED, in_fp32: bool = False, like: Sequence[str] = ALIKE
) -> ResolvedJob:
    """`peft-mrpc train` with the batch size and epochs of the peer, and with these flags."""
    job = parse_train_command(["--method", task.method, "--model", task.model, *like])
    options: dict[str, Any] = {"seed": seed, "num_train_epochs": task.epochs, **QUIET}
    options |= {"per_device_train_batch_size": BATCH_SIZE} | ({"bf16": False} if in_fp32 else {})
    job = job.with_options(**options)
    if like == ALIKE:  # the checkpoint's dropout
        job = replace(job, removed=frozenset({"dropout"}))
    return resolve(job, load_base_model(job.config), task.data.label_names)


def our_precision(task: Task) -> str:
    """The precision that `train` selects on this machine."""
    return trainer_precision(our_job(task).training_args)


def train_ours(
    task: Task,
    seed: int = SEED,
    counts_flops: bool = False,
    in_fp32: bool = False,
    like: Sequence[str] = ALIKE,
) -> Outcome:
    """What `peft-mrpc train` does."""
    job = our_job(task, seed, in_fp32, like)
    tokenizer = load_base_model(job.config).tokenizer
    set_seed(seed)
    classifier = build_classifier(job, tokenizer, task.data.label_names)
    meter, started = EpochsMeter(counts_flops), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = build_trainer(job, task.data, classifier, folder, activation_cache=CACHE)
        trainer.add_callback(meter)
        trainer.train()
        classifier.model = unwrap_trained_model(trainer)
        scores = classifier.predict_proba(task.data.splits["validation"], EVAL_BATCH_SIZE)
    seconds = time.perf_counter() - started
    outcome = describe(task, trainer, scores, seconds, meter)
    callbacks = trainer.callback_handler.callbacks
    cached = [c for c in callbacks if isinstance(c, ActivationCacheCallback)]
    return replace(outcome, num_computed=cached[0].num_computed if cached else None)


def train_ours_first(task: Task, in_fp32: bool = False, like: Sequence[str] = ALIKE) -> Outcome:
    """The frozen layers have not run for any example yet."""
    CACHE.close()
    return train_ours(task, in_fp32=in_fp32, like=like)


CONTENDERS: dict[str, Callable[[Task], Outcome]] = {
    "plain, padded to 128": lambda task: train_plain(task, pads_by_batch=False),
    "plain, padded by batch": lambda task: train_plain(task, pads_by_batch=True),
    "plain, padded by batch, in bf16": lambda task: train_plain(task, True, in_bf16=True),
    "ours, first run": train_ours_first,
    "ours, next seed": lambda task: train_ours(task, SEED + 1),
    "ours": train_ours,
    "ours, first run, in fp32": lambda task: train_ours_first(task, in_fp32=True),
    "ours, next seed, in fp32": lambda task: train_ours(task, SEED + 1, in_fp32=True),
    "ours, in fp32": lambda task: train_ours(task, in_fp32=True),
    "as shipped": lambda task: train_ours_first(task, like=()),
    "as shipped, frozen layers every time": lambda task: train_ours(
        task, like=("--activation_cache", "off")
    ),
}
