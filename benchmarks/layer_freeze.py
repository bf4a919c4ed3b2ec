"""Speed of training against the script that users write today, side by side in one process.

    python benchmarks/speed.py --dataset MRPC

The peer is the Hugging Face Trainer on `AutoModelForSequenceClassification`, as its examples have
it: pairs tokenized in advance, padded to 128 tokens or (with `DataCollatorWithPadding`) to the
longest of their batch. Every contender gets the same pairs, model, head, batch size, epochs and
threads, and is timed from text to scored dev pairs, without loading the model. They take turns,
`--repeats` times, and the best time of each counts: what else the machine did is not theirs.

The figures go into `speed.json` beside this file, the table into `speed.md`, the picture into
`speed.png`. `--only minilm` (and its kin) measures one part afresh and keeps the others.
"""

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accuracy import HERE
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from peft_mrpc.config import DataConfig
from peft_mrpc.data import load_pairs
from peft_mrpc.environment import describe_environment
from peft_mrpc.methods import METHODS
from peft_mrpc.models import load_config, load_tokenizer
from peft_mrpc.pairs import Pair, PairData
from peft_mrpc.processes import prepare_processes
from peft_mrpc.rehearsal import Estimate, Pairs, rehearse
from peft_mrpc.requests import TrainRequest, parse_request
from peft_mrpc.sources import find_model
from peft_mrpc.train import build_classifier
from peft_mrpc.training import build_trainer
from peft_mrpc.trunk import _HELD

RESULTS, PAGE, PICTURE = HERE / "speed.json", HERE / "speed.md", HERE / "speed.png"
SEED, BATCH_SIZE, MAX_LENGTH = 1, 16, 128
QUIET = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 10**6}


@dataclass(frozen=True)
class Task:
    """What every contender of a part is given."""

    model: str
    data: PairData
    epochs: int
    method: str = "layer_freeze"


@dataclass(frozen=True)
class Part:
    """A comparison.

    Attributes:
        model: As `--model`; None for a bert-base of random weights.
        epochs: Passes over the pairs.
        peer: The contender that the others' speed is divided by.
        contenders: By name.
        method: What trains.
        share: Of the pairs asked for: deeper models take fewer.
    """

    model: str | None
    epochs: int
    contenders: Sequence[str]
    method: str = "layer_freeze"
    share: float = 1.0


FREEZING = ("plain, padded to 128", "plain, padded by batch", "ours, first run", "ours, next seed")
METHOD = ("plain, padded by batch", "ours")
PARTS: dict[str, Part] = {
    "minilm": Part("builtin:minilm", 3, FREEZING),
    "bert-base": Part(None, 5, FREEZING[1:], share=0.25),
    "full": Part("builtin:minilm", 1, METHOD, "full"),
    "lora": Part("builtin:minilm", 1, METHOD, "lora"),
    "prompt_tuning": Part("builtin:minilm", 1, METHOD, "prompt_tuning"),
}


def main() -> None:
    options = parse_options()
    prepare_processes()
    os.environ["PEFT_MRPC_TRUNKS"] = tempfile.mkdtemp(prefix="trunks-")
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    data = load_pairs(DataConfig(dataset=options.dataset), SEED)
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            part = PARTS[name]
            model = part.model or write_bert_base(Path(scratch) / "bert-base")
            pairs = take(data, int(options.pairs * part.share))
            results[name] = measure(
                Task(model, pairs, part.epochs, part.method), part, options.repeats
            )
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(os.environ["PEFT_MRPC_TRUNKS"], ignore_errors=True)
    results = {name: results[name] for name in PARTS if name in results}
    write_page(results)
    draw(results).savefig(PICTURE, dpi=150)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--dataset", required=True, help="directory in GLUE's layout")
    parser.add_argument("--pairs", type=int, default=1000, help="training pairs; 0 for all")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    return parser.parse_args()


def take(data: PairData, count: int) -> PairData:
    """So many training pairs, and as large a share of the dev pairs."""
    train, dev = data.splits["train"], data.splits["validation"]
    count = count or len(train)
    rows = {"train": train[:count], "validation": dev[: len(dev) * count // len(train)]}
    return replace(data, splits=rows)


def write_bert_base(folder: Path) -> str:
    """A model of bert-base's shape with random weights, and MiniLM's tokenizer, which is BERT's."""
    if not folder.is_dir():
        set_seed(SEED)
        BertForSequenceClassification(BertConfig()).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(find_model("builtin:minilm").location)
        tokenizer.save_pretrained(folder)
    return str(folder)


# ---- contenders: each takes a task, and gives the seconds that it took ----


def train_plain(task: Task, pads_by_batch: bool) -> float:
    """What users write: tokenize, freeze, Trainer, predict."""
    location = find_model(task.model).location
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

    def encode(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        texts = ([p.sentence1 for p in pairs], [p.sentence2 for p in pairs])
        encoded = tokenizer(*texts, truncation=True, max_length=MAX_LENGTH, **padding)
        rows = (dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True))
        return [{**row, "labels": pair.label} for row, pair in zip(rows, pairs, strict=True)]

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                folder,
                num_train_epochs=task.epochs,
                per_device_train_batch_size=BATCH_SIZE,
                seed=SEED,
                **QUIET,
            ),
            train_dataset=encode(task.data.splits["train"]),
            data_collator=DataCollatorWithPadding(tokenizer) if pads_by_batch else None,
        )
        trainer.train()
        trainer.predict(encode(task.data.splits["validation"]))
    return time.perf_counter() - started


def peer_options(method: str) -> dict[str, Any]:
    """The options of a PEFT method: those of our recipe, for both sides."""
    request = parse_request(["--method", method, "--output_dir", "unused"])
    return dict(request.given_options)


def our_request(task: Task) -> TrainRequest:
    """`peft-mrpc train` with the head, dropout and epochs of the peer."""
    flags = ["--method", task.method, "--model", task.model, "--pooling", "native"]
    flags += ["--num_train_epochs", str(task.epochs), "--swap_sentences", "false"]
    flags += ["--per_device_train_batch_size", str(BATCH_SIZE), "--output_dir", "unused"]
    flags += [word for key, value in QUIET.items() for word in (f"--{key}", str(value))]
    request = parse_request([*flags, "--seed", str(SEED)])
    return replace(request, config=replace(request.config, dropout=None))


def train_ours(task: Task) -> float:
    """What `peft-mrpc train` does."""
    request = our_request(task)
    set_seed(SEED)
    classifier = build_classifier(request, find_model(task.model), task.data)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = build_trainer(request, task.data, classifier, folder)
        trainer.train()
        classifier.score(task.data.splits["validation"], 32)
    return time.perf_counter() - started


def train_ours_first(task: Task) -> float:
    """Nothing of these pairs is kept yet."""
    _HELD.clear()
    shutil.rmtree(os.environ["PEFT_MRPC_TRUNKS"], ignore_errors=True)
    return train_ours(task)


CONTENDERS: dict[str, Callable[[Task], float]] = {
    "plain, padded to 128": lambda task: train_plain(task, pads_by_batch=False),
    "plain, padded by batch": lambda task: train_plain(task, pads_by_batch=True),
    "ours, first run": train_ours_first,
    "ours, next seed": train_ours,
    "ours": train_ours,
}


# ---- measuring ----


def measure(task: Task, part: Part, repeats: int) -> dict[str, Any]:
    """Every contender in turn; the best of its times."""
    seconds: dict[str, list[float]] = {name: [] for name in part.contenders}
    memory: dict[str, int] = {}
    for _ in range(repeats):
        for name in part.contenders:
            with PeakMemory() as peak:
                seconds[name].append(CONTENDERS[name](task))
            memory[name] = max(memory.get(name, 0), peak.bytes)
            print(f"{task.method}: {name}: {seconds[name][-1]:.1f} s", flush=True)
    pairs = task.epochs * len(task.data.splits["train"])
    result = {
        "method": task.method,
        "model": "bert-base, random weights" if part.model is None else part.model,
        "train_pairs": len(task.data.splits["train"]),
        "scored_pairs": len(task.data.splits["validation"]),
        "epochs": task.epochs,
        "seconds": seconds,
        "pairs_per_second": {name: pairs / min(times) for name, times in seconds.items()},
        "added_memory": memory,
        "foretold_seconds": foretell(task),
        "threads": torch.get_num_threads(),
        "gemm_gflops": gemm_peak() / 1e9,
        "environment": describe_environment(),
    }
    if task.method == "layer_freeze":
        result["tail_gflops"] = tail_speed(task) / 1e9
    return result


class PeakMemory:
    """The most resident memory while a block runs, over that at its beginning, in bytes."""

    def __enter__(self) -> "PeakMemory":
        self.before = self.peak = resident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.peak = max(self.peak, resident())

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        return self.peak - self.before


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def foretell(task: Task) -> float:
    """The seconds that `peft-mrpc doctor` says a first run takes, without scoring."""
    source = find_model(task.model)
    tokenizer = load_tokenizer(source)
    train = task.data.splits["train"]
    tokens = tokenizer([p.sentence1 for p in train], [p.sentence2 for p in train])["input_ids"]
    about = Pairs(len(train), round(sum(map(len, tokens)) / len(train)))
    found = rehearse(our_request(task), load_config(source), tokenizer, about)
    assert isinstance(found, Estimate), found
    return found.trunk_seconds + task.epochs * found.epoch_seconds


def gemm_peak(size: int = 1536, repeats: int = 8) -> float:
    """The fastest of some large matrix products, in operations a second."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def tail_speed(task: Task) -> float:
    """Matrix operations a second while the cached tail trains, everything else counted as time."""
    task = replace(task, epochs=1, data=take_no_dev(task.data))
    train_ours(task)  # whatever is not there yet
    seconds = min(train_ours(task) for _ in range(2))
    counter = FlopCounterMode(display=False)
    with counter:
        train_ours(task)
    return counter.get_total_flops() / seconds


def take_no_dev(data: PairData) -> PairData:
    return replace(data, splits={**data.splits, "validation": data.splits["validation"][:1]})


# ---- showing ----


def write_page(results: dict[str, Any]) -> None:
    lines = [
        "| | | pairs/s | against plain | against padded by batch | memory added |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        speeds = result["pairs_per_second"]
        for contender, speed in speeds.items():
            ratios = [
                f"{speed / speeds[peer]:.2f}" if peer in speeds else "-" for peer in FREEZING[:2]
            ]
            memory = f"{result['added_memory'][contender] / 1e9:.2f} GB"
            cells = [name, contender, f"{speed:.1f}", *ratios, memory]
            lines.append(f"| {' | '.join(cells)} |")
    for name, result in results.items():
        first = next(c for c in result["seconds"] if c.startswith("ours"))
        took = min(result["seconds"][first])
        lines.append(
            f"\n{name}: `doctor` foretold {result['foretold_seconds']:.1f} s for the training; "
            f"*{first}* took {took:.1f} s, tokenizing and scoring included."
        )
        if "tail_gflops" in result:
            share = result["tail_gflops"] / result["gemm_gflops"]
            lines.append(
                f"\n{name}: the cached tail trains at {result['tail_gflops']:.0f} GFLOP/s, "
                f"{share:.0%} of what a large matrix product reaches, "
                f"{result['gemm_gflops']:.0f} GFLOP/s."
            )
    put_table("\n".join(lines), "speed.py")


def put_table(table: str, name: str) -> None:
    """Put a table into the page, between its marks, and show it."""
    begin, end = f"<!-- table of {name} -->", f"<!-- end of {name} -->"
    page = PAGE.read_text("utf-8")
    page = f"{page.split(begin)[0]}{begin}\n\n{table}\n\n{end}{page.split(end)[1]}"
    PAGE.write_text(page, encoding="utf-8")
    print(table)


def draw(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(7, 0.6 + 0.32 * sum(len(r["seconds"]) + 1 for r in results.values())))
    axes = figure.subplots()
    height, ticks = 0, []
    for name, result in results.items():
        for contender, speed in result["pairs_per_second"].items():
            color = "#999999" if contender.startswith("plain") else "#0072B2"
            axes.barh(height, speed, color=color)
            axes.text(speed, height, f" {speed:.0f}", va="center")
            ticks.append((height, f"{name}: {contender}"))
            height += 1
        height += 1
    axes.set_yticks([place for place, _ in ticks], [label for _, label in ticks])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    axes.set_xlabel("pairs a second over the whole run")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
