"""What `peft-mrpc doctor` foretells of a training, beside what the training then takes.

    python benchmarks/doctor.py

For each method doctor's steps are run in a process of their own, then the training itself, by
the command that a user types, on the first `--pairs` of MRPC: its time, its peak memory and what
is kept of the frozen layers. The ratio is 1 less the error's share. The figures go into
`doctor.json` beside this file, the table into `doctor.md`.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
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

from peft_mrpc.data.examples import DataSplits
from peft_mrpc.data.loading import load_data
from peft_mrpc.distributed import prepare_processes
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.models.loading import load_config
from peft_mrpc.training.cost_estimate import Estimate, Pairs, rehearse
from peft_mrpc.training.head_layer import settle_reading
from peft_mrpc.training.request import parse_request

GOAL = 0.7  # within 30 %
DEV_PAIRS = 40
QUIET = ["--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true"]


@dataclass(frozen=True)
class Part:
    """A training.

    Attributes:
        method: As `--method`.
        model: As `--model`; None for a bert-base of random weights.
        epochs: Passes over the pairs.
        share: Of the pairs asked for.
        flags: Further ones of `train`.
    """

    method: str
    model: str | None = "builtin:minilm"
    epochs: int = 1
    share: float = 1.0
    flags: tuple[str, ...] = ()


PARTS = {
    "layer_freeze": Part("layer_freeze", epochs=3),
    "layer_freeze, bert-base": Part("layer_freeze", None, 3, 0.25),
    **{method: Part(method) for method in ("full", "lora", "prompt_tuning", "linear_probe")},
    "full, in fp32": Part("full", flags=("--bf16", "false")),
}


def main() -> None:
    options = parse_options()
    report = build_report("doctor", options)
    data = load_both(options.dataset)
    parts: dict[str, Any] = report.read().get("parts", {})
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            turns = [
                compare(PARTS[name], data, options.pairs, Path(scratch))
                for _ in range(options.repeats)
            ]
            parts[name] = best_of(turns)
            parts = {key: parts[key] for key in PARTS if key in parts}
            report.write(result_rows(parts), parts=parts)
    report.show(goal_table(result_rows(parts)), "goals")


def parse_options() -> argparse.Namespace:
    parser = build_parser(__doc__)
    parser.add_argument("--pairs", type=positive, help="training pairs (default: 1000)")
    parser.add_argument("--repeats", type=positive, help="turns of each (default: 2)")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    options = parser.parse_args()
    pairs, repeats = (160, 1) if options.quick else (1000, 2)
    options.pairs, options.repeats = options.pairs or pairs, options.repeats or repeats
    return options


# ---- measuring ----


def compare(part: Part, data: DataSplits, count: int, scratch: Path) -> dict[str, Any]:
    """What was foretold, and what was: seconds, peak bytes, kept bytes."""
    pairs = data.splits["train"][: max(1, round(count * part.share))]
    folder = Path(tempfile.mkdtemp(dir=scratch))
    write_pairs(pairs, folder / "train.tsv")
    write_pairs(data.splits["validation"][:DEV_PAIRS], folder / "dev.tsv")
    model = part.model or write_bert_base(scratch / "bert-base")
    flags = ["--method", part.method, "--model", model, "--num_train_epochs", str(part.epochs)]
    flags += [*QUIET, *part.flags, "--dataset", str(folder), "--output_dir", str(folder / "run")]
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # its peak memory is its own
        foretold = pool.apply(foretell, (flags, part.epochs))
    found = train(flags, folder)
    print(f"{part.method}: foretold {foretold}, found {found}", flush=True)
    return {"foretold": foretold, "found": found, "pairs": len(pairs), "epochs": part.epochs}


def best_of(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The least of what was foretold, and of what was: what else the machine did is neither's."""
    least = {
        side: {key: min(turn[side][key] for turn in turns) for key in turns[0][side]}
        for side in ("foretold", "found")
    }
    return {**turns[0], **least}


def foretell(flags: list[str], epochs: int) -> dict[str, float]:
    """What `peft-mrpc doctor` says of this training."""
    prepare_processes()
    request = parse_request(flags)
    data = load_data(request.data)
    source, tokenizer = settle_reading(request, resolve_model(str(request.config.model)))
    train = data.splits["train"]
    tokens = tokenizer([p.sentence1 for p in train], [p.sentence2 for p in train])["input_ids"]
    about = Pairs(len(train), round(sum(map(len, tokens)) / len(train)))
    found = rehearse(request, load_config(source), tokenizer, about)
    assert isinstance(found, Estimate), found
    seconds = found.start_seconds + found.trunk_seconds + epochs * found.epoch_seconds
    return {"seconds": seconds, "peak": found.peak_bytes, "kept": found.trunk_bytes}


def train(flags: list[str], folder: Path) -> dict[str, float]:
    """The training by the command line; nothing is found of another."""
    trunks = folder / "trunks"
    command = [sys.executable, "-m", "peft_mrpc.train", *flags]
    done = subprocess.run(command, env={**os.environ, "PEFT_MRPC_TRUNKS": str(trunks)}, check=False)
    if done.returncode:
        sys.exit(f"the training failed (exit code {done.returncode}), see above")
    record = json.loads((folder / "run" / "run.json").read_text("utf-8"))
    peaks = record["peak_memory"]
    return {
        "seconds": record["timing"]["train_seconds"],
        "peak": peaks.get("gpu_bytes", peaks["resident_bytes"]),
        "kept": sum(path.stat().st_size for path in trunks.rglob("*.states")),
    }


# ---- showing ----


def result_rows(parts: dict[str, Any]) -> list[Row]:
    rows = []
    for name, part in parts.items():
        for key, title, unit in (
            ("seconds", "seconds of training", "s"),
            ("peak", "peak memory", "bytes"),
            ("kept", "kept of the frozen layers", "bytes"),
        ):
            said, found = part["foretold"][key], part["found"][key]
            if found:
                ratio = 1 - abs(said - found) / found
                row = {"name": f"{name}: {title}", "ours": said, "peer": found, "ratio": ratio}
                rows.append({**row, "goal": GOAL, "unit": unit})
    return rows


if __name__ == "__main__":
    run(main)
