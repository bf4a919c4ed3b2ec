"""Accuracy of every method with its recipe, over seeds.

    python benchmarks/accuracy.py

Each row is one `peft-mrpc train` command, run with several seeds. The results go into
`accuracy.json` beside this file, the table into `accuracy.md`, the plot into `accuracy.png`. Seeds
in the result file are not trained again: `--rows lora full --seeds 1,2,3` adds to them, `--rows`
without a value only writes the page. `--overwrite` removes the results of the selected rows; Runs
in `--output_dir` are still reused. `--quick` trains one seed on a few pairs: it tests every row but
does not measure its accuracy.
"""

import argparse
import itertools
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

from bench import Row, build_parser, build_report, markdown, positive, run
from matplotlib.figure import Figure

from peft_mrpc.config import TRAIN_DEFAULTS, DataConfig, TrainConfig
from peft_mrpc.data.loading import load_data
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.report.plots import RunPoint, plot_costs
from peft_mrpc.runs.run import Run, load_run

MINILM = "--model builtin:minilm"
# Options of `train` by row, usually the method and the model only.
ROWS = {
    name: options.split()
    for name, options in {
        **{method: f"--method {method} {MINILM}" for method in METHODS},
        "full, batch size 16": f"--method full --per_device_train_batch_size 16 {MINILM}",
        "layer_freeze, layers 3 and 4": (
            f"--method layer_freeze --head_layer 4 --sam_rho 0 {MINILM}"
        ),
        "lora, SmolLM2, NF4": "--method lora --model builtin:smollm2 --quantization nf4",
    }.items()
}
# Goals of the mean accuracy over seeds, and of the F1 of both labels.
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
# Options that differ between seeds or machines, or change no metric.
IGNORED_OPTIONS = set("seed dataset split disable_tqdm save_strategy remove_unused_columns".split())
QUICK = ["--max_train_samples", "64", "--max_eval_samples", "64", "--num_train_epochs", "1"]


def main() -> None:
    options = parse_options()
    report = build_report("accuracy", options)
    load_data(DataConfig(dataset=options.dataset))  # raises before the first training
    results = {row["name"]: row for row in report.read().get("results", ())}
    for name in options.rows if options.overwrite else ():
        results.pop(name, None)
    with tempfile.TemporaryDirectory() as scratch:
        parent = Path(scratch) if options.quick else options.output_dir
        names, commands = {}, {}
        for seed, name in itertools.product(options.seeds.split(","), options.rows):
            if seed in results.get(name, {"seeds": {}})["seeds"]:
                continue
            folder = parent / f"{name.replace(', ', '-')}-{seed}"
            arguments = ["train", *ROWS[name], *(QUICK if options.quick else [])]
            arguments += ["--dataset", options.dataset, "--split", "validation", "--seed", seed]
            names[folder], commands[folder] = name, arguments
        for folder in run_all(commands, options.jobs):
            add_run(results, names[folder], load_run(folder))
            results = {name: results[name] for name in ROWS if name in results}
            report.write(list(results.values()))
    for name, row in results.items():
        row["command"] = format_command(name, row, options.quick)
    if commands:
        report.write(list(results.values()))
    report.show(accuracy_table(results), "accuracy")
    report.draw(lambda: plot_accuracy(results))


def parse_options() -> argparse.Namespace:
    parser = build_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--seeds", help="default: 1,2,3,4,5")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--jobs", type=positive, help="parallel trainings (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="remove earlier results of --rows")
    options = parser.parse_args()
    seeds, jobs = ("1", 2) if options.quick else ("1,2,3,4,5", 1)
    options.seeds, options.jobs = options.seeds or seeds, options.jobs or jobs
    return options


def run_all(commands: Mapping[Path, Sequence[str]], jobs: int) -> Iterator[Path]:
    """Run commands in parallel, each with its share of the cores.

    Args:
        commands: Arguments of `peft-mrpc` by output directory.
        jobs: Number of parallel processes.
    Yields:
        The output directories, in the order in which the commands end.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    errors = []
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(run_command, arguments, folder, threads): folder
            for folder, arguments in commands.items()
        }
        for future in as_completed(futures):
            if error := future.result():
                errors.append(f"{futures[future].name}: {error}")
            else:
                yield futures[future]
    if errors:
        sys.exit("\n".join(errors))


def run_command(arguments: Sequence[str], folder: Path, threads: int) -> str:
    """Run a command unless its Run exists, with a log file next to the Run.

    Returns:
        The error, empty without one.
    """
    if (folder / "metrics.json").is_file():
        return ""
    folder.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    quiet = ["--disable_tqdm", "true"] if arguments[0] == "train" else []
    command = [sys.executable, "-m", "peft_mrpc", *arguments, *quiet, "--output_dir", str(folder)]
    with folder.with_name(f"{folder.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=log,
            stderr=log,
            check=False,
        )
    print(f"{folder.name}: {time.perf_counter() - started:.0f} s", flush=True)
    return "" if process.returncode == 0 else f"failed, see {log.name}"


def add_run(results: dict[str, Any], name: str, run: Run) -> None:
    """Add the Run of one seed to its row; exit if its settings differ from those of the row."""
    metrics, record = run.metrics["validation"], run.record
    options = {**record["config"], **record["method_options"]}
    settings = {
        "method": record["method"],
        "model": record["model"],
        "config": {key: value for key, value in options.items() if key not in IGNORED_OPTIONS},
        "trained": record["trainable"]["trained"],
        "total": record["trainable"]["total"],
        "precision": record["precision"],
        "num_examples": metrics["num_examples"],
        "majority_accuracy": metrics["majority_accuracy"],
        "fingerprints": {
            name: split["fingerprint"] for name, split in record["data"]["splits"].items()
        },
        "versions": record["versions"],
    }
    row = results.setdefault(name, settings)
    # An option that the earlier version did not have counts as its default.
    old, new = {**DEFAULTS, **row["config"]}, settings["config"]
    same_config = all(old[key] == new[key] for key in set(old) & set(new))
    if not same_config or any(row[key] != settings[key] for key in set(settings) - {"config"}):
        sys.exit(f"{name}: its results have other settings, data or versions; use --overwrite")
    row.setdefault("seeds", {})[str(record["seed"])] = {
        **{key: metrics[key] for key in ("accuracy", "f1", "roc_auc")},
        "train_seconds": record["timing"]["train_seconds"],
        "peak_memory": max(record["peak_memory"].values()),
        "hardware": record["hardware"],
        "finished": record["finished"],
    }
    row |= aggregate_seeds(name, row)


def aggregate_seeds(name: str, row: Row) -> Row:
    """The means over the seeds of a row, and its goals."""
    runs = list(row["seeds"].values())
    goal, f1_goal = GOALS.get(name, (None, None))
    labels = list(runs[0]["f1"])
    return {
        "name": name,
        "ours": statistics.fmean(run["accuracy"] for run in runs),
        "goal": goal,
        "f1": {label: statistics.fmean(run["f1"][label] for run in runs) for label in labels},
        "f1_goal": f1_goal and dict(zip(labels, f1_goal, strict=True)),
        "unit": "accuracy",
    }


def format_command(name: str, row: Row, quick: bool) -> str:
    """The command of a row, with all of its seeds."""
    seeds = ",".join(sorted(row["seeds"], key=int))
    flag = "--seeds" if len(row["seeds"]) > 1 else "--seed"
    command = ["peft-mrpc", "train", *ROWS[name], *(QUICK if quick else [])]
    return shlex.join([*command, "--dataset", "MRPC", flag, seeds])


def mean_and_deviation(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def accuracy_table(results: dict[str, Any]) -> str:
    """The rows by model and number of trained parameters."""
    if not results:
        return "No results."
    first = next(iter(results.values()))
    head = ["method", "trained", "share", "precision", "seeds", "accuracy", "goal", "minimum"]
    head += [f"F1 {label.replace('_', ' ')}" for label in first["f1"]]
    head += ["F1 goals", "ROC-AUC", "training", "peak memory"]
    majority = ["majority label", "-", "-", "-", "-", f"{first['majority_accuracy']:.3f}"]
    lines = [majority + ["-"] * (len(head) - len(majority))]
    for row in sorted(results.values(), key=lambda row: (row["model"], row["trained"])):
        runs = list(row["seeds"].values())
        accuracies = [run["accuracy"] for run in runs]
        f1_goals = [f"{goal:.2f}" for goal in (row["f1_goal"] or {}).values()]
        lines.append(
            [
                f"`{row['name']}`",
                f"{row['trained']:,}",
                f"{row['trained'] / row['total']:.2%}",
                row["precision"],
                str(len(runs)),
                mean_and_deviation(accuracies),
                "-" if row["goal"] is None else f"{row['goal']:.2f}",
                f"{min(accuracies):.3f}",
                *[f"{f1:.3f}" for f1 in row["f1"].values()],
                " / ".join(f1_goals) or "-",
                mean_and_deviation([run["roc_auc"] for run in runs]),
                f"{statistics.median(run['train_seconds'] for run in runs):.0f} s",
                f"{statistics.median(run['peak_memory'] for run in runs) / 1e9:.2f} GB",
            ]
        )
    return markdown(head, lines)


def plot_accuracy(results: dict[str, Any]) -> Figure:
    points = [
        RunPoint(
            name=name,
            method=row["method"],
            trained=row["trained"],
            train_seconds=statistics.median(run["train_seconds"] for run in row["seeds"].values()),
            accuracy=row["ours"],
        )
        for name, row in results.items()
    ]
    num_examples = next(iter(results.values()))["num_examples"]
    return plot_costs(points, f"MRPC dev, {num_examples} examples, mean over seeds")


if __name__ == "__main__":
    run(main)
