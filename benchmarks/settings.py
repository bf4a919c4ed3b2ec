"""Settings compared on a validation split carved from MRPC's train, to select the recipes.

    python benchmarks/settings.py --output_dir runs/settings

Trains on 3,000 training pairs and scores the other 668; the dev split is not used. The results go
into `settings.json` beside this file, the tables into `accuracy.md` and `heads.md`. Settings in the
result file are not trained again.
"""

import json
import random
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accuracy import run_all
from bench import HERE, build_parser, markdown, positive, put_table, run, write_pairs

from peft_mrpc.config import DataConfig
from peft_mrpc.data.loading import load_data
from peft_mrpc.runs.run import load_run

RESULTS = HERE / "settings.json"
NUM_TRAIN = 3000
SEED = "1"
# The last setting of each method is its recipe.
SETTINGS = """
layer_freeze --learning_rate 1e-4 --num_train_epochs 3 --swap_sentences false --sam_rho 0
layer_freeze --learning_rate 1e-4 --num_train_epochs 5 --swap_sentences true --sam_rho 0
layer_freeze --learning_rate 2e-4 --num_train_epochs 5 --swap_sentences true --sam_rho 0
layer_freeze --learning_rate 8e-4 --num_train_epochs 5 --swap_sentences true --sam_rho 0
layer_freeze --learning_rate 4e-5 --num_train_epochs 5 --swap_sentences true --pooling weighted --sam_rho 0
layer_freeze --learning_rate 1e-4 --num_train_epochs 5 --swap_sentences true --pooling weighted --sam_rho 0
layer_freeze --learning_rate 4e-4 --num_train_epochs 5 --swap_sentences true --pooling weighted --sam_rho 0
layer_freeze --learning_rate 4e-4 --num_train_epochs 5 --swap_sentences true --head_layer 5 --sam_rho 0
layer_freeze --learning_rate 4e-4 --num_train_epochs 5 --swap_sentences true --head_layer 4 --sam_rho 0
layer_freeze --num_unfrozen_layers 6 --unfreeze_every 0.2 --learning_rate 1.5e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --sam_rho 0
layer_freeze --learning_rate 4e-4 --num_train_epochs 5 --swap_sentences true --sam_rho 0
layer_freeze --learning_rate 4e-4 --num_train_epochs 5 --swap_sentences true --head_layer 4 --sam_rho 0.05
layer_freeze --learning_rate 4e-4 --num_train_epochs 5 --swap_sentences true --sam_rho 0.02
layer_freeze --learning_rate 4e-4 --num_train_epochs 5 --swap_sentences true --sam_rho 0.15
layer_freeze --learning_rate 4e-4 --num_train_epochs 5 --swap_sentences true --sam_rho 0.05
full --learning_rate 1.5e-4 --layer_decay 0.586 --num_train_epochs 5 --swap_sentences true --head_layer 4 --per_device_train_batch_size 16
full --learning_rate 1.5e-4 --layer_decay 0.586 --num_train_epochs 5 --swap_sentences true --pooling weighted --head_layer 4 --per_device_train_batch_size 16
full --learning_rate 5e-5 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --pooling weighted --head_layer 4 --per_device_train_batch_size 16
full --learning_rate 1.5e-4 --layer_decay 0.5 --num_train_epochs 5 --swap_sentences true --per_device_train_batch_size 16
full --learning_rate 1.5e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --pooling weighted --per_device_train_batch_size 16
full --learning_rate 2e-4 --layer_decay 1 --num_train_epochs 5 --swap_sentences true --per_device_train_batch_size 16
full --learning_rate 1e-4 --layer_decay 1 --num_train_epochs 5 --swap_sentences true --per_device_train_batch_size 16
full --learning_rate 5e-5 --layer_decay 1 --num_train_epochs 5 --swap_sentences true --per_device_train_batch_size 16
full --learning_rate 5e-5 --layer_decay 1 --num_train_epochs 5 --swap_sentences true --pooling cls --per_device_train_batch_size 16
full --learning_rate 1e-4 --layer_decay 1 --num_train_epochs 5 --swap_sentences true --label_smoothing_factor 0.1 --per_device_train_batch_size 16
full --learning_rate 1e-4 --layer_decay 0.8 --num_train_epochs 5 --swap_sentences true --per_device_train_batch_size 16
full --learning_rate 2e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --per_device_train_batch_size 32 --neftune_noise_alpha 5
full --learning_rate 2e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --per_device_train_batch_size 32
full --learning_rate 1.5e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --neftune_noise_alpha 5 --per_device_train_batch_size 16
full --learning_rate 1.5e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --dropout 0.1 --per_device_train_batch_size 16
full --learning_rate 1.5e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --sam_rho 0.05 --per_device_train_batch_size 16
full --learning_rate 1.5e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --warmup_steps 0.2 --per_device_train_batch_size 16
full --learning_rate 1.5e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --lr_scheduler_type cosine --per_device_train_batch_size 16
full --learning_rate 1.5e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --per_device_train_batch_size 16
full --learning_rate 1.5e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --per_device_train_batch_size 4
full --learning_rate 1.5e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --per_device_train_batch_size 8
lora --r 6 --lora_alpha 12 --target_modules all-linear --learning_rate 5e-4 --num_train_epochs 5 --swap_sentences true --head_layer 4
lora --r 6 --lora_alpha 12 --target_modules all-linear --learning_rate 5e-4 --num_train_epochs 5 --swap_sentences true --pooling weighted --head_layer 4
lora --r 8 --lora_alpha 16 --target_modules query value --learning_rate 2e-3 --num_train_epochs 4 --swap_sentences false
lora --r 8 --lora_alpha 16 --target_modules query value --learning_rate 2e-3 --num_train_epochs 5 --swap_sentences true
lora --r 4 --lora_alpha 16 --target_modules all-linear --learning_rate 1e-3 --num_train_epochs 5 --swap_sentences true
lora --r 8 --lora_alpha 16 --target_modules all-linear --learning_rate 5e-4 --num_train_epochs 5 --swap_sentences true
lora --r 6 --lora_alpha 12 --target_modules all-linear --learning_rate 5e-4 --num_train_epochs 5 --swap_sentences true
linear_probe --pooling aligned --head_layer last
linear_probe --pooling aligned --head_layer 5
linear_probe --pooling aligned --head_layer 4
linear_probe --pooling aligned --head_layer 3
linear_probe --pooling aligned --head_layer 2
linear_probe --pooling weighted --head_layer last
linear_probe --num_train_epochs 5 --swap_sentences false --pooling weighted --head_layer 4
linear_probe --learning_rate 3e-3 --num_train_epochs 4 --pooling weighted --head_layer 4
linear_probe --num_train_epochs 8 --pooling weighted --head_layer 4
linear_probe --pooling weighted --head_layer 4
prompt_tuning --learning_rate 3e-2 --num_train_epochs 6 --swap_sentences true --pooling aligned --head_layer last
prompt_tuning --learning_rate 3e-2 --num_train_epochs 8 --swap_sentences false --pooling aligned --head_layer last
prompt_tuning --learning_rate 3e-2 --num_train_epochs 8 --swap_sentences true --head_learning_rate 2e-3 --pooling aligned --head_layer last
prompt_tuning --learning_rate 3e-2 --num_train_epochs 5 --swap_sentences false --pooling aligned --head_layer last
prompt_tuning --learning_rate 3e-2 --num_train_epochs 5 --swap_sentences false --pooling weighted --head_layer 4 --num_virtual_tokens 5
prompt_tuning --learning_rate 3e-2 --num_train_epochs 5 --swap_sentences false --pooling weighted --head_layer 4 --num_virtual_tokens 50
prompt_tuning --learning_rate 3e-2 --num_train_epochs 5 --swap_sentences false --pooling weighted --head_layer 4
p_tuning --learning_rate 3e-3 --num_train_epochs 5 --swap_sentences false --pooling weighted --head_layer 4
p_tuning --learning_rate 1e-2 --num_train_epochs 5 --swap_sentences false --pooling weighted --head_layer 4
prefix_tuning --learning_rate 1e-2 --num_train_epochs 5 --swap_sentences false --pooling weighted --head_layer 4 --num_virtual_tokens 5
prefix_tuning --learning_rate 1e-2 --num_train_epochs 5 --swap_sentences false --pooling weighted --head_layer 4 --num_virtual_tokens 50
prefix_tuning --learning_rate 1e-2 --num_train_epochs 5 --swap_sentences false --pooling weighted --head_layer 4
bitfit --learning_rate 2e-3 --num_train_epochs 5 --pooling aligned --head_layer last
bitfit --learning_rate 4e-3 --num_train_epochs 5 --pooling weighted --head_layer 4
bitfit --learning_rate 2e-3 --num_train_epochs 5 --pooling weighted --head_layer 4 --per_device_train_batch_size 8
bitfit --learning_rate 2e-3 --num_train_epochs 5 --pooling weighted --head_layer 4 --per_device_train_batch_size 32
bitfit --learning_rate 2e-3 --num_train_epochs 5 --pooling weighted --head_layer 4 --warmup_steps 0
bitfit --learning_rate 2e-3 --num_train_epochs 5 --pooling weighted --head_layer 4 --warmup_steps 0.2
bitfit --learning_rate 2e-3 --num_train_epochs 5 --pooling weighted --head_layer 4 --lr_scheduler_type cosine
bitfit --learning_rate 2e-3 --num_train_epochs 5 --pooling weighted --head_layer 4
ln_tuning --learning_rate 2e-3 --num_train_epochs 5 --pooling weighted --head_layer 4
ia3 --learning_rate 3e-2 --num_train_epochs 5 --pooling weighted --head_layer 4
ia3 --learning_rate 1e-2 --num_train_epochs 5 --pooling weighted --head_layer 4
vera --learning_rate 1e-2 --num_train_epochs 5 --pooling weighted --head_layer 4
oft --learning_rate 1e-3 --num_train_epochs 5 --pooling weighted --head_layer 4
""".strip().splitlines()  # noqa: E501


def main() -> None:
    parser = build_parser(__doc__, has_output=False)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/settings"))
    parser.add_argument("--jobs", type=positive, default=1, help="parallel trainings (default: 1)")
    options = parser.parse_args()
    dataset = options.output_dir / "dataset"
    write_splits(options.dataset, dataset)
    common = ["--dataset", str(dataset), "--model", "builtin:minilm", "--seed", SEED]
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    settings = {
        options.output_dir / setting.replace(" --", ",").replace(" ", "="): setting
        for setting in SETTINGS
        if setting not in results
    }
    commands = {
        folder: ["train", "--method", *shlex.split(setting), *common]
        for folder, setting in settings.items()
    }
    for folder in run_all(commands, options.jobs):
        results[settings[folder]] = summarize_run(folder)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = settings_table(results, SETTINGS)
    put_table(HERE / "accuracy.md", table, "settings")
    heads = [setting for setting in SETTINGS if compares_heads(setting)]
    put_table(HERE / "heads.md", settings_table(results, heads), "heads")
    print(table)


def compares_heads(setting: str) -> bool:
    """Whether a setting differs in the input of the head only."""
    other = ("--num_virtual_tokens", "--warmup_steps", "--lr_scheduler_type")
    if any(flag in setting for flag in other):
        return False
    if setting.startswith("bitfit") and "batch" in setting:
        return False
    return "--head_layer" in setting or "weighted" in setting


def write_splits(dataset: str, folder: Path) -> None:
    """Write a random split of the training pairs as a directory in GLUE's layout."""
    pairs = list(load_data(DataConfig(dataset=dataset)).splits["train"])
    random.Random(0).shuffle(pairs)
    folder.mkdir(parents=True, exist_ok=True)
    write_pairs(pairs[:NUM_TRAIN], folder / "train.tsv")
    write_pairs(pairs[NUM_TRAIN:], folder / "dev.tsv")


def summarize_run(folder: Path) -> dict[str, Any]:
    run = load_run(folder)
    metrics = run.metrics["validation"]
    values = {name: round(metrics[name], 4) for name in ("accuracy", "roc_auc")}
    f1 = [round(value, 4) for value in metrics["f1"].values()]
    return {**values, "f1": f1, "precision": run.record["precision"]}


def settings_table(results: Mapping[str, Any], settings: Sequence[str]) -> str:
    lines = []
    for setting in settings:
        row = results[setting]
        f1 = " / ".join(f"{value:.3f}" for value in row["f1"])
        metrics = [f"{row['accuracy']:.3f}", f1, f"{row['roc_auc']:.3f}"]
        lines.append([f"`{setting}`", row["precision"], *metrics])
    return markdown(["`--method` and options", "precision", "accuracy", "F1", "ROC-AUC"], lines)


if __name__ == "__main__":
    run(main)
