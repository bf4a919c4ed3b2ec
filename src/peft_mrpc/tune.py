"""The command `tune`: search a method's options, write the best as a file for `train`."""

import sys
from collections.abc import Sequence

from peft_mrpc.cli.app import print_text, run_cli
from peft_mrpc.cli.train_arguments import parse_command_with_job
from peft_mrpc.config import TuneConfig
from peft_mrpc.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Parse the command line, search, and print the best trial or the plan of a dry run."""
    job, (config,) = parse_command_with_job(argv, "tune", (TuneConfig,))
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(
            "tune: needs Optuna, which is not installed. Run: pip install 'peft-mrpc[tune]'"
        ) from error
    from peft_mrpc.distributed import prepare_processes
    from peft_mrpc.training.tuning.study import prepare_search, run_search

    prepare_processes()  # before TrainingArguments, which look for devices
    if job.config.dry_run:
        text = f"{prepare_search(job, config).describe()}\ndry run: nothing was trained or written"
    else:
        text = str(run_search(job, config))
    print_text(text)


if __name__ == "__main__":
    sys.exit(run_cli(main))
