"""The command `push`: publish a Run on the Hub."""

import sys
from collections.abc import Sequence

from peft_mrpc.cli.app import print_text, run_cli
from peft_mrpc.cli.parser import Positional, parse_command
from peft_mrpc.config import PushConfig
from peft_mrpc.runs.run import load_run

DESCRIPTION = "Publish a Run on the Hub: peft-mrpc push RUN --repo_id owner/name"


def main(argv: Sequence[str]) -> None:
    """Parse the command line, and upload the files of the Run or list them."""
    positional = Positional("RUN", "the directory of a Run")
    (config,), (name,) = parse_command("push", DESCRIPTION, argv, (PushConfig,), positional)

    from peft_mrpc.runs import publishing

    publishing.check_repo_id(config.repo_id)
    run = publishing.with_base_model(load_run(name), config.base_model_id)
    publishing.check_publishable(run)
    if config.dry_run:
        for file, size in publishing.list_files(run, config.repo_id).items():
            print_text(f"{size / 1e6:10.3f} MB  {file}")
        print_text(f"dry run: nothing was uploaded to {config.repo_id}")
        return
    publishing.check_access(config.repo_id, "repo_id")
    print_text(publishing.publish(run, config.repo_id, config.private))


if __name__ == "__main__":
    sys.exit(run_cli(main))
