"""Classify examples with a prompted causal LM and write a Run."""

import sys
from collections.abc import Sequence

from peft_mrpc.api import evaluate_prompt, preview_prompts
from peft_mrpc.cli.app import run_cli
from peft_mrpc.cli.parser import flag_value, load_recipe, parse_flags
from peft_mrpc.config import DataConfig, PromptConfig

DESCRIPTION = "Classify examples with a prompted causal LM and write a Run."


def parse_command(argv: Sequence[str]) -> tuple[PromptConfig, DataConfig]:
    """Parse the command line over the user's YAML file."""
    path = flag_value(argv, "config")
    recipes = [] if path is None else [load_recipe(path)]
    types = (PromptConfig, DataConfig)
    (config, data), _ = parse_flags(
        "hard_prompt", DESCRIPTION, types, argv, recipes, recipe_path=path
    )
    return config, data


def main(argv: Sequence[str]) -> None:
    config, data = parse_command(argv)
    if config.dry_run:
        lines = preview_prompts(config, data)
    else:
        run = evaluate_prompt(config, data)
        if run is None:  # another process of the job
            return
        from peft_mrpc.prompting.run import template_lines
        from peft_mrpc.runs.summary import summary

        lines = [*template_lines(run), summary(run)]
    from peft_mrpc.distributed import process_state

    if process_state().is_main_process:
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(run_cli(main))
