"""Training speed and memory of `peft-mrpc train`, compared with the Hugging Face Trainer.

    python benchmarks/layer_freeze.py

The contenders (`training_peer.py`) train on the same pairs with the same model, head, batch size,
epochs and threads. After a warm-up they alternate in one process, `--repeats` times; the best time
of each counts. All must take as many steps over as many trained parameters. The results go into
`layer_freeze.json` beside this file, the tables into `layer_freeze.md`, the plot into
`layer_freeze.png`. `--only minilm` repeats one part and keeps the others; `--only` without a value
writes the page from the stored results. `--quick` has no equal-precision contenders, no peak memory
and no rates of matrix products.
"""

import argparse
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from bench import (
    Row,
    build_parser,
    build_report,
    goal_table,
    load_both,
    markdown,
    non_negative,
    positive,
    run,
    speed_row,
)
from matplotlib.figure import Figure
from torch.nn.functional import linear
from training_peer import (
    CONTENDERS,
    Outcome,
    Task,
    selected_precision,
    train_peft_mrpc,
    write_bert_base,
)

from peft_mrpc.data.examples import DataSplits
from peft_mrpc.distributed import prepare_processes
from peft_mrpc.environment import peak_memory

NUM_PAIRS, QUICK_PAIRS, WARM_UP_PAIRS = 1000, 128, 32
PADDED, DYNAMIC, DYNAMIC_BF16 = (name for name in CONTENDERS if name.startswith("Trainer"))
COLD, WARM, OURS, COLD_FP32, WARM_FP32, OURS_FP32, RECIPE, RECIPE_NO_CACHE = list(CONTENDERS)[3:]
# Input rows, input features, output features: squares, and the layers of MiniLM and of bert-base at
# 1,024 tokens.
GEMM_SHAPES = [(n, n, n) for n in (512, 1024, 1536, 2048)]
GEMM_SHAPES += [(1024, 384, 1536), (1024, 1536, 384), (1024, 768, 3072), (1024, 3072, 768)]
GEMM_GOAL = 0.6


@dataclass(frozen=True)
class Part:
    """A comparison.

    Attributes:
        model: Name as in `--model`; None for a bert-base with random weights.
        epochs: Number of epochs.
        goals: Goal of the ratio by contender and peer, None without a goal.
        method: Method that trains.
        share: Share of the requested number of pairs.
    """

    model: str | None
    epochs: int
    goals: Mapping[tuple[str, str], float | None]
    method: str = "layer_freeze"
    share: float = 1.0

    def contenders(self, equal_precision: bool) -> list[str]:
        """Names of the contenders, those that compare equal precisions only if requested."""
        names = [name for name in CONTENDERS if any(name in pair for pair in self.goals)]
        return [name for name in names if equal_precision or not ("fp32" in name or "bf16" in name)]


MINILM_GOALS = {
    (COLD, PADDED): 5,
    (COLD, DYNAMIC): 3,
    (WARM, PADDED): 10,
    (WARM, DYNAMIC): None,
    (COLD_FP32, PADDED): 5,
    (COLD_FP32, DYNAMIC): 3,
    (WARM_FP32, PADDED): 10,
    (COLD, DYNAMIC_BF16): None,
}
BERT_BASE_GOALS = {
    (COLD, DYNAMIC): 3.5,
    (WARM, DYNAMIC): None,
    (COLD_FP32, DYNAMIC): 3.5,
    (COLD, DYNAMIC_BF16): None,
}
METHOD_GOALS = {(OURS, DYNAMIC): 1.3, (OURS_FP32, DYNAMIC): 1.3, (OURS, DYNAMIC_BF16): None}
PARTS: dict[str, Part] = {
    "minilm": Part("builtin:minilm", 3, MINILM_GOALS),
    "bert-base": Part(None, 5, BERT_BASE_GOALS, share=0.25),
    **{
        method: Part("builtin:minilm", 1, METHOD_GOALS, method)
        for method in ("full", "lora", "prompt_tuning")
    },
    "recipe": Part("builtin:minilm", 5, {(RECIPE, RECIPE_NO_CACHE): None}),
}


def main() -> None:
    options = parse_options()
    report = build_report("layer_freeze", options)
    data = load_both(options.dataset)
    prepare_processes()
    parts: dict[str, Any] = report.read().get("parts", {})
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            part = PARTS[name]
            model = part.model or write_bert_base(Path(scratch) / "bert-base")
            pairs = select_pairs(data, math.ceil(options.pairs * part.share))
            task = Task(model, pairs, part.epochs, part.method)
            parts[name] = measure(task, part, options.repeats, options.quick)
            parts = {key: parts[key] for key in PARTS if key in parts}
            report.write(result_rows(parts), parts=parts)
    report.show(goal_table(result_rows(parts)), "goals")
    report.show(contender_table(parts), "contenders")
    report.draw(lambda: plot_speeds(parts))


def parse_options() -> argparse.Namespace:
    parser = build_parser(__doc__)
    parser.add_argument(
        "--pairs", type=non_negative, help="training pairs; 0 for all (default: 1000)"
    )
    parser.add_argument("--repeats", type=positive, help="repeats of each (default: 3)")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    options = parser.parse_args()
    pairs, repeats = (QUICK_PAIRS, 1) if options.quick else (NUM_PAIRS, 3)
    options.pairs = pairs if options.pairs is None else options.pairs
    options.repeats = options.repeats or repeats
    return options


def select_pairs(data: DataSplits, count: int) -> DataSplits:
    """The first training pairs, and the same share of the validation pairs."""
    train, dev = data.splits["train"], data.splits["validation"]
    count = min(count, len(train)) or len(train)
    rows = {"train": train[:count], "validation": dev[: max(1, len(dev) * count // len(train))]}
    return replace(data, splits=rows)


# ---- measurement ----


def measure(task: Task, part: Part, repeats: int, quick: bool = False) -> dict[str, Any]:
    """Run all contenders `repeats` times, alternating; `quick` measures the speed only."""
    precision = selected_precision(task)
    contenders = part.contenders(equal_precision=precision == "bf16" and not quick)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contenders}
    # The longest pairs, so that the memory is allocated before the first measurement.
    longest = sorted(task.data.splits["train"], key=lambda p: -len(p.sentence1 + p.sentence2))
    splits = {**task.data.splits, "train": longest[:WARM_UP_PAIRS]}
    warm_up = replace(task, epochs=1, data=replace(task.data, splits=splits))
    for name in contenders:
        CONTENDERS[name](warm_up)
    for _ in range(repeats):
        for name in contenders:
            outcomes[name].append(CONTENDERS[name](task))
            print(f"{task.method}: {name}: {outcomes[name][-1].seconds:.1f} s", flush=True)
    num_pairs = len(task.data.splits["train"])
    check_outcomes(outcomes, num_pairs)
    result = {
        "method": task.method,
        "model": "bert-base, random weights" if part.model is None else part.model,
        "train_pairs": num_pairs,
        "scored_pairs": len(task.data.splits["validation"]),
        "epochs": task.epochs,
        "trained_parameters": outcomes[contenders[0]][0].trained,
        "seconds": {name: [run.seconds for run in runs] for name, runs in outcomes.items()},
        "pairs_per_second": {
            name: task.epochs * num_pairs / min(run.seconds for run in runs)
            for name, runs in outcomes.items()
        },
        "accuracy": {name: fmean(run.accuracy for run in runs) for name, runs in outcomes.items()},
        "threads": torch.get_num_threads(),
        "precision": precision,
    }
    if not quick:
        result["peak_memory"] = {name: measure_memory(name, warm_up) for name in contenders}
        if COLD in contenders:
            dtypes = {"fp32": torch.float32} | (
                {"bf16": torch.bfloat16} if precision == "bf16" else {}
            )
            result["matrix_rates"] = {
                name: measure_matrix_rate(task, repeats, dtype) for name, dtype in dtypes.items()
            }
    return result


def check_outcomes(outcomes: Mapping[str, list[Outcome]], num_pairs: int) -> None:
    """Check that the trainings are comparable, and that the cache was cold or warm as named."""
    shapes = {(run.steps, run.trained) for runs in outcomes.values() for run in runs}
    assert len(shapes) == 1, f"steps or trained parameters differ: {outcomes}"
    for name in set(outcomes) & {COLD, WARM, COLD_FP32, WARM_FP32}:
        computed = {run.num_computed for run in outcomes[name]}
        expected = num_pairs if "cold" in name else 0
        assert computed == {expected}, f"{name}: the frozen layers ran for {computed} pairs"


def measure_memory(name: str, task: Task) -> int:
    """Peak memory of a new process that runs one contender, in bytes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train_and_measure_memory, (name, task))


def _train_and_measure_memory(name: str, task: Task) -> int:
    prepare_processes()
    CONTENDERS[name](task)
    return peak_memory()["resident_bytes"]


def measure_matrix_rate(task: Task, repeats: int, dtype: torch.dtype) -> dict[str, float]:
    """Rates of matrix products in GFLOP/s: of an epoch on cached activations, and the peak.

    The time of the epoch includes batches, dropout and the optimizer. The peak is measured before
    and after it.
    """
    task, fp32 = replace(task, epochs=1), dtype == torch.float32
    flops = train_peft_mrpc(task, warm_cache=True, fp32=fp32, count_flops=True).flops
    peak_before = measure_gemm_peak(dtype)
    runs = [train_peft_mrpc(task, warm_cache=True, fp32=fp32) for _ in range(max(2, repeats))]
    return {
        "epoch_gflops": flops / min(run.epoch_seconds for run in runs) / 1e9,
        "peak_gflops": max(peak_before, measure_gemm_peak(dtype)) / 1e9,
    }


def measure_gemm_peak(dtype: torch.dtype, seconds: float = 0.3) -> float:
    """The highest rate of `linear` over `GEMM_SHAPES`, in FLOP/s; `seconds` is spent on each."""
    best = 0.0
    for rows, in_features, out_features in GEMM_SHAPES:
        inputs = torch.randn(rows, in_features, dtype=dtype)
        weight = torch.randn(out_features, in_features, dtype=dtype)
        with torch.inference_mode():
            shortest = time_fastest_call(partial(linear, inputs, weight), seconds)
        best = max(best, 2 * rows * in_features * out_features / shortest)
    return best


def time_fastest_call(function: Callable[[], object], seconds: float) -> float:
    """The shortest time of the calls within `seconds`, after three calls as a warm-up."""
    for _ in range(3):
        function()
    best, end = float("inf"), time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        function()
        best = min(best, time.perf_counter() - started)
    return best


# ---- report ----


def result_rows(parts: Mapping[str, Any]) -> list[Row]:
    """All comparisons, with their goals."""
    rows = []
    for name, part in parts.items():
        speeds, memory = part["pairs_per_second"], part.get("peak_memory")
        for (ours, peer), goal in PARTS[name].goals.items():
            if not {ours, peer} <= speeds.keys():
                continue
            row = speed_row(f"{name}: {ours} vs. {peer}", speeds[ours], speeds[peer], goal)
            if memory:
                row["peak_memory"] = {"ours": memory[ours], "peer": memory[peer]}
            rows.append(row)
        for precision, rates in part.get("matrix_rates", {}).items():
            title = f"{name}: epoch on cached activations vs. peak matrix product, {precision}"
            values = rates["epoch_gflops"], rates["peak_gflops"]
            rows.append(speed_row(title, *values, GEMM_GOAL, unit="GFLOP/s"))
    return rows


def contender_table(parts: Mapping[str, Any]) -> str:
    lines = []
    for name, part in parts.items():
        speeds, memory = part["pairs_per_second"], part.get("peak_memory")
        for contender, speed in speeds.items():
            ratios = [f"{speed / speeds[p]:.2f}" if p in speeds else "-" for p in (PADDED, DYNAMIC)]
            peak = f"{memory[contender] / 1e9:.2f} GB" if memory else "-"
            lines.append([name, contender, f"{speed:.1f}", *ratios, peak])
    head = ["part", "contender", "pairs/s", "ratio to padded", "ratio to dynamic", "peak memory"]
    return markdown(head, lines)


def plot_speeds(parts: Mapping[str, Any]) -> Figure:
    num_bars = sum(len(part["seconds"]) + 1 for part in parts.values())
    figure = Figure(figsize=(7, 0.6 + 0.32 * num_bars))
    axes = figure.subplots()
    height, ticks = 0, []
    for name, part in parts.items():
        for contender, speed in part["pairs_per_second"].items():
            color = "#999999" if contender.startswith("Trainer") else "#0072B2"
            axes.barh(height, speed, color=color)
            axes.text(speed, height, f" {speed:.0f}", va="center")
            ticks.append((height, f"{name}: {contender}"))
            height += 1
        height += 1
    axes.set_yticks([position for position, _ in ticks], [label for _, label in ticks])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    axes.set_xlabel("pairs per second of the whole run")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    run(main)
