"""Accuracy of every method over seeds, each by its recipe as shipped: a table and a picture.

    python benchmarks/accuracy.py --dataset MRPC --output_dir runs/accuracy

MRPC is the directory that holds `train.tsv` and `dev.tsv`. Each row is one `peft-mrpc train` with
`--seeds`. What is finished is not run again: `--rows lora full` adds to what is there. The table
goes into `accuracy.md` beside this file, the numbers into `accuracy.json`, the picture into
`accuracy.png`.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peft_mrpc.methods import METHODS
from peft_mrpc.plots import DPI, ParameterPoint, plot_accuracy_against_parameters
from peft_mrpc.runs import Run, load_run

HERE = Path(__file__).parent
RESULTS = HERE / "accuracy.json"
PAGE = HERE / "accuracy.md"
PICTURE = HERE / "accuracy.png"
MINILM = ["--model", "builtin:minilm"]

# What is trained: the flags of `train` of each row. Nothing but the method and the model is said,
# so what is measured are the recipes.
ROWS: dict[str, list[str]] = {
    **{name: ["--method", name, *MINILM] for name in METHODS},
    "lora, SmolLM2, NF4": [
        *["--method", "lora", "--model", "builtin:smollm2", "--quantization", "nf4"],
        *["--bf16", "--use_cpu"],
    ],
}


def main() -> None:
    options = parse_options()
    run_all({place(options, name): command(name, options) for name in options.rows}, options.jobs)
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    for name in options.rows:
        results[name] = describe(load_run(place(options, name)), command(name, options), options)
    results = {name: results[name] for name in ROWS if name in results}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_table(table(results), "accuracy.py")
    draw(results)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--dataset", required=True, help="directory in GLUE's layout")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--jobs", type=int, default=1, help="rows trained at the same time")
    return parser.parse_args()


def place(options: argparse.Namespace, name: str) -> Path:
    return Path(options.output_dir / name.replace(", ", "-"))


def command(name: str, options: argparse.Namespace) -> list[str]:
    """What a user would type for this row, but for the place of the Run."""
    seeds = ["--seeds", options.seeds] if "," in options.seeds else ["--seed", options.seeds]
    return ["train", *ROWS[name], "--dataset", options.dataset, "--split", "validation", *seeds]


def run_command(words: Sequence[str], folder: Path, threads: int) -> str:
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
                *[sys.executable, "-m", "peft_mrpc", *words],
                *["--output_dir", str(folder), "--disable_tqdm", "true"],
            ],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=log,
            stderr=log,
            check=False,
        )
    print(f"{folder.name}: {time.perf_counter() - started:.0f} s", flush=True)
    return "" if outcome.returncode == 0 else f"failed, see {log.name}"


def run_all(commands: Mapping[Path, Sequence[str]], jobs: int) -> None:
    """Train all of them, so many at a time, each with its share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = pool.map(lambda one: run_command(one[1], one[0], threads), commands.items())
        faults = {
            folder.name: fault for folder, fault in zip(commands, outcomes, strict=True) if fault
        }
    if faults:
        sys.exit("\n".join(f"{name}: {fault}" for name, fault in faults.items()))


def describe(run: Run, words: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """What the page says of a Run, and what it was made with."""
    values, record = run.metrics["validation"], run.record
    seeds = values.get("seeds", {str(record["seed"]): values})
    typed = ["MRPC" if word == options.dataset else word for word in words]
    return {
        "command": shlex.join(["peft-mrpc", *typed]),
        "method": record["method"],
        "model": record["model"],
        "trained": record["trainable"]["trained"],
        "total": record["trainable"]["total"],
        "num_examples": values["num_examples"],
        "majority_accuracy": values["majority_accuracy"],
        "seeds": {
            seed: {"accuracy": one["accuracy"], "f1": one["f1"], "roc_auc": one["roc_auc"]}
            for seed, one in seeds.items()
        },
        "train_seconds": record["timing"]["train_seconds"],
        "peak_memory": record["peak_memory"],
        "fingerprints": {
            split: about["fingerprint"] for split, about in record["data"]["splits"].items()
        },
        "finished": record["finished"],
        "versions": record["versions"],
        "hardware": record["hardware"],
    }


def spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def table(results: dict[str, Any]) -> str:
    """The results in Markdown, the fewest trained parameters first within a model."""
    some = next(iter(results.values()))
    labels = list(next(iter(some["seeds"].values()))["f1"])
    head = [
        *["method", "trained", "share", "seeds", "accuracy", "worst"],
        *[f"F1 {label.replace('_', ' ')}" for label in labels],
        *["ROC-AUC", "training", "peak memory"],
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    majority = some["majority_accuracy"]
    lines.append(
        f"| always the commoner label | 0 | - | - | {majority:.3f} |" + " |" * (len(head) - 5)
    )
    for name, row in sorted(
        results.items(), key=lambda item: (item[1]["total"], item[1]["trained"])
    ):
        seeds = list(row["seeds"].values())
        accuracies = [one["accuracy"] for one in seeds]
        cells = [
            f"`{name}`",
            f"{row['trained']:,}",
            f"{row['trained'] / row['total']:.2%}",
            str(len(seeds)),
            spread(accuracies),
            f"{min(accuracies):.3f}",
            *[f"{statistics.fmean(one['f1'][label] for one in seeds):.3f}" for label in labels],
            spread([one["roc_auc"] for one in seeds]),
            f"{row['train_seconds']:.0f} s",
            f"{max(row['peak_memory'].values()) / 1e9:.2f} GB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _by_model_and_size(item: tuple[str, dict[str, Any]]) -> tuple[str, int]:
    return item[1]["model"], item[1]["trained"]


def write_table(text: str, script: str) -> None:
    """Put a script's table into the page, between its marks, and show it."""
    begin, end = f"<!-- table of {script} -->", f"<!-- end of {script} -->"
    page = PAGE.read_text("utf-8")
    before, after = page.split(begin)[0], page.split(end)[1]
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
    print(text)


def draw(results: dict[str, Any]) -> None:
    points = []
    for name, row in results.items():
        accuracies = [one["accuracy"] for one in row["seeds"].values()]
        several = len(accuracies) > 1
        points.append(
            ParameterPoint(
                name=name,
                method=row["method"],
                trained=row["trained"],
                accuracy=statistics.fmean(accuracies),
                deviation=statistics.stdev(accuracies) if several else None,
            )
        )
    some = next(iter(results.values()))
    title = f"MRPC dev, {some['num_examples']} pairs: mean and deviation over seeds"
    plot_accuracy_against_parameters(points, title).savefig(PICTURE, dpi=DPI)


if __name__ == "__main__":
    main()
