"""The command `quickstart`: run all strategies on the built-in examples, and compare them."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peft_mrpc.cli.app import print_text, run_cli
from peft_mrpc.cli.parser import parse_command
from peft_mrpc.config import DataConfig, PromptConfig, QuickstartConfig, TrainConfig

DESCRIPTION = "Run every strategy on the built-in examples and compare them; no network, no GPU."
# The settings were selected on the validation split. Without calibration SmolLM2-135M gives nearly
# every example the same label.
STEPS = {
    "layer_freeze": "MiniLM, all but the upper layers frozen",
    "prompt_tuning": "MiniLM, frozen, with trained virtual tokens",
    "hard_prompt": "SmolLM2-135M, frozen, template channel_another_story (noisy channel), "
    "calibrated on 200 labelled training examples",
}


def run_step(name: str, path: Path) -> None:
    """Train or prompt, unless the Run is there."""
    from peft_mrpc.api import evaluate_prompt, train_classifier
    from peft_mrpc.runs.run import RUN_FILE

    if (path / RUN_FILE).is_file():
        return
    data = DataConfig("builtin:pairs")
    if name == "hard_prompt":
        prompt = PromptConfig("builtin:smollm2", "channel_another_story", quantization="none")
        prompt = replace(prompt, calibration="affine", num_calibration_pairs=200)
        evaluate_prompt(replace(prompt, output_dir=str(path)), replace(data, split="test"))
        return
    config, options = TrainConfig(name, "builtin:minilm"), {"num_train_epochs": 8.0}
    if name == "layer_freeze":  # few examples need a lower learning rate than the recipe's
        config = replace(config, swap_sentences="false")
        options = {"num_train_epochs": 6.0, "learning_rate": 1e-4}
    train_classifier(config, data, output_dir=path, **options)


def main(argv: Sequence[str]) -> None:
    """Write a Run of each strategy and the report, and print the report's summary."""
    (config,), _ = parse_command("quickstart", DESCRIPTION, argv, (QuickstartConfig,))
    folder, started = Path(config.output_dir), time.perf_counter()
    from peft_mrpc.runs.staging import DirectoryKind, check_output_dir

    # Hidden names are the locks and the unfinished Runs of an interrupted quickstart.
    contents = frozenset({*STEPS, "comparison", ".*"})
    check_output_dir(folder, True, DirectoryKind("quickstart", contents, Path.iterdir))
    for number, (name, description) in enumerate(STEPS.items(), start=1):
        sys.stderr.write(f"\n== {number}/{len(STEPS)} {name}: {description}\n")
        run_step(name, folder / name)
    from peft_mrpc.api import compare_runs
    from peft_mrpc.report.build import REPORT_FILE

    report = compare_runs([folder / name for name in STEPS])
    report.write(folder / "comparison", overwrite=True)
    print_text(f"\n{report.to_text()}\n\nReport: {folder / 'comparison' / REPORT_FILE}")
    sys.stderr.write(f"done in {time.perf_counter() - started:.0f} s\n")


if __name__ == "__main__":
    sys.exit(run_cli(main))
