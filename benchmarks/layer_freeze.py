"""Speed of training against the script that users write today, side by side in one process.

    python benchmarks/layer_freeze.py

Every contender (`training_peer.py`) gets the same pairs, model, head, batch sizes, epochs and
threads. After a short training of each that is not timed they take turns, `--repeats` times, and
the best time of each counts: what else the machine did is not theirs. All must train as many
parameters in as many steps. The figures go into `layer_freeze.json` beside this file, the tables
into `layer_freeze.md`, the picture into `layer_freeze.png`. `--only minilm` (and its kin) measures
one part afresh and keeps the others; `--only` with nothing after it writes the page anew.
"""

import argparse
import math
import multiprocessing
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from bench import (
    Row,
    build_parser,
    build_report,
    count,
    goal_table,
    load_both,
    markdown,
    positive,
    run,
    speed_row,
)
from gemm import gemm_peak
from matplotlib.figure import Figure
from training_peer import (
    CONTENDERS,
    Outcome,
    Task,
    our_precision,
    train_ours,
    write_bert_base,
)

from peft_mrpc.data.examples import DataSplits
from peft_mrpc.distributed import prepare_processes
from peft_mrpc.environment import peak_memory

WARM_UP_PAIRS, QUICK_PAIRS = 32, 160
PLAIN, BY_BATCH, BY_BATCH_BF16, FIRST, NEXT, OURS, *IN_FP32 = CONTENDERS
FIRST_FP32, NEXT_FP32, OURS_FP32, SHIPPED, SHIPPED_PLAIN = IN_FP32
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Part:
    """A comparison.

    Attributes:
        model: As `--model`; None for a bert-base of random weights.
        epochs: Passes over the pairs.
        goals: The ratios to reach, by contender and peer; None where nothing is asked.
        method: What trains.
        share: Of the pairs asked for: deeper models take fewer.
    """

    model: str | None
    epochs: int
    goals: Mapping[tuple[str, str], float | None]
    method: str = "layer_freeze"
    share: float = 1.0

    def contenders(self, precision: str) -> list[str]:
        """Everyone who is compared where ours trains in this, in the order of their turns."""
        names = [name for name in CONTENDERS if any(name in both for both in self.goals)]
        return [name for name in names if precision == "bf16" or " in " not in name]


# Those that name a precision are there where ours trains in bf16.
MINILM_GOALS = {
    **{(FIRST, PLAIN): 5, (FIRST, BY_BATCH): 3, (NEXT, PLAIN): 10, (NEXT, BY_BATCH): None},
    **{(FIRST_FP32, PLAIN): 5, (FIRST_FP32, BY_BATCH): 3, (NEXT_FP32, PLAIN): 10},
    (FIRST, BY_BATCH_BF16): None,
}
BERT_BASE_GOALS = {
    **{(FIRST, BY_BATCH): 3.5, (NEXT, BY_BATCH): None},
    **{(FIRST_FP32, BY_BATCH): 3.5, (FIRST, BY_BATCH_BF16): None},
}
METHOD_GOALS = {(OURS, BY_BATCH): 1.3, (OURS_FP32, BY_BATCH): 1.3, (OURS, BY_BATCH_BF16): None}
PARTS: dict[str, Part] = {
    "minilm": Part("builtin:minilm", 3, MINILM_GOALS),
    "bert-base": Part(None, 5, BERT_BASE_GOALS, share=0.25),
    **{
        method: Part("builtin:minilm", 1, METHOD_GOALS, method)
        for method in ("full", "lora", "prompt_tuning")
    },
    "as shipped": Part("builtin:minilm", 5, {(SHIPPED, SHIPPED_PLAIN): None}),
}
GEMM_GOAL = 0.6


def main() -> None:
    options = parse_options()
    report = build_report("layer_freeze", options)
    data = load_both(options.dataset)
    prepare_processes()
    # Known parts only: a result file of another time may hold others, or less of them.
    kept = report.read().get("parts", {}).items()
    parts: dict[str, Any] = {k: v for k, v in kept if k in PARTS and "peak_memory" in v}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            part = PARTS[name]
            model = part.model or write_bert_base(Path(scratch) / "bert-base")
            pairs = take(data, math.ceil(options.pairs * part.share))
            task = Task(model, pairs, part.epochs, part.method)
            parts[name] = measure(task, part, options.repeats)
            parts = {key: parts[key] for key in PARTS if key in parts}
            report.write(result_rows(parts), parts=parts)
    report.show(goal_table(result_rows(parts)), "goals")
    report.show(contender_table(parts), "contenders")
    report.draw(lambda: draw(parts))


def parse_options() -> argparse.Namespace:
    parser = build_parser(__doc__)
    parser.add_argument("--pairs", type=count, help="training pairs; 0 for all (default: 1000)")
    parser.add_argument("--repeats", type=positive, help="turns of each (default: 3)")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    options = parser.parse_args()
    pairs, repeats = (QUICK_PAIRS, 1) if options.quick else (1000, 3)
    options.pairs = pairs if options.pairs is None else options.pairs
    options.repeats = options.repeats or repeats
    return options


def take(data: DataSplits, count: int) -> DataSplits:
    """So many training pairs, and as large a share of the dev pairs."""
    train, dev = data.splits["train"], data.splits["validation"]
    count = min(count, len(train)) or len(train)
    rows = {"train": train[:count], "validation": dev[: max(1, len(dev) * count // len(train))]}
    return replace(data, splits=rows)


# ---- measuring ----


def measure(task: Task, part: Part, repeats: int) -> dict[str, Any]:
    """Every contender in turn; the best of its times."""
    precision = our_precision(task)
    contenders = part.contenders(precision)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contenders}
    # The longest: whoever comes first shall not pay for the memory that all of them need.
    longest = sorted(task.data.splits["train"], key=lambda p: -len(p.sentence1 + p.sentence2))
    some = {**task.data.splits, "train": longest[:WARM_UP_PAIRS]}
    warm_up = replace(task, epochs=1, data=replace(task.data, splits=some))
    for name in contenders:
        CONTENDERS[name](warm_up)
    for _ in range(repeats):
        for name in contenders:
            outcomes[name].append(CONTENDERS[name](task))
            print(f"{task.method}: {name}: {outcomes[name][-1].seconds:.1f} s", flush=True)
    alike = {(one.steps, one.trained) for own in outcomes.values() for one in own}
    assert len(alike) == 1, f"contenders trained otherwise than each other: {outcomes}"
    if FIRST in contenders:
        check_cached(outcomes, len(task.data.splits["train"]))
    pairs = task.epochs * len(task.data.splits["train"])
    result = {
        "method": task.method,
        "model": "bert-base, random weights" if part.model is None else part.model,
        "train_pairs": len(task.data.splits["train"]),
        "scored_pairs": len(task.data.splits["validation"]),
        "epochs": task.epochs,
        "trained_parameters": outcomes[contenders[0]][0].trained,
        "seconds": {name: [one.seconds for one in own] for name, own in outcomes.items()},
        "pairs_per_second": {
            name: pairs / min(one.seconds for one in own) for name, own in outcomes.items()
        },
        "accuracy": {name: fmean(one.accuracy for one in own) for name, own in outcomes.items()},
        "peak_memory": {name: peak_alone(name, warm_up) for name in contenders},
        "threads": torch.get_num_threads(),
        "precision": precision,
    }
    if FIRST in contenders:
        tails = {one: measure_tail(task, repeats, one) for one in sorted({"fp32", precision})}
        result["tails"] = tails
    return result


def peak_alone(name: str, task: Task) -> int:
    """The most memory that a process has which trains this and nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train_alone, (name, task))


def _train_alone(name: str, task: Task) -> int:
    prepare_processes()
    CONTENDERS[name](task)
    return peak_memory()["resident_bytes"]


def check_cached(outcomes: Mapping[str, list[Outcome]], num_pairs: int) -> None:
    """Refuse times of a first run that found something, and of a next one that did not."""
    for name, own in outcomes.items():
        expected = num_pairs if "first run" in name else 0 if "next seed" in name else None
        found = {one.num_computed for one in own}
        assert found == {expected}, f"{name}: the frozen layers ran for {found} pairs"


def measure_tail(task: Task, repeats: int, precision: str) -> dict[str, float]:
    """Matrix operations a second: while the tail trains on what is kept, and at the most.

    Everything else that an epoch does (batches, dropout, the optimizer) counts as its time. The
    most is looked for before and after, so that both saw the same machine.
    """
    task, in_fp32, dtype = replace(task, epochs=1), precision == "fp32", DTYPES[precision]
    flops = train_ours(task, counts_flops=True, in_fp32=in_fp32).flops
    before = gemm_peak(dtype)
    turns = range(max(2, repeats))
    seconds = min(train_ours(task, in_fp32=in_fp32).tail_seconds for _ in turns)
    return {
        "tail_gflops": flops / seconds / 1e9,
        "gemm_gflops": max(before, gemm_peak(dtype)) / 1e9,
    }


# ---- showing ----


def result_rows(parts: Mapping[str, Any]) -> list[Row]:
    """The comparisons that a goal is set for, and some more."""
    rows = []
    for name, found in parts.items():
        speeds = found["pairs_per_second"]
        for (ours, peer), goal in PARTS[name].goals.items():
            if not {ours, peer} <= speeds.keys():
                continue
            title = f"{name}: {ours} against {peer}"
            memory = {"ours": found["peak_memory"][ours], "peer": found["peak_memory"][peer]}
            rows.append(speed_row(title, speeds[ours], speeds[peer], goal, peak_memory=memory))
        for precision, tail in found.get("tails", {}).items():
            title = f"{name}: the tail's training against the fastest matrix product, {precision}"
            figures = tail["tail_gflops"], tail["gemm_gflops"]
            rows.append(speed_row(title, *figures, GEMM_GOAL, unit="GFLOP/s"))
    return rows


def contender_table(parts: Mapping[str, Any]) -> str:
    lines = []
    for name, found in parts.items():
        speeds = found["pairs_per_second"]
        for contender, speed in speeds.items():
            ratios = [
                f"{speed / speeds[peer]:.2f}" if peer in speeds else "-"
                for peer in (PLAIN, BY_BATCH)
            ]
            memory = f"{found['peak_memory'][contender] / 1e9:.2f} GB"
            lines.append([name, contender, f"{speed:.1f}", *ratios, memory])
    head = ["", "", "pairs/s", "against plain", "against padded by batch", "peak memory"]
    return markdown(head, lines)


def draw(parts: Mapping[str, Any]) -> Figure:
    bars = sum(len(found["seconds"]) + 1 for found in parts.values())
    figure = Figure(figsize=(7, 0.6 + 0.32 * bars))
    axes = figure.subplots()
    height, ticks = 0, []
    for name, found in parts.items():
        for contender, speed in found["pairs_per_second"].items():
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
    run(main)
