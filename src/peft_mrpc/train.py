"""The command `train`: adapt a pretrained model to sentence pairs and write a Run."""

import sys
from collections.abc import Sequence

from peft_mrpc.cli.app import print_text, progress_bars, run_cli


def main(argv: Sequence[str]) -> None:
    """Parse the command line, train, and print the metrics or the plan of a dry run."""
    from peft_mrpc.cli.train_arguments import parse_train_command

    job = parse_train_command(argv)

    from peft_mrpc.distributed import process_state
    from peft_mrpc.runs.run import Run
    from peft_mrpc.runs.summary import seed_line, summary
    from peft_mrpc.training.run import run_training

    def print_seed(run: Run, number: int, count: int) -> None:
        print_text(f"seed {run.record['seed']} ({number} of {count}): {seed_line(run)}")

    with progress_bars(not job.training_arguments.get("disable_tqdm")):
        result = run_training(job, print_seed)
    if isinstance(result, Run):
        print_text(summary(result))
    elif result is not None and process_state().is_main_process:
        print_text(str(result))


if __name__ == "__main__":
    sys.exit(run_cli(main))
