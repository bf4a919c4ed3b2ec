"""How the cost of layer_freeze grows with the number of pairs, and the speed of two processes.

    python benchmarks/scaling.py

Larger sets repeat MRPC with a number in front of each sentence 1, so that no pair occurs twice. One
epoch; activations beyond 200 MB are in a memory-mapped temporary file. The second comparison trains
on one core, and on two cores with one process each: with the same number of pairs a step in total,
and with the same number of pairs a step in each process. Two independent trainings at the same time
show the upper bound. All trainings use the command line. The results go into `scaling.json` beside
this file, the tables into `scaling.md`, the plot into `scaling.png`.
"""

import argparse
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

MEMORY_MB = 200
CONFIG = HERE.parent / "accelerate_configs" / "multi_cpu.yaml"
FLAGS = ["--method", "layer_freeze", "--model", "builtin:minilm", "--swap_sentences", "false"]
FLAGS += ["--sam_rho", "0"]
FLAGS += ["--pooling", "native", "--disable_tqdm", "true", "--seed", "1"]
FLAGS += ["--save_strategy", "no", "--report_to", "none"]
DEV_PAIRS = 40
SIZES = [1000, 10_000, 100_000]
SIZE_GOAL, MEMORY_GOAL, PROCESSES_GOAL = 1.0, 1.0, 1.6
# Processes, and training pairs a step on each.
SHARES = {
    "one, 16 pairs a step": (1, 16),
    "two, 8 pairs a step on each": (2, 8),
    "two, 16 pairs a step on each": (2, 16),
}
APART = "two trainings at once, 16 pairs a step"


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
        "--sizes",
        type=sizes_of,
        help="training pairs, such as 1000,10000 (default: those and 100000)",
    )
    parser.add_argument("--pairs", type=positive, help="of the second comparison (default: 1500)")
    parser.add_argument("--repeats", type=positive, help="of the second comparison (default: 3)")
    options = parser.parse_args()
    sizes, pairs, repeats = ([1000, 10_000], 1000, 1) if options.quick else (SIZES, 1500, 3)
    options.sizes = options.sizes or sizes
    options.pairs, options.repeats = options.pairs or pairs, options.repeats or repeats
    return options


def sizes_of(text: str) -> list[int]:
    """Whole numbers of an option, the smallest first."""
    return sorted(positive(size) for size in text.split(","))


# ---- measuring ----


def train_size(data: DataSplits, size: int, scratch: Path) -> Row:
    """One epoch over so many pairs, frozen layers included."""
    words = [*write_repeated(data, scratch / f"data-{size}", size), "--num_train_epochs", "1"]
    words += ["--activation_cache_memory", f"{MEMORY_MB}MB"]
    found = train(scratch / f"run-{size}", words, 1, 2)
    seconds = train_seconds(found)
    print(f"{size:,} pairs: {seconds:.0f} s", flush=True)
    return {
        "pairs": size,
        "pairs_per_second": size / seconds,
        "resident_bytes": max(found["run"]["peak_memory"].values()),
        "own_bytes": found["own_bytes"],
    }


def write_repeated(data: DataSplits, folder: Path, size: int) -> list[str]:
    """So many different training pairs, and a few dev pairs; the flags that name them."""
    folder.mkdir()
    write_pairs(repeat(data.splits["train"], size), folder / "train.tsv")
    write_pairs(data.splits["validation"][:DEV_PAIRS], folder / "dev.tsv")
    return ["--dataset", str(folder)]


def repeat(pairs: Sequence[Example], size: int) -> list[Example]:
    """The pairs again and again, numbered, until they are so many."""
    rounds = ((n // len(pairs), pairs[n % len(pairs)]) for n in range(size))
    return [replace(pair, sentence1=f"{number} {pair.sentence1}") for number, pair in rounds]


def compare_processes(
    data: DataSplits, options: argparse.Namespace, scratch: Path
) -> dict[str, dict[str, Any]]:
    """Three epochs on one process and on two, in turns: seconds, and the best in pairs a second."""
    words = [*write_repeated(data, scratch / "processes", options.pairs), "--num_train_epochs", "3"]
    seconds: dict[str, list[float]] = {name: [] for name in (*SHARES, APART)}
    for turn in range(options.repeats):
        for name, (processes, batch) in SHARES.items():
            flags = [*words, "--per_device_train_batch_size", str(batch)]
            found = train(scratch / f"on-{processes}-{batch}-{turn}", flags, processes, 1)
            seconds[name].append(train_seconds(found))
        folders = [scratch / f"apart-{number}-{turn}" for number in range(2)]
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda folder: train(folder, words, 1, 1), folders))
        seconds[APART].append(max(train_seconds(found) for found in both))
        print(*(f"{name}: {own[-1]:.0f} s" for name, own in seconds.items()), sep="\n", flush=True)
    pairs = {name: 3 * options.pairs * (2 if name == APART else 1) for name in seconds}
    return {
        name: {"pairs_per_second": pairs[name] / min(own), "seconds": own, "pairs": options.pairs}
        for name, own in seconds.items()
    }


def train_seconds(found: dict[str, Any]) -> float:
    return float(found["run"]["timing"]["train_seconds"])


def train(folder: Path, flags: list[str], processes: int, threads: int) -> dict[str, Any]:
    """One training by the command line: its record, and its peak anonymous memory."""
    command = [sys.executable, "-m", "peft_mrpc.train"]
    if processes > 1:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
        command = [*launch, "--num_processes", str(processes), "-m", "peft_mrpc.train"]
    process = subprocess.Popen(
        [*command, *FLAGS, *flags, "--output_dir", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    # Without the pages of mapped files, which the system drops when memory runs short.
    with PeakMemory(process.pid, "RssAnon") as watched:
        process.wait()
    if process.returncode:
        sys.exit(f"{folder.name}: the training failed (exit code {process.returncode}), see above")
    return {
        "run": json.loads((folder / "run.json").read_text("utf-8")),
        "own_bytes": watched.peak,
    }


# ---- showing ----


def size_rows(sizes: Sequence[Row]) -> list[Row]:
    """Speeds against that of the next fewer pairs, and memory added against the limit given."""
    if not sizes:
        return []
    rows, least = [], sizes[0]
    for fewer, size in zip((least, *sizes), sizes, strict=False):
        speeds = size["pairs_per_second"], fewer["pairs_per_second"]
        goal = None if size is least else SIZE_GOAL
        title = f"{size['pairs']:,} pairs against {fewer['pairs']:,}"
        rows.append(speed_row(title, *speeds, goal, memory=size["own_bytes"]))
    for size in sizes[1:]:
        added = max(1, size["own_bytes"] - least["own_bytes"])
        rows.append(
            {
                "name": f"{size['pairs']:,} pairs: memory over {least['pairs']:,}'s, and its limit",
                "ours": added,
                "peer": MEMORY_MB * 10**6,
                "ratio": MEMORY_MB * 10**6 / added,
                "goal": MEMORY_GOAL,
                "unit": "bytes",
            }
        )
    return rows


def process_rows(found: dict[str, dict[str, Any]]) -> list[Row]:
    (_, one), *others = found.items()
    return [
        speed_row(
            f"{name}, against one process on one core",
            *(two["pairs_per_second"], one["pairs_per_second"]),
            None if name == APART else PROCESSES_GOAL,
            seconds={"ours": two["seconds"], "peer": one["seconds"]},
        )
        for name, two in others
    ]


def show(report: Report, sizes: Sequence[Row], processes: dict[str, dict[str, Any]]) -> None:
    rows = [*size_rows(sizes), *process_rows(processes)]
    report.show(goal_table(rows), "goals")
    report.show(size_table(sizes), "sizes")
    report.show(process_table(processes), "processes")
    speeds = [row for row in rows if row["unit"] == "pairs/s"]
    report.draw(lambda: plot_comparisons(speeds, "pairs a second"))


def size_table(sizes: Sequence[Row]) -> str:
    lines = [
        [
            f"{size['pairs']:,}",
            f"{size['pairs_per_second']:.0f}",
            *(f"{size[key] / 1e9:.2f} GB" for key in ("own_bytes", "resident_bytes")),
        ]
        for size in sizes
    ]
    head = ["pairs", "pairs/s, frozen layers and one epoch", "memory", "with mapped files"]
    return markdown(head, lines)


def process_table(found: dict[str, dict[str, Any]]) -> str:
    speeds = {name: one["pairs_per_second"] for name, one in found.items()}
    first = next(iter(speeds.values()))
    lines = [[name, f"{speed:.0f}", f"{speed / first:.2f}"] for name, speed in speeds.items()]
    return markdown(["processes, one core each", "pairs/s", "ratio"], lines)


if __name__ == "__main__":
    run(main)
