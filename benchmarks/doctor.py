"""Cost estimates of `peft-mrpc doctor`, compared with the measured cost of the trainings.

    python benchmarks/doctor.py

Each training is estimated in a new process, and then run in another one on the first `--examples`
of MRPC. The ratio is 1 minus the relative error of the estimate. The results go into `doctor.json`
beside this file, the table into `doctor.md`.
"""

import argparse
import multiprocessing
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import (
    Row,
    build_parser,
    build_report,
    goal_table,
    load_both,
    positive,
    run,
    write_pairs,
)
from training_peer import write_bert_base

from peft_mrpc.config import DataConfig, TrainConfig
from peft_mrpc.data.examples import DataSplits
from peft_mrpc.distributed import prepare_processes
from peft_mrpc.training.cost_estimate import estimate_cost, measure_training_set
from peft_mrpc.training.job import TrainJob
from peft_mrpc.training.resolve import load_base_model
from peft_mrpc.training.run import run_training

GOAL = 0.7  # an error of at most 30 %
NUM_VALIDATION = 40
QUIET = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True}


@dataclass(frozen=True)
class Training:
    """A training to estimate and to run.

    Attributes:
        method: Its method.
        model: Its model; None for a bert-base with random weights.
        epochs: Number of epochs.
        share: Share of the training examples.
        arguments: More fields of TrainingArguments.
    """

    method: str
    model: str | None = "builtin:minilm"
    epochs: int = 1
    share: float = 1.0
    arguments: dict[str, Any] = field(default_factory=dict)


TRAININGS = {
    "layer_freeze": Training("layer_freeze", epochs=3),
    "layer_freeze, bert-base": Training("layer_freeze", None, 3, 0.25),
    **{method: Training(method) for method in ("full", "lora", "prompt_tuning", "linear_probe")},
    "full, fp32": Training("full", arguments={"bf16": False}),
}


def main() -> None:
    options = parse_options()
    report = build_report("doctor", options)
    data = load_both(options.dataset)
    parts: dict[str, Any] = report.read().get("parts", {})
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            repeats = [
                compare(TRAININGS[name], data, options.examples, Path(scratch))
                for _ in range(options.repeats)
            ]
            parts[name] = best_of(repeats)
            parts = {key: parts[key] for key in TRAININGS if key in parts}
            report.write(result_rows(parts), parts=parts)
    report.show(goal_table(result_rows(parts)), "goals")


def parse_options() -> argparse.Namespace:
    parser = build_parser(__doc__)
    parser.add_argument("--examples", type=positive, help="training examples (default: 1000)")
    parser.add_argument("--repeats", type=positive, help="repeats (default: 2)")
    parser.add_argument("--only", nargs="*", default=list(TRAININGS), choices=list(TRAININGS))
    options = parser.parse_args()
    examples, repeats = (160, 1) if options.quick else (1000, 2)
    options.examples, options.repeats = options.examples or examples, options.repeats or repeats
    return options


def compare(training: Training, data: DataSplits, count: int, scratch: Path) -> dict[str, Any]:
    """Return the estimated and the measured seconds and peak bytes of a training."""
    examples = data.splits["train"][: max(1, round(count * training.share))]
    folder = Path(tempfile.mkdtemp(dir=scratch))
    write_pairs(examples, folder / "train.tsv")
    write_pairs(data.splits["validation"][:NUM_VALIDATION], folder / "dev.tsv")
    job = TrainJob(
        TrainConfig(
            method=training.method, model=training.model or write_bert_base(scratch / "bert-base")
        ),
        DataConfig(dataset=str(folder)),
        {**QUIET, **training.arguments, "num_train_epochs": training.epochs},
        output_dir=folder / "run",
    )
    sides = {}
    for side, function in (("estimated", estimate), ("measured", train)):
        # In a new process, because the peak memory is that of the process.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            sides[side] = pool.apply(function, (job,))
    print(f"{training.method}: {sides}", flush=True)
    return {**sides, "examples": len(examples), "epochs": training.epochs}


def best_of(repeats: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the lowest values, because other load on the machine only increases them."""
    lowest = {
        side: {key: min(repeat[side][key] for repeat in repeats) for key in repeats[0][side]}
        for side in ("estimated", "measured")
    }
    return {**repeats[0], **lowest}


def estimate(job: TrainJob) -> dict[str, float]:
    """Estimate a training as `peft-mrpc doctor` does."""
    prepare_processes()
    base = load_base_model(job.config)
    cost = estimate_cost(job, base, measure_training_set(job, base))
    epochs = job.training_arguments["num_train_epochs"]
    seconds = cost.start_seconds + cost.cache_seconds + epochs * cost.epoch_seconds
    return {"seconds": seconds, "peak": cost.peak_bytes}


def train(job: TrainJob) -> dict[str, float]:
    """Run a training."""
    record = run_training(job).record
    peak = record["peak_memory"]
    return {
        "seconds": record["timing"]["train_seconds"],
        "peak": peak.get("gpu_bytes", peak["resident_bytes"]),
    }


def result_rows(parts: dict[str, Any]) -> list[Row]:
    rows = []
    for name, part in parts.items():
        for key, title, unit in (("seconds", "training", "s"), ("peak", "peak memory", "bytes")):
            estimated, measured = part["estimated"][key], part["measured"][key]
            ratio = 1 - abs(estimated - measured) / measured
            row = {"name": f"{name}: {title}", "ours": estimated, "peer": measured, "ratio": ratio}
            rows.append({**row, "goal": GOAL, "unit": unit})
    return rows


if __name__ == "__main__":
    run(main)
