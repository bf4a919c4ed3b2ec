"""The command `hard_prompt`: classify examples with a prompted causal LM and write a Run."""

import sys
from collections.abc import Sequence

from peft_mrpc.cli.app import print_text, run_cli
from peft_mrpc.cli.parser import parse_command
from peft_mrpc.config import DataConfig, PromptConfig

DESCRIPTION = "Classify examples with a prompted causal LM and write a Run."


def main(argv: Sequence[str]) -> None:
    """Parse the command line, score, and print the metrics or the prompts of a dry run."""
    configs = (PromptConfig, DataConfig)
    (config, data), _ = parse_command("hard_prompt", DESCRIPTION, argv, configs)

    from peft_mrpc.distributed import process_state
    from peft_mrpc.prompting.run import preview_prompts, run_prompting
    from peft_mrpc.runs.summary import summary

    if config.dry_run:
        lines = preview_prompts(config, data)
    else:
        run = run_prompting(config, data)
        if run is None:  # another process of the job
            return
        lines = [summary(run)]
    if process_state().is_main_process:
        print_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_cli(main))
