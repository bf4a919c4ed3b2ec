"""Compare the speed of `predict` with the pipeline of transformers and with a plain loop.

    python benchmarks/predict.py

Trains MiniLM with the native head by full fine-tuning and by LoRA, on a few examples. Then three
contenders predict the repeated validation examples: `peft-mrpc predict`, the pipeline
`text-classification` with a batch size of 32, and a loop over batches of 32 examples padded to the
longest. They alternate in one process, `--repeats` times; the best time of each counts. The time is
that from texts to probabilities, without loading the model. All must predict the same labels, and
probabilities within 1e-4. The peak memory is that of a new process for each, with loading. The
results go into `predict.json` beside this file, the table into `predict.md`, the plot into
`predict.png`.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import (
    PeakMemory,
    Row,
    build_parser,
    build_report,
    goal_table,
    load_both,
    markdown,
    plot_comparisons,
    positive,
    run,
    speed_row,
)
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from peft_mrpc import DataConfig, TrainConfig, load_classifier, train_classifier
from peft_mrpc.data.examples import Example
from peft_mrpc.evaluation.thresholds import predict_labels
from peft_mrpc.models.sources import resolve_model

MODEL, BATCH_SIZE, MAX_LENGTH, TOLERANCE = "builtin:minilm", 32, 128, 1e-4
PIPELINE_GOAL = 1.3
METHODS = ("full", "lora")
Predict = Callable[[Sequence[Example]], NDArray[np.float64]]


# ---- contenders: each loads a Run and returns a function from N examples to [N, C] ----


def load_peft_mrpc(folder: Path) -> Predict:
    """The classifier that `peft-mrpc predict RUN` uses."""
    classifier = load_classifier(folder)
    return lambda examples: classifier.predict_proba(examples, BATCH_SIZE)


def load_peer(folder: Path) -> tuple[Any, Any]:
    """Load model and tokenizer with transformers and PEFT only."""
    if (folder / "model").is_dir():
        saved = folder / "model"
        model = AutoModelForSequenceClassification.from_pretrained(saved)
    else:
        saved = folder / "adapter"
        base = resolve_model(MODEL).location
        base_model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        model = PeftModel.from_pretrained(base_model, saved)
    return model.eval(), AutoTokenizer.from_pretrained(saved)


def load_pipeline(folder: Path) -> Predict:
    """The pipeline of transformers."""
    model, tokenizer = load_peer(folder)
    classify: Any = pipeline("text-classification", model=model, tokenizer=tokenizer)
    names = list(model.config.id2label.values())

    def predict(pairs: Sequence[Example]) -> NDArray[np.float64]:
        texts = [{"text": pair.sentence1, "text_pair": pair.sentence2} for pair in pairs]
        options = {"truncation": True, "max_length": MAX_LENGTH, "top_k": None}
        outputs = classify(texts, batch_size=BATCH_SIZE, **options)
        rows = [{score["label"]: score["score"] for score in scores} for scores in outputs]
        return np.array([[row[name] for name in names] for row in rows])

    return predict


def load_loop(folder: Path) -> Predict:
    """A loop over batches in the order of the examples, padded to the longest."""
    model, tokenizer = load_peer(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.inference_mode()
    def predict(pairs: Sequence[Example]) -> NDArray[np.float64]:
        probabilities = []
        for start in range(0, len(pairs), BATCH_SIZE):
            part = pairs[start : start + BATCH_SIZE]
            texts = [pair.sentence1 for pair in part], [pair.sentence2 for pair in part]
            options = {"padding": True, "truncation": True, "max_length": MAX_LENGTH}
            batch = tokenizer(*texts, **options, return_tensors="pt").to(model.device)
            probabilities.append(model(**batch).logits.softmax(dim=-1).cpu())
        return torch.cat(probabilities).numpy()

    return predict


CONTENDERS: dict[str, Callable[[Path], Predict]] = {
    "peft-mrpc": load_peft_mrpc,
    "pipeline": load_pipeline,
    "plain loop": load_loop,
}


# ---- measurement ----


def main() -> None:
    options = parse_options()
    report = build_report("predict", options)
    data = load_both(options.dataset)
    dev = data.splits["validation"]
    pairs = [replace(dev[n % len(dev)], idx=n) for n in range(options.times * len(dev))]
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for method in METHODS:
            folder = Path(scratch) / method
            train_one_epoch(method, options, folder)
            parts[method] = compare(folder, pairs, options.repeats)
            parts[method]["peak_memory"] = {
                name: measure_memory(name, folder, pairs) for name in CONTENDERS
            }
            report.write(result_rows(parts), parts=parts)
    report.show(goal_table(result_rows(parts)), "goals")
    report.show(contender_table(parts), "contenders")
    report.draw(lambda: plot_comparisons(result_rows(parts), "pairs per second"))


def parse_options() -> argparse.Namespace:
    parser = build_parser(__doc__)
    parser.add_argument("--times", type=positive, help="repetitions of the data (default: 5)")
    parser.add_argument("--repeats", type=positive, help="repeats of each (default: 5)")
    parser.add_argument("--train_pairs", type=positive, help="training examples (default: 1000)")
    options = parser.parse_args()
    times, repeats, train_pairs = (1, 3, 200) if options.quick else (5, 5, 1000)
    options.times, options.repeats = options.times or times, options.repeats or repeats
    options.train_pairs = options.train_pairs or train_pairs
    return options


def train_one_epoch(method: str, options: argparse.Namespace, folder: Path) -> None:
    """Train briefly, so that no two labels have the same probability."""
    train_classifier(
        TrainConfig(method=method, model=MODEL, pooling="native", max_length=MAX_LENGTH),
        DataConfig(
            options.dataset,
            max_train_samples=options.train_pairs,
            max_eval_samples=8,
            split="validation",
        ),
        output_dir=folder,
        seed=1,
        num_train_epochs=1,
        report_to="none",
        disable_tqdm=True,
    )


def compare(folder: Path, pairs: Sequence[Example], repeats: int) -> dict[str, Any]:
    """Measure every contender on one Run; all must return the same probabilities."""
    contenders = {name: load(folder) for name, load in CONTENDERS.items()}
    outputs = {
        name: predict(pairs[: 2 * BATCH_SIZE]) for name, predict in contenders.items()
    }  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, predict in contenders.items():
            started = time.perf_counter()
            outputs[name] = predict(pairs)
            seconds[name].append(time.perf_counter() - started)
            print(f"{folder.name}: {name}: {seconds[name][-1]:.2f} s", flush=True)
    differences = {
        name: compare_outputs(outputs["peft-mrpc"], outputs[name]) for name in contenders
    }
    return {
        "pairs": len(pairs),
        "seconds": seconds,
        "pairs_per_second": {name: len(pairs) / min(times) for name, times in seconds.items()},
        "largest_difference": max(differences.values()),
    }


def compare_outputs(ours: NDArray[np.float64], peer: NDArray[np.float64]) -> float:
    """The largest difference between probabilities; raises if labels differ."""
    difference = float(np.abs(ours - peer).max())
    assert difference <= TOLERANCE, f"probabilities differ by {difference:.1e}"
    assert (predict_labels(ours, 0.5) == peer.argmax(axis=1)).all(), "labels differ"
    return difference


def measure_memory(name: str, folder: Path, pairs: Sequence[Example]) -> int:
    """Peak memory of a new process that loads the Run and predicts the pairs, in bytes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(
            _predict_and_measure_memory, (name, folder, pairs, torch.get_num_threads())
        )


def _predict_and_measure_memory(
    name: str, folder: Path, pairs: Sequence[Example], threads: int
) -> int:
    torch.set_num_threads(threads)
    with PeakMemory() as memory, open(os.devnull, "w") as null:  # noqa: PTH123
        os.dup2(null.fileno(), 2)  # no progress bars
        CONTENDERS[name](folder)(pairs)
    return memory.peak


# ---- report ----


def result_rows(parts: dict[str, Any]) -> list[Row]:
    rows = []
    for method, part in parts.items():
        speeds, memory = part["pairs_per_second"], part["peak_memory"]
        for peer, goal in (("pipeline", PIPELINE_GOAL), ("plain loop", None)):
            rows.append(
                speed_row(
                    f"{method}: peft-mrpc vs. {peer}",
                    speeds["peft-mrpc"],
                    speeds[peer],
                    goal,
                    peak_memory={"ours": memory["peft-mrpc"], "peer": memory[peer]},
                )
            )
    return rows


def contender_table(parts: dict[str, Any]) -> str:
    lines = [
        [method, name, f"{speed:.1f}", f"{part['peak_memory'][name] / 1e9:.2f} GB"]
        for method, part in parts.items()
        for name, speed in part["pairs_per_second"].items()
    ]
    return markdown(["method", "contender", "pairs/s", "peak memory"], lines)


if __name__ == "__main__":
    run(main)
