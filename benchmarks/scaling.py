"""How the cost of layer_freeze grows with the pairs, and what a second process is worth.

    python benchmarks/scaling.py --dataset MRPC --sizes 1000,10000,100000

Larger sets repeat MRPC with a number in front of each sentence 1: no pair comes twice, and nothing
is found that is not computed. One epoch, 200 MB of the activations in memory, the rest on disk. The
second table trains once on one core, and once on two with a process on each, through the commands
that a user types. Both go into `speed.md` beside this file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from accuracy import HERE
from speed import put_table

MEMORY = "200MB"
CONFIG = HERE.parent / "accelerate_configs" / "multi_cpu.yaml"
FLAGS = ["--method", "layer_freeze", "--model", "builtin:minilm", "--swap_sentences", "false"]
FLAGS += ["--pooling", "native", "--disable_tqdm", "true", "--seed", "1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True, help="directory in GLUE's layout")
    parser.add_argument("--sizes", default="1000,10000", help="training pairs, comma-separated")
    parser.add_argument("--pairs", type=int, default=1500, help="of the second table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sizes = [int(size) for size in options.sizes.split(",")]
        write_sizes(options.dataset, sizes, Path(scratch))
        write_processes(options.dataset, options.pairs, Path(scratch))


def write_sizes(dataset: Path, sizes: list[int], scratch: Path) -> None:
    lines = [
        "| pairs | pairs/s, frozen layers and one epoch | peak memory | kept on disk |",
        "|---|---|---|---|",
    ]
    for size in sizes:
        folder = scratch / str(size)
        write_repeated(dataset, folder, size)
        flags = ["--dataset", str(folder), "--num_train_epochs", "1"]
        run, kept = train(scratch / f"run-{size}", [*flags, "--trunk_cache_memory", MEMORY], 1, 2)
        memory = max(run["peak_memory"].values())
        speed = size / run["timing"]["train_seconds"]
        lines.append(f"| {size:,} | {speed:.0f} | {memory / 1e9:.2f} GB | {kept / 1e9:.2f} GB |")
    put_table("\n".join(lines), "sizes of scaling.py")


def write_repeated(dataset: Path, folder: Path, size: int) -> None:
    """So many different training pairs, and a few dev pairs, in GLUE's layout."""
    folder.mkdir()
    header, *rows = (dataset / "train.tsv").read_text("utf-8-sig").strip("\n").split("\n")
    lines = [header]
    for number in range(size):
        cells = rows[number % len(rows)].split("\t")
        cells[3] = f"{number // len(rows)} {cells[3]}"
        lines.append("\t".join(cells))
    (folder / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    few = (dataset / "dev.tsv").read_text("utf-8-sig").split("\n")[:41]
    (folder / "dev.tsv").write_text("\n".join(few) + "\n", encoding="utf-8")


def write_processes(dataset: Path, pairs: int, scratch: Path) -> None:
    folder = scratch / "processes"
    write_repeated(dataset, folder, pairs)
    flags = ["--dataset", str(folder), "--num_train_epochs", "3"]
    speeds = {}
    for processes, batch in ((1, 16), (2, 8)):
        words = [*flags, "--per_device_train_batch_size", str(batch)]
        run, _ = train(scratch / f"on-{processes}", words, processes, 1)
        speeds[processes] = 3 * pairs / run["timing"]["train_seconds"]
    lines = ["| processes, one core each | pairs/s | ratio |", "|---|---|---|"]
    lines += [f"| {n} | {speed:.0f} | {speed / speeds[1]:.2f} |" for n, speed in speeds.items()]
    put_table("\n".join(lines), "processes of scaling.py")


def train(
    folder: Path, flags: list[str], processes: int, threads: int
) -> tuple[dict[str, Any], int]:
    """One training by the command line; its record, and the bytes that it kept on disk."""
    trunks = folder.with_name(f"{folder.name}-trunks")
    command = [sys.executable, "-m", "peft_mrpc.train"]
    if processes > 1:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
        command = [*launch, "--num_processes", str(processes), "-m", "peft_mrpc.train"]
    subprocess.run(
        [*command, *FLAGS, *flags, "--output_dir", str(folder)],
        env={**os.environ, "PEFT_MRPC_TRUNKS": str(trunks), "OMP_NUM_THREADS": str(threads)},
        check=True,
    )
    kept = sum(path.stat().st_size for path in trunks.rglob("*") if path.is_file())
    return json.loads((folder / "run.json").read_text("utf-8")), kept


if __name__ == "__main__":
    main()
