"""Compare soft prompts: their position, the head's input, and their initialization.

    python benchmarks/soft_prompts.py --output rows.jsonl

Trains on MRPC's training pairs except 668, which are scored; the dev split is not used. Rows in the
output file are not trained again.
"""

import itertools
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench import build_parser, markdown, run

from peft_mrpc import DataConfig, TrainConfig, train_classifier
from peft_mrpc.data.examples import Example
from peft_mrpc.data.loading import load_data

NUM_VALIDATION = 668
SPLIT_SEED = 0
TEXT = {
    "prompt_tuning_init": "TEXT",
    "prompt_tuning_init_text": "Do these two sentences mean the same thing?",
}
PROBE = {"method": "linear_probe", "pooling": "aligned", "head_layer": "last"}
PROMPT = {"method": "prompt_tuning", "pooling": "aligned", "head_layer": "last"}
RECIPE_HEAD = {"pooling": "weighted", "head_layer": "auto"}
# Name of a row: fields of TrainConfig, and options of the method.
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no prompt (linear_probe)": (PROBE, {}),
    "before [CLS]": (PROMPT, {}),
    "after [CLS]": ({**PROMPT, "prompt_position": "after"}, {}),
    "after [CLS], from text": ({**PROMPT, "prompt_position": "after"}, TEXT),
    "after [CLS], from sampled words": (
        {**PROMPT, "prompt_position": "after"},
        {"prompt_tuning_init": "SAMPLE_VOCAB"},
    ),
    "no prompt, head reads [CLS]": ({**PROBE, "pooling": "cls"}, {}),
    "before [CLS], head reads [CLS]": ({**PROMPT, "pooling": "cls"}, {}),
    "after [CLS], head reads [CLS]": ({**PROMPT, "pooling": "cls", "prompt_position": "after"}, {}),
    "before [CLS], head reads a virtual token": ({**PROMPT, "pooling": "first"}, {}),
    "before [CLS], head reads the mean": ({**PROMPT, "pooling": "mean"}, {}),
    "before [CLS], head reads segments": ({**PROMPT, "pooling": "segments"}, {}),
    "recipe head, no prompt": ({**PROBE, **RECIPE_HEAD}, {}),
    "recipe": ({**PROMPT, **RECIPE_HEAD}, {}),
}
# Rows by training pairs and epochs; the second is the length of the recipe.
LENGTHS = {
    "1500x2": [name for name in ROWS if "recipe" not in name],
    "3000x5": [*list(ROWS)[:3], *(name for name in ROWS if "recipe" in name)],
}


def split_train(dataset: str) -> dict[str, list[tuple[str, str, str]]]:
    """Split the training pairs into train and validation."""
    data = load_data(DataConfig(dataset=dataset))
    examples = list(data.splits["train"])
    random.Random(SPLIT_SEED).shuffle(examples)

    def as_tuple(example: Example) -> tuple[str, str, str]:
        label = data.label_names[example.label]
        return example.sentence1, str(example.sentence2), label

    rows = [as_tuple(example) for example in examples]
    return {"validation": rows[:NUM_VALIDATION], "train": rows[NUM_VALIDATION:]}


def run_row(
    name: str, model: str, data: dict[str, Any], num_pairs: int, num_epochs: int, seed: int
) -> dict[str, float]:
    """Train one row, and score the validation pairs."""
    fields, options = ROWS[name]
    train = random.Random(seed).sample(data["train"], num_pairs)
    with tempfile.TemporaryDirectory() as folder:
        result = train_classifier(
            TrainConfig(model=model, swap_sentences="false", **fields),
            {**data, "train": train},
            output_dir=Path(folder) / "run",
            seed=seed,
            num_train_epochs=num_epochs,
            disable_tqdm=True,
            **options,
        )
        metrics = result.metrics["validation"]
        return {
            "trained": result.record["trainable"]["trained"],
            "accuracy": metrics["accuracy"],
            "roc_auc": metrics["roc_auc"],
            "seconds": result.record["timing"]["train_seconds"],
        }


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """The means over seeds, in Markdown."""
    lines = []
    cases = dict.fromkeys((row["row"], row["length"]) for row in results)
    for name, length in cases:
        rows = [row for row in results if (row["row"], row["length"]) == (name, length)]
        means = [f"{mean(row[key] for row in rows):.3f}" for key in ("accuracy", "roc_auc")]
        seeds = ", ".join(str(row["seed"]) for row in rows)
        cells = [name, length.replace("x", " × "), f"{rows[0]['trained']:,}", *means, seeds]
        lines.append(cells)
    head = ["soft prompt", "pairs × epochs", "trained", "accuracy", "ROC-AUC", "seeds"]
    return markdown(head, lines)


def main() -> None:
    parser = build_parser(__doc__, has_output=False)
    parser.add_argument("--model", default="builtin:minilm")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, metavar="ROW", help="default: all rows of a length"
    )
    parser.add_argument("--output", default="soft_prompts.jsonl", help="one line for each run")
    options = parser.parse_args()
    output = Path(options.output)
    results = [json.loads(line) for line in output.open()] if output.exists() else []
    data = split_train(options.dataset)
    for seed, length in itertools.product(options.seeds, options.lengths):
        num_pairs, num_epochs = map(int, length.split("x"))
        for name in options.rows or LENGTHS[length]:
            case = {"row": name, "length": length, "seed": seed}
            if any(case.items() <= result.items() for result in results):
                continue
            row = run_row(name, options.model, data, num_pairs, num_epochs, seed)
            results.append({**case, **row})
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(results[-1]) + "\n")
    sys.stdout.write(format_table(results) + "\n")


if __name__ == "__main__":
    run(main)
