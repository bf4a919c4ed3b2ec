"""Accuracy of every method over seeds, each by its recipe as shipped: a table and a picture.

    python benchmarks/accuracy.py

Each row is one `peft-mrpc train`, run with one seed after the other. The figures go into
`accuracy.json` beside this file, the table into `accuracy.md`, the picture into `accuracy.png`. A
seed that is in the result file is not trained again: `--rows lora full --seeds 1,2,3` adds to what
is there; `--anew` forgets what those rows gave (Runs that lie in `--output_dir` are read and not
trained: remove those of other settings); `--rows` with nothing after it writes the page anew.
`--quick` trains one seed on a few pairs: it shows that every row works, not what it reaches.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from bench import Row, build_parser, build_report, markdown, run
from matplotlib.figure import Figure

from peft_mrpc.config import TRAIN_DEFAULTS, DataConfig, TrainConfig
from peft_mrpc.data.loading import load_data
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.report.plots import RunPoint, plot_costs
from peft_mrpc.runs.run import Run, load_run

MINILM = ["--model", "builtin:minilm"]

# The flags of `train` of each row: as a rule nothing but the method and the model is said, so what
# is measured are the recipes.
ROWS: dict[str, list[str]] = {
    **{name: ["--method", name, *MINILM] for name in METHODS},
    "full, in batches of 16": [
        *["--method", "full", "--per_device_train_batch_size", "16", *MINILM],
    ],
    "layer_freeze, layers 3 and 4": [
        *["--method", "layer_freeze", "--head_layer", "4", "--sam_rho", "0", *MINILM],
    ],
    "lora, SmolLM2, NF4": [
        *["--method", "lora", "--model", "builtin:smollm2", "--quantization", "nf4"],
    ],
}


# Mean accuracy to reach over five seeds, and F1 of each label, where they are set.
GOALS: dict[str, tuple[float, tuple[float, float] | None]] = {
    "full": (0.84, (0.74, 0.88)),
    "lora": (0.82, (0.70, 0.87)),
    "dora": (0.82, (0.70, 0.87)),
    "layer_freeze": (0.79, (0.66, 0.85)),
    "prefix_tuning": (0.79, None),
    "prompt_tuning": (0.77, (0.56, 0.85)),
    "lora, SmolLM2, NF4": (0.79, None),
}
DEFAULTS = {**vars(TrainConfig()), **TRAIN_DEFAULTS}
# What differs by seed or machine, and what changes neither the training nor its figures.
WITHOUT_EFFECT = {
    *("seed", "dataset", "split", "disable_tqdm", "save_strategy", "remove_unused_columns"),
}
QUICK = ["--max_train_samples", "64", "--max_eval_samples", "64", "--num_train_epochs", "1"]


def main() -> None:
    options = parse_options()
    report = build_report("accuracy", options)
    load_data(DataConfig(dataset=options.dataset))  # to say now what is wrong with them
    results = {row["name"]: row for row in report.read().get("results", ())}
    for name in options.rows if options.anew else ():
        results.pop(name, None)
    with tempfile.TemporaryDirectory() as scratch:
        commands = {}
        for seed in options.seeds.split(","):
            for name in options.rows:
                if seed not in results.get(name, {"seeds": {}})["seeds"]:
                    words = ["train", *ROWS[name], *(QUICK if options.quick else [])]
                    words += ["--dataset", options.dataset, "--split", "validation"]
                    parent = Path(scratch) if options.quick else options.output_dir
                    folder = parent / f"{name.replace(', ', '-')}-{seed}"
                    commands[folder] = (name, [*words, "--seed", seed])
        words_of = {folder: words for folder, (_, words) in commands.items()}
        for folder in run_all(words_of, options.jobs):
            add(results, commands[folder][0], load_run(folder), options)
            results = {name: results[name] for name in ROWS if name in results}
            report.write(list(results.values()))
    for name, row in results.items():
        row["command"] = command(name, row, options)
    report.write(list(results.values()))
    report.show(table(results), "accuracy")
    report.draw(lambda: draw(results))


def parse_options() -> argparse.Namespace:
    parser = build_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--seeds", help="default: 1,2,3,4,5")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--jobs", type=int, help="trainings at the same time (default: 1)")
    parser.add_argument("--anew", action="store_true", help="forget what these rows gave before")
    options = parser.parse_args()
    seeds, jobs = ("1", 2) if options.quick else ("1,2,3,4,5", 1)
    options.seeds, options.jobs = options.seeds or seeds, options.jobs or jobs
    return options


def run_all(commands: Mapping[Path, Sequence[str]], jobs: int) -> Iterator[Path]:
    """Train, so many at a time, each with its share of the cores; what is finished, first.

    Yields:
        Each Run's directory, as it gets there.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        pending = {
            pool.submit(train, words, folder, threads): folder for folder, words in commands.items()
        }
        faults = []
        for future in as_completed(pending):
            if fault := future.result():
                faults.append(f"{pending[future].name}: {fault}")
            else:
                yield pending[future]
    if faults:
        sys.exit("\n".join(faults))


def train(words: Sequence[str], folder: Path, threads: int) -> str:
    """Train unless it has been done; the log lies beside the Run.

    Returns:
        What went wrong, if anything.
    """
    if (folder / "metrics.json").is_file():
        return ""
    folder.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with folder.with_name(f"{folder.name}.log").open("w", encoding="utf-8") as log:
        outcome = subprocess.run(
            [
                *[sys.executable, "-m", "peft_mrpc", *words, "--output_dir", str(folder)],
                *(["--disable_tqdm", "true"] if words[0] == "train" else []),
            ],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=log,
            stderr=log,
            check=False,
        )
    print(f"{folder.name}: {time.perf_counter() - started:.0f} s", flush=True)
    return "" if outcome.returncode == 0 else f"failed, see {log.name}"


def add(results: dict[str, Any], name: str, run: Run, options: argparse.Namespace) -> None:
    """Put one seed's Run into the results, unless it was made otherwise than those before it."""
    values, record = run.metrics["validation"], run.record
    made = {
        "method": record["method"],
        "model": record["model"],
        "config": {
            key: value
            for key, value in {**record["config"], **record["method_options"]}.items()
            if key not in WITHOUT_EFFECT
        },
        "trained": record["trainable"]["trained"],
        "total": record["trainable"]["total"],
        "precision": record["precision"],
        "num_examples": values["num_examples"],
        "majority_accuracy": values["majority_accuracy"],
        "fingerprints": {
            split: about["fingerprint"] for split, about in record["data"]["splits"].items()
        },
        "versions": record["versions"],
    }
    row = results.setdefault(name, made)
    # A flag that did not exist then was as if left to its default.
    old, new = {**DEFAULTS, **row["config"]}, made["config"]
    same_config = all(old[key] == new[key] for key in set(old) & set(new))
    if not same_config or any(row[key] != made[key] for key in set(made) - {"config"}):
        sys.exit(f"{name}: was measured with other settings, data or versions; add --anew")
    row.setdefault("seeds", {})[str(record["seed"])] = {
        **{key: values[key] for key in ("accuracy", "f1", "roc_auc")},
        "train_seconds": record["timing"]["train_seconds"],
        "peak_memory": max(record["peak_memory"].values()),
        "hardware": record["hardware"],
        "finished": record["finished"],
    }
    row |= figures(name, row)


def figures(name: str, row: Row) -> Row:
    """What a row reaches over its seeds, beside its goals."""
    seeds = list(row["seeds"].values())
    goal, f1_goal = GOALS.get(name, (None, None))
    labels = list(seeds[0]["f1"])
    return {
        "name": name,
        "ours": statistics.fmean(one["accuracy"] for one in seeds),
        "goal": goal,
        "f1": {label: statistics.fmean(one["f1"][label] for one in seeds) for label in labels},
        "f1_goal": f1_goal and dict(zip(labels, f1_goal, strict=True)),
        "unit": "accuracy",
    }


def command(name: str, row: Row, options: argparse.Namespace) -> str:
    """What a user types for this row."""
    words = ["peft-mrpc", "train", *ROWS[name], *(QUICK if options.quick else [])]
    flag = "--seeds" if len(row["seeds"]) > 1 else "--seed"
    seeds = ",".join(sorted(row["seeds"], key=int))
    return shlex.join([*words, "--dataset", "MRPC", flag, seeds])


def spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def table(results: dict[str, Any]) -> str:
    """The results in Markdown: by model, the fewest trained parameters first."""
    if not results:
        return "Nothing is measured yet."
    some = next(iter(results.values()))
    labels = list(some["f1"])
    head = [
        *["method", "trained", "share", "in", "seeds", "accuracy", "goal", "worst"],
        *[f"F1 {label.replace('_', ' ')}" for label in labels],
        *["goals", "ROC-AUC", "training", "peak memory"],
    ]
    majority = ["always the commoner label", "-", "-", "-", "-", f"{some['majority_accuracy']:.3f}"]
    lines = [majority + ["-"] * (len(head) - len(majority))]
    for name, row in sorted(results.items(), key=_by_model_and_size):
        seeds = list(row["seeds"].values())
        accuracies = [one["accuracy"] for one in seeds]
        f1_goals = (row["f1_goal"] or {}).values()
        lines.append(
            [
                *[f"`{name}`", f"{row['trained']:,}", f"{row['trained'] / row['total']:.2%}"],
                row["precision"],
                *[str(len(seeds)), spread(accuracies)],
                *["-" if row["goal"] is None else f"{row['goal']:.2f}", f"{min(accuracies):.3f}"],
                *[f"{row['f1'][label]:.3f}" for label in labels],
                " / ".join(f"{goal:.2f}" for goal in f1_goals) or "-",
                spread([one["roc_auc"] for one in seeds]),
                f"{statistics.median(one['train_seconds'] for one in seeds):.0f} s",
                f"{statistics.median(one['peak_memory'] for one in seeds) / 1e9:.2f} GB",
            ]
        )
    return markdown(head, lines)


def _by_model_and_size(item: tuple[str, dict[str, Any]]) -> tuple[str, int]:
    return item[1]["model"], item[1]["trained"]


def draw(results: dict[str, Any]) -> Figure:
    points = []
    for name, row in results.items():
        accuracies = [one["accuracy"] for one in row["seeds"].values()]
        points.append(
            RunPoint(
                name=name,
                method=row["method"],
                trained=row["trained"],
                train_seconds=statistics.median(
                    seed["train_seconds"] for seed in row["seeds"].values()
                ),
                accuracy=statistics.fmean(accuracies),
                deviation=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            )
        )
    some = next(iter(results.values()))
    title = f"MRPC dev, {some['num_examples']} pairs: mean and deviation over seeds"
    return plot_costs(points, title)


if __name__ == "__main__":
    run(main)
