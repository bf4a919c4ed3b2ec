"""The contenders of `layer_freeze.py`: the Hugging Face Trainer, and `peft-mrpc train`.

The peer follows the transformers examples: `Trainer` on `AutoModelForSequenceClassification`, pairs
tokenized in advance and padded to 128 tokens, or to the longest of a batch by
`DataCollatorWithPadding`. Unless its name says "recipe", the other contender is `peft-mrpc train`
with the head, dropout, batch size and number of epochs of the peer. Both are timed from texts to
scored validation pairs, without loading the model. `peft-mrpc` uses the precision that `train`
selects for the hardware; where that is bf16, further contenders compare equal precisions.
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

# Shared by the trainings of this process, as `train --seeds` shares it between seeds.
CACHE = ActivationCache()
SEED, BATCH_SIZE, EVAL_BATCH_SIZE, MAX_LENGTH = 1, 16, 32, 128
QUIET = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 10**6}
# Flags that make the training equal to the peer's.
MATCHED = ["--pooling", "native", "--swap_sentences", "false", "--sam_rho", "0"]
MATCHED += ["--max_length", str(MAX_LENGTH)]


@dataclass(frozen=True)
class Task:
    """The training of a comparison, the same for all contenders."""

    model: str
    data: DataSplits
    epochs: int
    method: str = "layer_freeze"


@dataclass(frozen=True)
class Outcome:
    """Measurements of one training.

    Attributes:
        seconds: Time from texts to scored validation pairs.
        epoch_seconds: Time from the start of the first epoch to the end of the last.
        steps: Number of optimizer steps.
        trained: Number of trained parameters.
        accuracy: Accuracy on the validation pairs.
        flops: Floating-point operations of the matrix products of all epochs, 0 if not counted.
        num_computed: Examples for which the frozen layers ran to fill the activation cache; None
            without the cache.
    """

    seconds: float
    epoch_seconds: float
    steps: int
    trained: int
    accuracy: float
    flops: int = 0
    num_computed: int | None = None


def write_bert_base(folder: Path) -> str:
    """Save a bert-base with random weights and MiniLM's tokenizer, which is BERT's."""
    if not folder.is_dir():
        set_seed(SEED)
        BertForSequenceClassification(BertConfig()).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(resolve_model("builtin:minilm").location)
        tokenizer.save_pretrained(folder)
    return str(folder)


class EpochTimer(TrainerCallback):
    """Measures the time of all epochs, and counts their operations if requested."""

    def __init__(self, count_flops: bool = False) -> None:
        self.counter = FlopCounterMode(display=False) if count_flops else None
        self.started = self.seconds = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.started:
            self.started = time.perf_counter()
            if self.counter:
                self.counter.__enter__()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = time.perf_counter() - self.started

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.counter:
            self.counter.__exit__(None, None, None)


def train_peer(task: Task, dynamic_padding: bool = True, bf16: bool = False) -> Outcome:
    """Tokenize, freeze or wrap with PEFT, train and predict with transformers."""
    location = resolve_model(task.model).location
    tokenizer = AutoTokenizer.from_pretrained(location)
    set_seed(SEED)
    model: Any = AutoModelForSequenceClassification.from_pretrained(location, num_labels=2)
    if task.method == "layer_freeze":
        model.bert.requires_grad_(False)
        for module in (*model.bert.encoder.layer[-2:], model.bert.pooler):
            module.requires_grad_(True)
    else:
        method = METHODS[task.method]
        model = method.apply(model, method.build_options(recipe_options(task.method)))
    padding = {} if dynamic_padding else {"padding": "max_length"}

    def encode(pairs: Sequence[Example]) -> list[dict[str, Any]]:
        texts = ([p.sentence1 for p in pairs], [p.sentence2 for p in pairs])
        encoded = tokenizer(*texts, truncation=True, max_length=MAX_LENGTH, **padding)
        rows = (dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True))
        return [{**row, "labels": pair.label} for row, pair in zip(rows, pairs, strict=True)]

    timer, started = EpochTimer(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                folder,
                num_train_epochs=task.epochs,
                per_device_train_batch_size=BATCH_SIZE,
                per_device_eval_batch_size=EVAL_BATCH_SIZE,
                seed=SEED,
                **({"bf16": True, "use_cpu": True} if bf16 else {}),
                **QUIET,
            ),
            train_dataset=encode(task.data.splits["train"]),
            data_collator=DataCollatorWithPadding(tokenizer) if dynamic_padding else None,
            callbacks=[timer],
        )
        trainer.train()
        logits = trainer.predict(encode(task.data.splits["validation"])).predictions
    return build_outcome(task, trainer, logits, time.perf_counter() - started, timer)


def build_outcome(
    task: Task, trainer: Trainer, scores: Any, seconds: float, timer: EpochTimer
) -> Outcome:
    labels = [pair.label for pair in task.data.splits["validation"]]
    return Outcome(
        seconds,
        epoch_seconds=timer.seconds,
        steps=trainer.state.global_step,
        trained=parameter_counts(trainer.model)[0],
        accuracy=float((scores.argmax(axis=1) == labels).mean()),
        flops=timer.counter.get_total_flops() if timer.counter else 0,
    )


def recipe_options(method: str) -> dict[str, Any]:
    """The options of a PEFT method in its recipe, used by both contenders."""
    names = METHODS[method].option_types()
    return {k: v for k, v in load_default_recipe(method).items() if k in names}


def build_job(
    task: Task, seed: int = SEED, fp32: bool = False, flags: Sequence[str] = MATCHED
) -> ResolvedJob:
    """The job of `peft-mrpc train` with the batch size and epochs of the peer."""
    job = parse_train_command(["--method", task.method, "--model", task.model, *flags])
    arguments: dict[str, Any] = {"seed": seed, "num_train_epochs": task.epochs, **QUIET}
    arguments |= {"per_device_train_batch_size": BATCH_SIZE} | ({"bf16": False} if fp32 else {})
    job = job.with_options(**arguments)
    if flags == MATCHED:  # the dropout of the checkpoint instead of the recipe's
        job = replace(job, removed=frozenset({"dropout"}))
    return resolve(job, load_base_model(job.config), task.data.label_names)


def selected_precision(task: Task) -> str:
    """The precision that `train` selects on this machine."""
    return trainer_precision(build_job(task).training_args)


def train_peft_mrpc(
    task: Task,
    *,
    warm_cache: bool = False,
    fp32: bool = False,
    flags: Sequence[str] = MATCHED,
    count_flops: bool = False,
) -> Outcome:
    """Train as `peft-mrpc train` does; with a warm cache, as for its second seed."""
    if not warm_cache:
        CACHE.clear()
    seed = SEED + warm_cache
    job = build_job(task, seed, fp32, flags)
    tokenizer = load_base_model(job.config).tokenizer
    set_seed(seed)
    classifier = build_classifier(job, tokenizer, task.data.label_names)
    timer, started = EpochTimer(count_flops), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = build_trainer(job, task.data, classifier, folder, activation_cache=CACHE)
        trainer.add_callback(timer)
        trainer.train()
        classifier.model = unwrap_trained_model(trainer)
        scores = classifier.predict_proba(task.data.splits["validation"], EVAL_BATCH_SIZE)
    seconds = time.perf_counter() - started
    callbacks = trainer.callback_handler.callbacks
    computed = [c.num_computed for c in callbacks if isinstance(c, ActivationCacheCallback)]
    outcome = build_outcome(task, trainer, scores, seconds, timer)
    return replace(outcome, num_computed=computed[0] if computed else None)


CONTENDERS: dict[str, Callable[[Task], Outcome]] = {
    "Trainer (padded to 128)": lambda task: train_peer(task, dynamic_padding=False),
    "Trainer (dynamic padding)": train_peer,
    "Trainer (dynamic padding, bf16)": lambda task: train_peer(task, bf16=True),
    "peft-mrpc (cold cache)": train_peft_mrpc,
    "peft-mrpc (warm cache)": lambda task: train_peft_mrpc(task, warm_cache=True),
    "peft-mrpc": train_peft_mrpc,
    "peft-mrpc (cold cache, fp32)": lambda task: train_peft_mrpc(task, fp32=True),
    "peft-mrpc (warm cache, fp32)": lambda task: train_peft_mrpc(task, warm_cache=True, fp32=True),
    "peft-mrpc (fp32)": lambda task: train_peft_mrpc(task, fp32=True),
    "recipe (cold cache)": lambda task: train_peft_mrpc(task, flags=()),
    "recipe (no cache)": lambda task: train_peft_mrpc(task, flags=("--activation_cache", "off")),
}
