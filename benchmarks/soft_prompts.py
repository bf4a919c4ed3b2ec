"""Compare soft prompts: where they stand, what the head reads, how they begin and are written.

    python benchmarks/soft_prompts.py --output rows.jsonl

668 of MRPC's training pairs are held out, by a fixed seed, and scored; dev is not. What `--output`
holds already is not run again. Two of the ways tried are no options of the toolkit, and are defined
here: residual prompts and decomposed ones.

Shapes: B batch, T tokens, P virtual tokens, H hidden, R rank.
"""

import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from bench import build_parser, run
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers import set_seed

from peft_mrpc.config import DataConfig
from peft_mrpc.data.loading import load_data
from peft_mrpc.distributed import prepare_processes
from peft_mrpc.models.architecture import parameter_counts
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.training.build_model import build_classifier
from peft_mrpc.training.build_trainer import build_trainer
from peft_mrpc.training.request import parse_request

NUM_HELD_OUT = 668
SPLIT_SEED = 0
TEXT = "Do these two sentences mean the same thing?"
# The parameters of these modules train at a rate of their own: networks want less than prompts.
NETWORK_RATES = {"network": 1e-3, "low_rank": 1e-3}


class ResidualPrompt(nn.Module):
    """Virtual tokens P + network(P) (Residual Prompt Tuning, arXiv:2305.03937, section 3).

    PEFT saves what this computes: the network is needed in training only.
    """

    def __init__(self, embedding: nn.Embedding, bottleneck: int) -> None:
        super().__init__()
        self.embedding = embedding
        width = embedding.embedding_dim
        self.network = nn.Sequential(
            nn.Linear(width, bottleneck),
            nn.ReLU(),
            nn.Linear(bottleneck, width),
            nn.LayerNorm(width),
        )

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """[B, P] -> [B, P, H]."""
        prompt = self.embedding(indices)
        return prompt + self.network(prompt)


class LowRankUpdate(nn.Module):
    """A [T, R] times B [R, H], added to a pair's word embeddings (DePT, arXiv:2309.05173)."""

    def __init__(self, length: int, rank: int, width: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(length, rank) / rank**0.5)
        self.b = nn.Parameter(torch.zeros(rank, width))

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]."""
        return embedded + self.a[: embedded.shape[1]] @ self.b


def residual(bottleneck: int) -> Callable[[Any, int], None]:
    def change(model: Any, max_length: int) -> None:
        own = model.prompt_encoder["default"]
        model.prompt_encoder["default"] = ResidualPrompt(own.embedding, bottleneck)

    return change


def decomposed(rank: int) -> Callable[[Any, int], None]:
    def change(model: Any, max_length: int) -> None:
        words = model.word_embeddings
        # Beside the prompt, where the optimizer finds it.
        model.low_rank = LowRankUpdate(max_length, rank, words.embedding_dim)
        words.register_forward_hook(lambda _, args, embedded: model.low_rank(embedded))

    return change


@dataclass
class Row:
    """One line of the table.

    Attributes:
        flags: Of `train`, beside those of all rows.
        change: What is done to the model before it trains.
    """

    flags: Sequence[str]
    change: Callable[[Any, int], None] = field(default=lambda model, max_length: None)


def prompt(position: str = "before", pooling: str = "aligned", *flags: str) -> list[str]:
    own = ["--prompt_position", position, "--pooling", pooling, *flags]
    return ["--method", "prompt_tuning", *own]


def as_shipped(*flags: str) -> list[str]:
    """With the recipe's head, at the recipe's layer."""
    return prompt("before", "weighted", "--head_layer", "auto", *flags)


FROM_TEXT = ["--prompt_tuning_init", "TEXT", "--prompt_tuning_init_text", TEXT]
FROM_WORDS = ["--prompt_tuning_init", "SAMPLE_VOCAB"]
ROWS = {
    "no prompt (linear_probe)": Row(["--method", "linear_probe", "--pooling", "aligned"]),
    "before [CLS]": Row(prompt()),
    "after [CLS]": Row(prompt("after")),
    "after [CLS], from text": Row(prompt("after", "aligned", *FROM_TEXT)),
    "after [CLS], from sampled words": Row(prompt("after", "aligned", *FROM_WORDS)),
    "no prompt, head reads [CLS]": Row(["--method", "linear_probe", "--pooling", "cls"]),
    "before [CLS], head reads [CLS]": Row(prompt("before", "cls")),
    "after [CLS], head reads [CLS]": Row(prompt("after", "cls")),
    "before [CLS], head reads a virtual token": Row(prompt("before", "first")),
    "before [CLS], head reads the pair's mean": Row(prompt("before", "mean")),
    "before [CLS], head reads segments": Row(prompt("before", "segments")),
    "residual, 20 tokens, network of 128": Row(prompt("after"), residual(128)),
    "residual, 10 tokens, network of 3": Row(
        prompt("after", "aligned", "--num_virtual_tokens", "10"), residual(3)
    ),
    # As long a pair as beside 20 virtual tokens: 108.
    "decomposed, 7 tokens, rank 10": Row(
        prompt("after", "aligned", "--num_virtual_tokens", "7", "--max_length", "115"),
        decomposed(10),
    ),
}
AS_SHIPPED = {
    "the recipe's head, no prompt": Row(
        ["--method", "linear_probe", "--pooling", "weighted", "--head_layer", "auto"]
    ),
    "the recipe": Row(as_shipped()),
    "the recipe, residual, network of 128": Row(as_shipped(), residual(128)),
    "the recipe, residual, 10 tokens, network of 3": Row(
        as_shipped("--num_virtual_tokens", "10"), residual(3)
    ),
    "the recipe, decomposed, 7 tokens, rank 10": Row(
        as_shipped("--num_virtual_tokens", "7", "--max_length", "115"), decomposed(10)
    ),
}
# Training pairs and epochs, and the rows that are run so long: the second is the recipe's length.
LENGTHS = {"1500x2": list(ROWS), "3000x5": [*list(ROWS)[:3], *AS_SHIPPED]}
ROWS |= AS_SHIPPED


def hold_out(dataset: str, folder: Path) -> list[str]:
    """Part the training pairs in two files; the flags that name them."""
    data = load_data(DataConfig(dataset=dataset, split="validation"))
    pairs = list(data.splits["train"])
    random.Random(SPLIT_SEED).shuffle(pairs)
    parts = {"validation": pairs[:NUM_HELD_OUT], "train": pairs[NUM_HELD_OUT:]}
    for name, part in parts.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for pair in part:
                row = {"sentence1": pair.sentence1, "sentence2": pair.sentence2}
                file.write(json.dumps({**row, "label": pair.label}) + "\n")
    return [f"--{name}_file={folder / name}.jsonl" for name in parts]


def run_row(row: Row, flags: Sequence[str]) -> dict[str, float]:
    """Train one row and score the held-out pairs."""
    request = parse_request([*flags, *row.flags])
    data = load_data(request.data, request.arguments.seed)
    set_seed(request.arguments.seed)
    classifier = build_classifier(request, resolve_model(request.config.model), data)
    row.change(classifier.model, classifier.max_length)
    with tempfile.TemporaryDirectory() as staging:
        trainer, _ = build_trainer(request, data, classifier, staging)
        slow_networks(trainer.create_optimizer(), classifier.model)
        started = time.perf_counter()
        trainer.train()
    seconds = time.perf_counter() - started
    pairs = data.splits["validation"]
    probabilities = classifier.predict_proba(pairs, 32)
    labels = [pair.label for pair in pairs]
    return {
        "trained": parameter_counts(classifier.model)[0],
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "roc_auc": float(roc_auc_score(labels, probabilities[:, 1])),
        "seconds": seconds,
    }


def slow_networks(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Give the networks that write a prompt groups of their own."""
    for part, rate in NETWORK_RATES.items():
        own = {id(p) for name, p in model.named_parameters() if part in name.split(".")}
        for group in list(optimizer.param_groups):
            taken = [p for p in group["params"] if id(p) in own]
            if taken:
                group["params"] = [p for p in group["params"] if id(p) not in own]
                optimizer.add_param_group({**group, "params": taken, "lr": rate})


def table(results: Sequence[dict[str, Any]]) -> str:
    """The means over seeds, in Markdown."""
    lines = [
        "| soft prompt | pairs × epochs | trained | accuracy | ROC-AUC | seeds |",
        "|---|---|---|---|---|---|",
    ]
    cases = dict.fromkeys((r["row"], r["length"]) for r in results)
    for name, length in cases:
        own = [r for r in results if (r["row"], r["length"]) == (name, length)]
        figures = [f"{mean(r[key] for r in own):.3f}" for key in ("accuracy", "roc_auc")]
        seeds = ", ".join(r["seed"] for r in own)
        cells = [name, length.replace("x", " × "), f"{own[0]['trained']:,}", *figures, seeds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = build_parser(__doc__, has_output=False)
    parser.add_argument("--model", default="builtin:minilm")
    parser.add_argument("--seeds", nargs="+", default=["1"])
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help="only these")
    parser.add_argument("--output", default="soft_prompts.jsonl", help="one line for each run")
    options = parser.parse_args()
    prepare_processes()
    output = Path(options.output)
    results = [json.loads(line) for line in output.open()] if output.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        common = ["--dataset", "files", *hold_out(options.dataset, Path(folder))]
        common += ["--model", options.model, "--use_cpu", "--disable_tqdm", "true"]
        common += ["--swap_sentences", "false", "--head_layer", "last"]
        for seed, length in itertools.product(options.seeds, options.lengths):
            pairs, epochs = length.split("x")
            flags = [*common, "--seed", seed, "--max_train_samples", pairs]
            for name in options.rows or LENGTHS[length]:
                case = {"row": name, "length": length, "seed": seed}
                if any(case.items() <= result.items() for result in results):
                    continue
                figures = run_row(ROWS[name], [*flags, "--num_train_epochs", epochs])
                results.append({**case, **figures})
                with output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(results[-1]) + "\n")
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    run(main)
