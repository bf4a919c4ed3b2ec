"""Training speed and memory of `layer_freeze` by number of pairs, and speed of two processes.

    python benchmarks/scaling.py

The first comparison repeats MRPC with a number before each sentence 1, so that all pairs differ,
and trains one epoch; the activations are in a memory-mapped temporary file. The second trains with
one process on one core and with two processes on two cores: with the same total batch size, and
with the same batch size of each process. Two independent trainings at the same time are the upper
bound. All trainings use the command line. The results go into `scaling.json` beside this file, the
tables into `scaling.md`, the plot into `scaling.png`.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import (
    HERE,
    PeakMemory,
    Report,
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
    write_pairs,
)

from peft_mrpc.data.examples import DataSplits, Example

MEMORY_LIMIT = 200 * 10**6
CONFIG = HERE.parent / "accelerate_configs" / "multi_cpu.yaml"
FLAGS = (
    "--method layer_freeze --model builtin:minilm --pooling native --swap_sentences false "
    "--sam_rho 0 --seed 1 --disable_tqdm true --save_strategy no --report_to none"
).split()
DEV_PAIRS = 40
SIZES = [1000, 10_000, 100_000]
SIZE_GOAL, MEMORY_GOAL, PROCESSES_GOAL = 1.0, 1.0, 1.6
# Number of processes, and batch size of each.
SETTINGS = {
    "1 process, batch size 16": (1, 16),
    "2 processes, batch size 8": (2, 8),
    "2 processes, batch size 16": (2, 16),
}
INDEPENDENT = "2 independent trainings, batch size 16"


def main() -> None:
    options = parse_options()
    report = build_report("scaling", options)
    data = load_both(options.dataset)
    sizes: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in options.sizes:
            sizes.append(train_size(data, size, Path(scratch)))
            report.write(size_rows(sizes), sizes=sizes)
        processes = compare_processes(data, options, Path(scratch))
    report.write([*size_rows(sizes), *process_rows(processes)], sizes=sizes, processes=processes)
    show(report, sizes, processes)


def parse_options() -> argparse.Namespace:
    parser = build_parser(__doc__)
    parser.add_argument(
        "--sizes", type=parse_sizes, help="training pairs (default: 1000,10000,100000)"
    )
    parser.add_argument("--pairs", type=positive, help="pairs for processes (default: 1500)")
    parser.add_argument("--repeats", type=positive, help="repeats for processes (default: 3)")
    options = parser.parse_args()
    sizes, pairs, repeats = ([1000, 10_000], 1000, 1) if options.quick else (SIZES, 1500, 3)
    options.sizes = options.sizes or sizes
    options.pairs, options.repeats = options.pairs or pairs, options.repeats or repeats
    return options


def parse_sizes(text: str) -> list[int]:
    """Parse numbers separated by commas, sorted."""
    return sorted(positive(size) for size in text.split(","))


# ---- measurement ----


def train_size(data: DataSplits, size: int, scratch: Path) -> Row:
    """Train one epoch on `size` pairs, including the frozen layers."""
    flags = [*write_repeated(data, scratch / f"data-{size}", size), "--num_train_epochs", "1"]
    record, anonymous_bytes = train(scratch / f"run-{size}", flags, 1, 2)
    seconds = record["timing"]["train_seconds"]
    print(f"{size:,} pairs: {seconds:.0f} s", flush=True)
    return {
        "pairs": size,
        "pairs_per_second": size / seconds,
        "resident_bytes": max(record["peak_memory"].values()),
        "anonymous_bytes": anonymous_bytes,
    }


def write_repeated(data: DataSplits, folder: Path, size: int) -> list[str]:
    """Write `size` different training pairs and a few dev pairs; returns the options for them."""
    folder.mkdir()
    write_pairs(repeat(data.splits["train"], size), folder / "train.tsv")
    write_pairs(data.splits["validation"][:DEV_PAIRS], folder / "dev.tsv")
    return ["--dataset", str(folder)]


def repeat(pairs: Sequence[Example], size: int) -> list[Example]:
    """Repeat the pairs up to `size`, with the number of the repetition before each sentence 1."""
    rounds = ((n // len(pairs), pairs[n % len(pairs)]) for n in range(size))
    return [replace(pair, sentence1=f"{number} {pair.sentence1}") for number, pair in rounds]


def compare_processes(
    data: DataSplits, options: argparse.Namespace, scratch: Path
) -> dict[str, dict[str, Any]]:
    """Train three epochs with one process and with two, alternating."""
    flags = [*write_repeated(data, scratch / "processes", options.pairs), "--num_train_epochs", "3"]
    seconds: dict[str, list[float]] = {name: [] for name in (*SETTINGS, INDEPENDENT)}
    for repeat in range(options.repeats):
        for name, (processes, batch) in SETTINGS.items():
            folder = scratch / f"{processes}-{batch}-{repeat}"
            batch_size = ["--per_device_train_batch_size", str(batch)]
            record, _ = train(folder, [*flags, *batch_size], processes, 1)
            seconds[name].append(record["timing"]["train_seconds"])
        folders = [scratch / f"independent-{number}-{repeat}" for number in range(2)]
        with ThreadPoolExecutor(2) as pool:
            runs = list(pool.map(lambda folder: train(folder, flags, 1, 1), folders))
        times = [record["timing"]["train_seconds"] for record, _ in runs]
        seconds[INDEPENDENT].append(max(times))
        for name, times in seconds.items():
            print(f"{name}: {times[-1]:.0f} s", flush=True)
    pairs = {name: 3 * options.pairs * (2 if name == INDEPENDENT else 1) for name in seconds}
    return {
        name: {
            "pairs_per_second": pairs[name] / min(times),
            "seconds": times,
            "pairs": options.pairs,
        }
        for name, times in seconds.items()
    }


def train(
    folder: Path, flags: list[str], processes: int, threads: int
) -> tuple[dict[str, Any], int]:
    """Train with the command line; returns `run.json` and the peak of anonymous memory."""
    command = [sys.executable, "-m", "peft_mrpc.train"]
    if processes > 1:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
        command = [*launch, "--num_processes", str(processes), "-m", "peft_mrpc.train"]
    process = subprocess.Popen(
        [*command, *FLAGS, *flags, "--output_dir", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    # Anonymous memory excludes mapped files, which the system reclaims when it needs memory.
    with PeakMemory(process.pid, "RssAnon") as memory:
        process.wait()
    if process.returncode:
        sys.exit(f"{folder.name}: the training failed with exit code {process.returncode}")
    return json.loads((folder / "run.json").read_text("utf-8")), memory.peak


# ---- report ----


def size_rows(sizes: Sequence[Row]) -> list[Row]:
    """Speeds relative to the next smaller size, and the added memory relative to its limit."""
    rows: list[Row] = []
    for smaller, size in itertools.pairwise(sizes):
        name = f"{size['pairs']:,} pairs vs. {smaller['pairs']:,} pairs"
        speeds = size["pairs_per_second"], smaller["pairs_per_second"]
        rows.append(speed_row(name, *speeds, SIZE_GOAL, memory=size["anonymous_bytes"]))
    for size in sizes[1:]:
        added, limit = size["anonymous_bytes"] - sizes[0]["anonymous_bytes"], MEMORY_LIMIT
        rows.append(
            {
                "name": f"{size['pairs']:,} pairs: added memory vs. its limit",
                "ours": max(1, added),
                "peer": limit,
                "ratio": limit / max(1, added),
                "goal": MEMORY_GOAL,
                "unit": "bytes",
            }
        )
    return rows


def process_rows(processes: dict[str, dict[str, Any]]) -> list[Row]:
    (first_name, first), *others = processes.items()
    return [
        speed_row(
            f"{name} vs. {first_name}",
            row["pairs_per_second"],
            first["pairs_per_second"],
            None if name == INDEPENDENT else PROCESSES_GOAL,
            seconds={"ours": row["seconds"], "peer": first["seconds"]},
        )
        for name, row in others
    ]


def show(report: Report, sizes: Sequence[Row], processes: dict[str, dict[str, Any]]) -> None:
    rows = [*size_rows(sizes), *process_rows(processes)]
    report.show(goal_table(rows), "goals")
    report.show(size_table(sizes), "sizes")
    report.show(process_table(processes), "processes")
    speeds = [row for row in rows if row["unit"] == "pairs/s"]
    report.draw(lambda: plot_comparisons(speeds, "pairs per second"))


def size_table(sizes: Sequence[Row]) -> str:
    lines = [
        [
            f"{size['pairs']:,}",
            f"{size['pairs_per_second']:.0f}",
            f"{size['anonymous_bytes'] / 1e9:.2f} GB",
            f"{size['resident_bytes'] / 1e9:.2f} GB",
        ]
        for size in sizes
    ]
    return markdown(["pairs", "pairs/s", "anonymous memory", "with mapped files"], lines)


def process_table(processes: dict[str, dict[str, Any]]) -> str:
    speeds = {name: row["pairs_per_second"] for name, row in processes.items()}
    first = next(iter(speeds.values()))
    lines = [[name, f"{speed:.0f}", f"{speed / first:.2f}"] for name, speed in speeds.items()]
    return markdown(["one core for each process", "pairs/s", "ratio"], lines)


if __name__ == "__main__":
    run(main)
