"""Ask a causal LM about each pair, score its answers, and write a Run."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from peft_mrpc import config as cfg
from peft_mrpc.cli.app import run_cli
from peft_mrpc.cli.parser import flag_value, load_recipe, parse_flags
from peft_mrpc.data.examples import DataSplits
from peft_mrpc.data.loading import (
    load_data,
    reported_splits,
    warn_train_test_overlap,
    warn_unknown_labels,
)
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import UserError, choice_faults, logger, raise_faults
from peft_mrpc.models.hub import ModelSource, resolve_model
from peft_mrpc.models.loading import load_causal_lm, load_tokenizer
from peft_mrpc.models.quantization import QUANTIZATIONS
from peft_mrpc.prompting.calibration import KINDS
from peft_mrpc.prompting.demonstrations import CHOICES, build_show
from peft_mrpc.prompting.endpoint import EndpointEngine, address_faults
from peft_mrpc.prompting.local_model import Engine, LocalEngine, PromptClassifier
from peft_mrpc.prompting.preview import build_plan
from peft_mrpc.prompting.run import OF_A_LOADED_MODEL, Asker
from peft_mrpc.prompting.template_files import load_templates
from peft_mrpc.prompting.train_sampling import draw_from_train
from peft_mrpc.prompting.validation import prompt_faults
from peft_mrpc.runs.publishing import check_access, check_base, publish
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.runs.staging import check_output_dir, staged_directory
from peft_mrpc.runs.writer import data_line, summary
from peft_mrpc.training.request import default_output_dir

DESCRIPTION = "Score sentence pairs with a prompted causal LM and write a Run."
NAMES = {
    "quantization": QUANTIZATIONS,
    "calibration": KINDS,
    "demonstrations": CHOICES,
    "combine": ("ensemble", "best"),
    "label_prior": ("none", "uniform", "train"),
    "scoring": ("words", "generate"),
    "device_map": ("replica", "auto"),
}


def parse_request(argv: Sequence[str]) -> tuple[cfg.PromptConfig, cfg.DataConfig]:
    """Parse flags over the user's recipe.

    Raises:
        UserError: For unknown flags, wrong values, and flags that cannot stand together.
    """
    path = flag_value(argv, "config")
    recipes = [] if path is None else [load_recipe(path)]
    (config, data), _ = parse_flags(
        "hard_prompt",
        DESCRIPTION,
        (cfg.PromptConfig, cfg.DataConfig),
        argv,
        recipes,
        recipe_path=path,
    )
    faults = [
        f"--{name}: got {getattr(config, name)}; expected at least {least}."
        for name, least in {
            "batch_size": 1,
            "batch_tokens": 1,
            "max_length": 1,
            "num_demonstrations": 0,
            "num_calibration_pairs": 4,
        }.items()
        if getattr(config, name) < least
    ]
    if not 0 <= config.seed < 1 << 32:
        faults.append(f"--seed: got {config.seed}; expected 0 to {(1 << 32) - 1}.")
    if config.push_to_hub and not config.hub_model_id:
        faults.append("--push_to_hub: got no --hub_model_id; expected owner/name.")
    faults += choice_faults(config, NAMES)
    faults += endpoint_faults(config)
    if config.device_map == "auto" and process_state().num_processes > 1:
        faults.append(
            "--device_map: got auto in a job of several processes, each of which would take every "
            "GPU; start it alone, or use replica."
        )
    raise_faults(faults)
    return config, data


def endpoint_faults(config: cfg.PromptConfig) -> list[str]:
    """What is wrong with a served model's address, or means nothing to it."""
    if config.endpoint is None:
        return []
    return address_faults(config.endpoint) + [
        f"--{name}: got {getattr(config, name)}, but --endpoint leaves to the server how the model "
        "is held and run; drop it."
        for name in OF_A_LOADED_MODEL
        if getattr(config, name) != getattr(cfg.PromptConfig, name)
    ]


def main(argv: Sequence[str]) -> None:
    config, data_config = parse_request(argv)
    ask(config, data_config)


def ask(config: cfg.PromptConfig, data_config: cfg.DataConfig) -> Run | None:
    """Score the wanted splits and write the Run.

    Returns:
        The Run, on the main process, whose machine alone may hold it; None after `--dry_run`.
    """
    output_dir = Path(
        config.output_dir or default_output_dir("hard_prompt", config.model, data_config)
    ).expanduser()
    check_output_dir(output_dir, config.overwrite)
    if config.push_to_hub:
        check_access(str(config.hub_model_id))
    data = load_data(data_config, config.seed)
    splits = reported_splits(data, data_config.split)
    templates = load_templates(config.template, data.label_names)
    raise_faults(prompt_faults(config, templates, data, splits))
    drawn = draw_from_train(config, data, splits)  # what train lacks is said before a model loads
    held, shown = drawn
    warn_unknown_labels(data, splits)
    if held or shown:
        warn_train_test_overlap(data, splits)
    show = build_show(
        config.demonstrations, config.num_demonstrations, shown, list(data.label_names)
    )
    source = find_source(config)  # which may have to be converted first
    if config.push_to_hub:
        check_base(source.name, source.hub_id)
    plan = None
    if not config.endpoint:  # which writes its prompts itself
        asked = {**({"train": held} if held else {}), **{s: data.splits[s] for s in splits}}
        plan = build_plan(config, templates, source, data.label_names, show, asked)
    if config.dry_run:
        names = ", ".join(template.name for template in templates)
        prompts = plan.lines(splits[0]) if plan else [f"templates: {names}"]
        print_plan(config, data, splits, prompts, output_dir)
        return None
    engine = build_engine(config, source)
    classifier = PromptClassifier(engine, templates, list(data.label_names), show)
    scratch = output_dir.with_name(f".{output_dir.name}.scores")
    asker = Asker(config, data_config, source, data, splits, classifier, scratch, drawn)
    state = process_state()
    if state.is_main_process:
        try:
            with staged_directory(output_dir) as staging:
                asker.ask_into(staging)
        except (KeyboardInterrupt, UserError) as error:
            if scratch.is_dir():
                error.add_note(f"Scores are kept in {scratch}: the same command goes on.")
            raise
    else:
        asker.ask_into(None)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    run = load_run(output_dir)
    shutil.rmtree(scratch, ignore_errors=True)
    sys.stdout.write("\n".join([*asker.template_lines(), summary(run)]) + "\n")
    if config.push_to_hub:
        publish(run, str(config.hub_model_id), config.hub_private_repo)
    return run


def print_plan(
    config: cfg.PromptConfig,
    data: DataSplits,
    splits: Sequence[str],
    prompts: Sequence[str],
    output_dir: Path,
) -> None:
    """Say what would be asked."""
    is_here = f"quantization {config.quantization}"
    held = f"served at {config.endpoint}" if config.endpoint else is_here
    lines = [
        data_line(data, splits),
        f"model: {config.model}, {held}",
        *prompts,
        f"output: {output_dir}",
        "dry run: no weights of it were loaded, nothing was asked, no Run was written",
    ]
    if process_state().is_main_process:
        sys.stdout.write("\n".join(lines) + "\n")


def find_source(config: cfg.PromptConfig) -> ModelSource:
    """The model; one that an endpoint serves is known by its name alone."""
    if config.endpoint:
        return ModelSource(config.model, config.model, config.base_model_id)
    return resolve_model(config.model, config.base_model_id)


def build_engine(config: cfg.PromptConfig, source: ModelSource) -> Engine:
    """The model here, or the one that is served elsewhere."""
    if config.endpoint:
        logger.info("hard_prompt: asking %s at %s", config.model, config.endpoint)
        return EndpointEngine(config.endpoint, config.model)
    logger.info("hard_prompt: loading %s (%s)", config.model, config.quantization)
    return LocalEngine(
        load_causal_lm(source, config.quantization, config.device_map),
        load_tokenizer(source),
        config.max_length,
        config.batch_tokens,
        config.share_prefix,
    )


if __name__ == "__main__":
    sys.exit(run_cli(main))
