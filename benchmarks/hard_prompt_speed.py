"""Speed of hard prompts against EleutherAI's lm-evaluation-harness, in one process.

SmolLM2-135M-Instruct in fp32 with the harness's own template; the first training pairs are the
demonstrations of both. The timing of the harness covers its scoring only, ours everything from
texts to scores. Both take turns; the best of the repeats counts, and the harness's best batch size.
"""

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from bench import markdown
from harness_peer import run_harness

from peft_mrpc.config import DataConfig
from peft_mrpc.data.loading import load_data
from peft_mrpc.environment import peak_memory, reset_peak_memory
from peft_mrpc.models.loading import load_causal_lm, load_tokenizer
from peft_mrpc.models.sources import resolve_model
from peft_mrpc.prompting.classifier import PromptClassifier
from peft_mrpc.prompting.demonstrations import sample_demonstrations
from peft_mrpc.prompting.local_model import LocalEngine
from peft_mrpc.prompting.prompt_encoder import PromptEncoder
from peft_mrpc.prompting.templates import load_template

# Pairs with --quick: for the speed, and of each part for the accuracy.
QUICK_TIMED, QUICK_PAIRS = 24, 12


def parse_speed_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """All options of the benchmark, those of the timed part added."""
    parser.add_argument("--pairs", type=int, help="of dev for the speed (default: 48)")
    parser.add_argument("--demonstrations", type=int, nargs="+", default=[0, 8, 16])
    parser.add_argument("--peer_batch_sizes", type=int, nargs="+", help="default: 1 8")
    parser.add_argument("--repeats", type=int, help="turns of each (default: 2)")
    options = parser.parse_args()
    # The harness has been fastest with batches of 1 in every measurement on a CPU.
    pairs, sizes, repeats = (QUICK_TIMED, [1], 1) if options.quick else (48, [1, 8], 2)
    options.pairs, options.repeats = options.pairs or pairs, options.repeats or repeats
    options.peer_batch_sizes = options.peer_batch_sizes or sizes
    return options


def compare_speed(options: Any) -> dict[str, Any]:
    """The comparison at each number of demonstrations, by that number."""
    data = load_data(DataConfig(dataset=options.dataset))
    source = resolve_model("builtin:smollm2")
    model, tokenizer = load_causal_lm(source, "none"), load_tokenizer(source)
    rows = {}
    for count in options.demonstrations:
        rows[str(count)] = row = compare(model, tokenizer, data, count, options)
        print(f"{count} demonstrations: {row}", flush=True)
    return rows


def compare(model: Any, tokenizer: Any, data: Any, count: int, options: Any) -> dict[str, Any]:
    """Time both, and compare their scores."""
    pairs, train = data.splits["validation"][: options.pairs], data.splits["train"]
    template, labels = load_template("paraphrase_harness"), list(data.label_names)
    classifier = PromptClassifier(
        PromptEncoder(tokenizer, labels, 8192),
        LocalEngine(model, max_batch_tokens=8192),
        [template],
        labels,
        sample_demonstrations(train, labels, count, "first", 0),
    )
    ours, memory = [], []
    peers: dict[int, list[float]] = {size: [] for size in options.peer_batch_sizes}
    peer_memory: dict[int, int] = {}
    for _ in range(options.repeats):
        reset_peak_memory()
        started = time.perf_counter()
        scores = classifier.score(pairs, 16)[0].labels
        ours.append(time.perf_counter() - started)
        memory.append(peak_memory()["resident_bytes"])
        for size, seconds in peers.items():
            reset_peak_memory()
            peer = run_harness(model, tokenizer, template, labels, pairs, train, count, size)
            seconds.append(peer.seconds)
            peer_memory[size] = peak_memory()["resident_bytes"]
    theirs = {size: min(seconds) for size, seconds in peers.items()}
    size = min(theirs, key=lambda size: theirs[size])
    return {
        "num_pairs": len(pairs),
        "pairs_per_second": len(pairs) / min(ours),
        "peer_pairs_per_second": len(pairs) / theirs[size],
        "peer_batch_size": size,
        "ratio": theirs[size] / min(ours),
        "largest_difference": float(np.abs(scores - peer.log_probabilities).max()),
        "same_labels": float((scores.argmax(1) == peer.log_probabilities.argmax(1)).mean()),
        "peak_bytes": max(memory),
        "peer_peak_bytes": peer_memory[size],
    }


def speed_table(rows: Mapping[str, Any]) -> str:
    """The comparisons in Markdown."""
    head = ["demonstrations", "pairs", "pairs/s", "harness, its best batch", "ratio"]
    head += ["peak memory", "harness", "largest difference of a log-probability", "same labels"]
    lines = [
        [
            *[count, str(row["num_pairs"]), f"{row['pairs_per_second']:.2f}"],
            f"{row['peer_pairs_per_second']:.2f} ({row['peer_batch_size']})",
            f"{row['ratio']:.1f}",
            *(f"{row[key] / 1e9:.2f} GB" for key in ("peak_bytes", "peer_peak_bytes")),
            *[f"{row['largest_difference']:.1e}", f"{row['same_labels']:.1%}"],
        ]
        for count, row in rows.items()
    ]
    return markdown(head, lines)
