"""Ask a causal LM about each pair, score its answers, and write a Run."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from peft_mrpc import config as cfg
from peft_mrpc.artifacts import save_info
from peft_mrpc.data import load_pairs, reported_splits
from peft_mrpc.errors import UserError, logger, raise_faults, run_verb, unknown_name
from peft_mrpc.flags import config_record, flag_value, load_recipe, parse_flags
from peft_mrpc.models import QUANTIZATIONS, load_causal_lm, load_tokenizer
from peft_mrpc.pairs import PairData
from peft_mrpc.predictors import PromptClassifier
from peft_mrpc.processes import process_state
from peft_mrpc.prompts import load_template
from peft_mrpc.publishing import check_access, check_base, publish
from peft_mrpc.reporting import describe_data, summary, write_run
from peft_mrpc.requests import default_output_dir
from peft_mrpc.runs import Run, check_output_dir, load_run, staged_directory
from peft_mrpc.sources import ModelSource, find_model

DESCRIPTION = "Score sentence pairs with a prompted causal LM and write a Run."

LOW_LABEL_MASS = 0.1


def parse_request(argv: Sequence[str]) -> tuple[cfg.HardPromptConfig, cfg.DataConfig]:
    """Parse flags over the user's recipe.

    Raises:
        UserError: For unknown flags, wrong values, and flags that cannot stand together.
    """
    path = flag_value(argv, "config")
    recipes = [load_recipe(path)] if path else []
    (config, data), _ = parse_flags(
        "hard_prompt", DESCRIPTION, (cfg.HardPromptConfig, cfg.DataConfig), argv, recipes
    )
    faults = []
    if config.batch_size < 1:
        faults.append(f"--batch_size: got {config.batch_size}; expected at least 1.")
    if config.max_length < 1:
        faults.append(f"--max_length: got {config.max_length}; expected at least 1.")
    if not 0 <= config.seed < 1 << 32:
        faults.append(f"--seed: got {config.seed}; expected 0 to {(1 << 32) - 1}.")
    if config.push_to_hub and not config.hub_model_id:
        faults.append("--push_to_hub: got no --hub_model_id; expected owner/name.")
    if config.quantization not in QUANTIZATIONS:
        faults += unknown_name("--quantization", config.quantization, QUANTIZATIONS).faults
    raise_faults(faults)
    return config, data


def main(argv: Sequence[str]) -> None:
    config, data_config = parse_request(argv)
    ask(config, data_config)


def ask(config: cfg.HardPromptConfig, data_config: cfg.DataConfig) -> Run:
    """Score the wanted splits and write the Run.

    Returns:
        The Run, on every process.
    """
    output_dir = Path(
        config.output_dir or default_output_dir("hard_prompt", config.model, data_config)
    ).expanduser()
    check_output_dir(output_dir, config.overwrite)
    if config.push_to_hub:
        check_access(str(config.hub_model_id))
    template = load_template(config.template)
    source = find_model(config.model, config.base_model_id)
    if config.push_to_hub:
        check_base(source.name, source.hub_id)
    data = load_pairs(data_config, config.seed)
    splits = reported_splits(data, data_config.split)
    template.words(data.label_names)
    logger.info("hard_prompt: loading %s (%s)", config.model, config.quantization)
    classifier = PromptClassifier(
        load_causal_lm(source, config.quantization),
        load_tokenizer(source),
        template,
        list(data.label_names),
        config.max_length,
    )
    state = process_state()
    if state.is_main_process:
        with staged_directory(output_dir) as staging:
            _ask_into(staging, config, data_config, source, data, splits, classifier)
    else:
        _ask_into(None, config, data_config, source, data, splits, classifier)
    state.wait_for_everyone()
    run = load_run(output_dir)
    if state.is_main_process:
        sys.stdout.write(summary(run) + "\n")
        if config.push_to_hub:
            publish(run, str(config.hub_model_id), config.hub_private_repo)
    return run


def _ask_into(
    staging: Path | None,
    config: cfg.HardPromptConfig,
    data_config: cfg.DataConfig,
    source: ModelSource,
    data: PairData,
    splits: Sequence[str],
    classifier: PromptClassifier,
) -> None:
    """Score on every process; the one that has a staging directory writes."""
    started = time.perf_counter()
    probabilities, label_mass = {}, {}
    for split in splits:
        if not data.splits[split]:
            raise UserError(f"{data.name}: split {split} is empty.")
        probabilities[split] = classifier.score(data.splits[split], config.batch_size)
        label_mass[split] = classifier.label_mass
        if classifier.label_mass is not None and classifier.label_mass < LOW_LABEL_MASS:
            logger.warning(
                "%s: only %.1f%% of the probability falls on the label words; the model answers "
                "something else. Try another --template.",
                *(split, 100 * classifier.label_mass),
            )
    seconds = time.perf_counter() - started
    if staging is None:
        return
    save_info(
        staging / "prompt",
        source,
        method="hard_prompt",
        label_names=classifier.label_names,
        max_length=config.max_length,
        quantization=config.quantization,
        template=classifier.template.record(),
    )
    record = {
        "strategy": "hard_prompt",
        "method": "hard_prompt",
        "model": source.name,
        "base_model_id": source.hub_id,
        "seed": config.seed,
        "num_processes": process_state().num_processes,
        "data": describe_data(data, splits),
        "label_mass": label_mass,
        "timing": {
            "score_seconds": seconds,
            "score_pairs_per_second": sum(map(len, probabilities.values())) / seconds,
        },
        "config": config_record(data_config, config) | {"template": classifier.template.record()},
    }
    write_run(staging, record, data, probabilities)


if __name__ == "__main__":
    sys.exit(run_verb(main))
