"""Publish a Run on the Hub."""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peft_mrpc.cli.app import run_cli
from peft_mrpc.cli.parser import Positional, parse_command
from peft_mrpc.config import PushConfig
from peft_mrpc.errors import UserError
from peft_mrpc.runs.publishing import (
    check_access,
    check_publishable,
    check_repo_id,
    collect_files,
    publish,
)
from peft_mrpc.runs.run import load_run

DESCRIPTION = "Publish a Run on the Hub: peft-mrpc push RUN --repo_id owner/name"


def main(argv: Sequence[str]) -> None:
    positional = Positional("RUN", "the directory of a Run")
    (config,), (name,) = parse_command("push", DESCRIPTION, argv, (PushConfig,), positional)
    if not config.repo_id:
        raise UserError("--repo_id: got none; expected owner/name.")
    check_repo_id(config.repo_id)
    run = load_run(name)
    if config.base_model_id:
        check_repo_id(config.base_model_id)
        run = replace(run, record={**run.record, "base_model_id": config.base_model_id})
    check_publishable(run)
    if config.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            collect_files(run, config.repo_id, Path(folder))
            files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
            for file in files:
                size = file.stat().st_size / 1e6
                sys.stdout.write(f"{size:10.3f} MB  {file.relative_to(folder)}\n")
        sys.stdout.write(f"dry run: nothing was uploaded to {config.repo_id}\n")
        return
    check_access(config.repo_id)
    url = publish(run, config.repo_id, config.private)
    sys.stdout.write(f"{url}\n")


if __name__ == "__main__":
    sys.exit(run_cli(main))
