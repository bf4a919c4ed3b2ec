"""Settings tried on a part of MRPC's training split that is held out: how the recipes came about.

    python benchmarks/settings.py --output_dir runs/settings

Trains on 3,000 pairs of train.tsv and scores the other 668; dev is not looked at. The table goes
into `accuracy.md` beside this file. What is finished is not run again.
"""

import random
import shlex
from pathlib import Path

from accuracy import run_all
from bench import HERE, build_parser, put_table, run, write_pairs

from peft_mrpc.config import DataConfig
from peft_mrpc.data import load_pairs
from peft_mrpc.runs import load_run

NUM_TRAIN = 3000
SEED = "1"
# Of each method what the recipe is stands last.
SETTINGS = """
layer_freeze --learning_rate 1e-4 --num_train_epochs 3 --swap_sentences false
layer_freeze --learning_rate 1e-4 --num_train_epochs 5 --swap_sentences true
layer_freeze --learning_rate 2e-4 --num_train_epochs 5 --swap_sentences true
layer_freeze --learning_rate 8e-4 --num_train_epochs 5 --swap_sentences true
layer_freeze --learning_rate 4e-4 --num_train_epochs 5 --swap_sentences true
full --learning_rate 2e-4 --layer_decay 1 --num_train_epochs 5 --swap_sentences true
full --learning_rate 1e-4 --layer_decay 1 --num_train_epochs 5 --swap_sentences true
full --learning_rate 5e-5 --layer_decay 1 --num_train_epochs 5 --swap_sentences true
full --learning_rate 5e-5 --layer_decay 1 --num_train_epochs 5 --swap_sentences true --pooling cls
full --learning_rate 1e-4 --layer_decay 1 --num_train_epochs 5 --swap_sentences true --label_smoothing_factor 0.1
full --learning_rate 1e-4 --layer_decay 0.8 --num_train_epochs 5 --swap_sentences true
full --learning_rate 2e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --per_device_train_batch_size 32 --neftune_noise_alpha 5
full --learning_rate 2e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --per_device_train_batch_size 32
full --learning_rate 1.5e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --neftune_noise_alpha 5
full --learning_rate 1.5e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true --dropout 0.1
full --learning_rate 1.5e-4 --layer_decay 0.7 --num_train_epochs 5 --swap_sentences true
lora --r 8 --lora_alpha 16 --target_modules query value --learning_rate 2e-3 --num_train_epochs 4 --swap_sentences false
lora --r 8 --lora_alpha 16 --target_modules query value --learning_rate 2e-3 --num_train_epochs 5 --swap_sentences true
lora --r 4 --lora_alpha 16 --target_modules all-linear --learning_rate 1e-3 --num_train_epochs 5 --swap_sentences true
lora --r 8 --lora_alpha 16 --target_modules all-linear --learning_rate 5e-4 --num_train_epochs 5 --swap_sentences true
lora --r 6 --lora_alpha 12 --target_modules all-linear --learning_rate 5e-4 --num_train_epochs 5 --swap_sentences true
prompt_tuning --learning_rate 3e-2 --num_train_epochs 6 --swap_sentences true
prompt_tuning --learning_rate 3e-2 --num_train_epochs 8 --swap_sentences false
prompt_tuning --learning_rate 3e-2 --num_train_epochs 8 --swap_sentences true --head_learning_rate 2e-3
prompt_tuning --learning_rate 3e-2 --num_train_epochs 5 --swap_sentences false
""".strip().splitlines()  # noqa: E501


def main() -> None:
    parser = build_parser(__doc__, has_output=False)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/settings"))
    parser.add_argument("--jobs", type=int, default=1, help="settings trained at the same time")
    options = parser.parse_args()
    held = options.output_dir / "held_out"
    hold_out(options.dataset, held)
    words = ["--dataset", str(held), "--model", "builtin:minilm", "--seed", SEED]
    commands = {
        options.output_dir / setting.replace(" --", ",").replace(" ", "="): [
            *["train", "--method", *shlex.split(setting), *words]
        ]
        for setting in SETTINGS
    }
    for _ in run_all(commands, options.jobs):
        pass
    text = table(list(commands))
    put_table(HERE / "accuracy.md", text, "settings")
    print(text)


def hold_out(dataset: str, folder: Path) -> None:
    """Write the training pairs as a directory in GLUE's layout, parted by chance."""
    pairs = list(load_pairs(DataConfig(dataset=dataset)).splits["train"])
    random.Random(0).shuffle(pairs)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", pairs[:NUM_TRAIN]), ("dev", pairs[NUM_TRAIN:])):
        write_pairs(part, folder / f"{name}.tsv")


def table(folders: list[Path]) -> str:
    lines = ["| `--method` and flags | accuracy | F1 | ROC-AUC |", "|---|---|---|---|"]
    for setting, folder in zip(SETTINGS, folders, strict=True):
        values = load_run(folder).metrics["validation"]
        f1 = " / ".join(f"{value:.3f}" for value in values["f1"].values())
        lines.append(f"| `{setting}` | {values['accuracy']:.3f} | {f1} | {values['roc_auc']:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
