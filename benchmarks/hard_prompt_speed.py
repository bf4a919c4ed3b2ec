"""Speed of hard prompts against EleutherAI's lm-evaluation-harness, in one process.

    python benchmarks/hard_prompt_speed.py --dataset MRPC

SmolLM2-135M-Instruct in fp32, the harness's own wording, the first training pairs as demonstrations
for both. The harness is timed inside its scoring alone, ours from texts to scores, in turns; the
best of `--repeats` counts, and of the harness the best of its batch sizes. `--pairs 408` compares
the scores of all of dev as well. The figures go into `hard_prompt_speed.json` beside this file, the
table into `hard_prompt.md`.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
from accuracy import HERE
from hard_prompt import put_table
from harness_peer import run_harness

from peft_mrpc.config import DataConfig
from peft_mrpc.data import load_pairs
from peft_mrpc.demonstrations import choose_demonstrations, fixed
from peft_mrpc.engines import LocalEngine, PromptClassifier
from peft_mrpc.environment import describe_environment, peak_memory, reset_peak_memory
from peft_mrpc.models import load_causal_lm, load_tokenizer
from peft_mrpc.sources import find_model
from peft_mrpc.template_files import load_template

RESULTS = HERE / "hard_prompt_speed.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--dataset", required=True, help="directory in GLUE's layout")
    parser.add_argument("--pairs", type=int, default=48, help="the first so many of dev")
    parser.add_argument("--demonstrations", type=int, nargs="+", default=[0, 8, 16])
    parser.add_argument("--peer_batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    data = load_pairs(DataConfig(dataset=options.dataset))
    source = find_model("builtin:smollm2")
    model, tokenizer = load_causal_lm(source, "none"), load_tokenizer(source)
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {"rows": {}}
    for count in options.demonstrations:
        row = compare(model, tokenizer, data, count, options)
        results["rows"][str(count)] = row
        results["about"] = describe_environment()
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"{count} demonstrations: {row}", flush=True)
    put_table("speed", table(results["rows"]))


def compare(model: Any, tokenizer: Any, data: Any, count: int, options: Any) -> dict[str, Any]:
    """Time both, and compare what they found."""
    pairs, train = data.splits["validation"][: options.pairs], data.splits["train"]
    template, labels = load_template("paraphrase_harness"), list(data.label_names)
    shown = choose_demonstrations(train, labels, count, "first", 0)
    engine = LocalEngine(model, tokenizer, 8192, max_tokens=8192)
    classifier = PromptClassifier(engine, [template], labels, fixed(shown))
    ours, memory = [], []
    peers: dict[int, list[float]] = {size: [] for size in options.peer_batch_sizes}
    peer_memory: dict[int, int] = {}
    for _ in range(options.repeats):
        reset_peak_memory()
        started = time.perf_counter()
        found = classifier.label_scores(pairs, 16)[0]
        ours.append(time.perf_counter() - started)
        memory.append(peak_memory()["resident_bytes"])
        for size, seconds in peers.items():
            reset_peak_memory()
            peer = run_harness(model, tokenizer, template, labels, pairs, train, count, size)
            seconds.append(peer.seconds)
            peer_memory[size] = peak_memory()["resident_bytes"]
    theirs = {size: min(seconds) for size, seconds in peers.items()}
    size = min(theirs, key=lambda one: theirs[one])
    return {
        "num_pairs": len(pairs),
        "pairs_per_second": len(pairs) / min(ours),
        "peer_pairs_per_second": len(pairs) / theirs[size],
        "peer_batch_size": size,
        "ratio": theirs[size] / min(ours),
        "largest_difference": float(np.abs(found - peer.log_probabilities).max()),
        "same_labels": float((found.argmax(1) == peer.log_probabilities.argmax(1)).mean()),
        "peak_bytes": max(memory),
        "peer_peak_bytes": peer_memory[size],
    }


def table(rows: dict[str, Any]) -> str:
    lines = [
        "| demonstrations | pairs | pairs/s | harness, its best batch | ratio | largest difference "
        "of a log-probability | same labels |",
        "|---|---|---|---|---|---|---|",
    ]
    for count, row in rows.items():
        lines.append(
            f"| {count} | {row['num_pairs']} | {row['pairs_per_second']:.2f} | "
            f"{row['peer_pairs_per_second']:.2f} ({row['peer_batch_size']}) | {row['ratio']:.1f} | "
            f"{row['largest_difference']:.1e} | {row['same_labels']:.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
