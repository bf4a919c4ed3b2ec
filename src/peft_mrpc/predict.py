"""The command `predict`: label the examples of a file."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from peft_mrpc.api import load_classifier
from peft_mrpc.cli.app import run_cli
from peft_mrpc.cli.parser import Positional, parse_command
from peft_mrpc.config import PredictConfig
from peft_mrpc.data.columns import class_name_faults
from peft_mrpc.data.files import output_file_faults, read_table, serialize_table, write_table
from peft_mrpc.errors import raise_faults
from peft_mrpc.models.table_labels import add_predictions, examples_to_label

DESCRIPTION = "Label the examples of a file: peft-mrpc predict RUN --input pairs.csv"


def main(argv: Sequence[str]) -> None:
    """Run the command; PyTorch is imported after the input has been read."""
    positional = Positional("RUN", "a Run, a directory, or owner/name on the Hub")
    (config,), (name,) = parse_command("predict", DESCRIPTION, argv, (PredictConfig,), positional)
    raise_faults(_config_faults(config))
    table = read_table(config.input)

    from peft_mrpc.distributed import process_state

    examples = examples_to_label(name, table, config)
    classifier = load_classifier(
        name,
        config.class_names,
        config.endpoint,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )
    labelled = add_predictions(table, examples, classifier, config.batch_size)
    if process_state().is_main_process and config.output == "-":
        # UTF-8 like a file, whatever the encoding of the terminal.
        sys.stdout.flush()
        sys.stdout.buffer.write(serialize_table(".csv", labelled.columns, labelled.rows))
    elif process_state().is_main_process:
        write_table(Path(config.output), labelled.columns, labelled.rows)
        sys.stderr.write(f"{len(labelled.rows)} examples labelled: {config.output}\n")


def _config_faults(config: PredictConfig) -> list[str]:
    faults = class_name_faults(config.class_names)
    if config.input is None:
        faults.append("input: got none; expected a file, or - for standard input.")
    if config.input == "-" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        faults.append("input: got - in a job of several processes; expected a file.")
    if config.batch_size < 1:
        faults.append(f"batch_size: got {config.batch_size}; expected at least 1.")
    if config.output != "-":
        faults += output_file_faults(config.output, config.overwrite)
        is_input = os.path.realpath(config.output) == os.path.realpath(config.input or "")
        if config.overwrite and is_input:
            faults.append(f"output: got {config.output!r}, which is the input; expected another.")
    return faults


if __name__ == "__main__":
    sys.exit(run_cli(main))
