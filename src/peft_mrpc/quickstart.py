"""All three strategies on the built-in pairs with the built-in models, then the comparison."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from peft_mrpc import hard_prompt, train
from peft_mrpc.api import compare_runs
from peft_mrpc.cli.app import run_cli
from peft_mrpc.cli.parser import parse_command
from peft_mrpc.config import QuickstartConfig
from peft_mrpc.errors import UserError
from peft_mrpc.report.build import REPORT_FILE
from peft_mrpc.runs.run import RUN_FILE

DESCRIPTION = "Run every strategy on the built-in pairs and compare them; no network, no GPU."

DATA = ["--dataset", "builtin:pairs"]
STEPS: dict[str, list[str]] = {
    # Few pairs want a lower rate than the recipe's: found on the validation split.
    "layer_freeze": [
        *["--model", "builtin:minilm", "--num_train_epochs", "6"],
        *["--learning_rate", "1e-4", "--swap_sentences", "false"],
    ],
    "prompt_tuning": ["--model", "builtin:minilm", "--num_train_epochs", "8"],
    "hard_prompt": ["--model", "builtin:smollm2", "--split", "test"],
}


def main(argv: Sequence[str]) -> None:
    (config,), _ = parse_command("quickstart", DESCRIPTION, argv, (QuickstartConfig,))
    folder = Path(config.output_dir)
    if folder.is_file():
        raise UserError(f"--output_dir: got {str(folder)!r}, a file; expected a directory.")
    started = time.perf_counter()
    for number, (name, flags) in enumerate(STEPS.items(), start=1):
        _heading(f"{number}/{len(STEPS)} {name}", flags)
        run = folder / name
        if (run / RUN_FILE).is_file():
            sys.stderr.write(f"already done: {run}\n")
            continue
        arguments = [*flags, *DATA, "--output_dir", str(run)]
        if name == "hard_prompt":
            hard_prompt.main(arguments)
        else:
            train.main(["--method", name, *arguments])
    report = compare_runs([folder / name for name in STEPS])
    report.write(folder / "comparison", overwrite=True)
    address = folder / "comparison" / REPORT_FILE
    sys.stdout.write(f"\n{report.to_text()}\n\nReport: {address}\n")
    sys.stderr.write(f"done in {time.perf_counter() - started:.0f} s\n")


def _heading(text: str, flags: Sequence[str]) -> None:
    sys.stderr.write(f"\n== {text}: {' '.join(flags)}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(run_cli(main))
