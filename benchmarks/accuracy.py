"""Accuracy of every method over seeds, each by its recipe as shipped: a table and a picture.

    python benchmarks/accuracy.py --dataset MRPC

MRPC is the directory that holds `train.tsv` and `dev.tsv`. Each row is one `peft-mrpc train`, run
with one seed after the other. The figures go into `accuracy.json` beside this file, the table into
`accuracy.md`, the picture into `accuracy.png`. A seed that is in `accuracy.json` is not trained
again: `--rows lora full --seeds 1,2,3` adds to what is there; `--anew` measures those rows afresh.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from peft_mrpc.methods import METHODS
from peft_mrpc.run_plots import RunPoint, plot_accuracy_against_parameters
from peft_mrpc.runs import Run, load_run
from peft_mrpc.styles import on_page, save_picture

HERE = Path(__file__).parent
RESULTS = HERE / "accuracy.json"
PAGE = HERE / "accuracy.md"
PICTURE = HERE / "accuracy.png"
MINILM = ["--model", "builtin:minilm"]

# The flags of `train` of each row. Nothing but the method and the model is said, so what is
# measured are the recipes.
ROWS: dict[str, list[str]] = {
    **{name: ["--method", name, *MINILM] for name in METHODS},
    "lora, SmolLM2, NF4": [
        *["--method", "lora", "--model", "builtin:smollm2", "--quantization", "nf4"],
        *["--bf16", "--use_cpu"],
    ],
}


def main() -> None:
    options = parse_options()
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    for name in options.rows if options.anew else ():
        results.pop(name, None)
    commands = {}
    for seed in options.seeds.split(","):
        for name in options.rows:
            if seed not in results.get(name, {"seeds": {}})["seeds"]:
                words = ["train", *ROWS[name], "--dataset", options.dataset]
                folder = options.output_dir / f"{name.replace(', ', '-')}-{seed}"
                commands[folder] = (name, [*words, "--split", "validation", "--seed", seed])
    words_of = {folder: words for folder, (_, words) in commands.items()}
    for folder in run_all(words_of, options.jobs):
        add(results, commands[folder][0], load_run(folder), options)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = {name: results[name] for name in ROWS if name in results}
    write_table(table(results), "accuracy.py")
    draw(results)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--dataset", required=True, help="directory in GLUE's layout")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--anew", action="store_true", help="forget what these rows gave before")
    return parser.parse_args()


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
    words = ["train", *ROWS[name], "--dataset", "MRPC", "--seeds", options.seeds]
    made = {
        "method": record["method"],
        "model": record["model"],
        "config": {
            key: value
            for key, value in {**record["config"], **record["method_options"]}.items()
            if key not in ("seed", "dataset", "split")
        },
        "trained": record["trainable"]["trained"],
        "total": record["trainable"]["total"],
        "num_examples": values["num_examples"],
        "majority_accuracy": values["majority_accuracy"],
        "fingerprints": {
            split: about["fingerprint"] for split, about in record["data"]["splits"].items()
        },
        "versions": record["versions"],
    }
    row = results.setdefault(name, {"command": shlex.join(["peft-mrpc", *words]), **made})
    # A flag that did not exist then had no say.
    old, new = row["config"], made["config"]
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


def spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def table(results: dict[str, Any]) -> str:
    """The results in Markdown: by model, the fewest trained parameters first."""
    some = next(iter(results.values()))
    labels = list(next(iter(some["seeds"].values()))["f1"])
    head = [
        *["method", "trained", "share", "seeds", "accuracy", "worst"],
        *[f"F1 {label.replace('_', ' ')}" for label in labels],
        *["ROC-AUC", "training", "peak memory"],
    ]
    majority = ["always the commoner label", "-", "-", "-", f"{some['majority_accuracy']:.3f}"]
    lines = [head, ["---"] * len(head), majority + ["-"] * (len(head) - len(majority))]
    for name, row in sorted(results.items(), key=_by_model_and_size):
        seeds = list(row["seeds"].values())
        accuracies = [one["accuracy"] for one in seeds]
        lines.append(
            [
                *[f"`{name}`", f"{row['trained']:,}", f"{row['trained'] / row['total']:.2%}"],
                *[str(len(seeds)), spread(accuracies), f"{min(accuracies):.3f}"],
                *[f"{statistics.fmean(one['f1'][label] for one in seeds):.3f}" for label in labels],
                spread([one["roc_auc"] for one in seeds]),
                f"{statistics.fmean(one['train_seconds'] for one in seeds):.0f} s",
                f"{max(one['peak_memory'] for one in seeds) / 1e9:.2f} GB",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


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
        points.append(
            RunPoint(
                name=name,
                method=row["method"],
                trained=row["trained"],
                accuracy=statistics.fmean(accuracies),
                deviation=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            )
        )
    some = next(iter(results.values()))
    title = f"MRPC dev, {some['num_examples']} pairs: mean and deviation over seeds"
    with on_page():
        save_picture(plot_accuracy_against_parameters(points, title), PICTURE)


if __name__ == "__main__":
    main()
