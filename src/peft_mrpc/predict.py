"""The command `predict`: label the examples of a file."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peft_mrpc.api import load_classifier
from peft_mrpc.cli.app import run_cli
from peft_mrpc.cli.parser import Positional, parse_command
from peft_mrpc.config import DataConfig, PredictConfig
from peft_mrpc.data.columns import class_name_faults
from peft_mrpc.data.examples import Example, as_examples
from peft_mrpc.data.files import Table, format_csv, output_file_faults, read_table, write_table
from peft_mrpc.errors import UserError, raise_faults
from peft_mrpc.evaluation.thresholds import label_names_of
from peft_mrpc.runs.run import RUN_FILE
from peft_mrpc.serialization import read_json

if TYPE_CHECKING:
    from peft_mrpc.models.classifier import SentenceClassifier

DESCRIPTION = "Label the examples of a file: peft-mrpc predict RUN --input pairs.csv"


def main(argv: Sequence[str]) -> None:
    """Run the command; PyTorch is imported after the input has been read."""
    positional = Positional("RUN", "a Run, a directory, or owner/name on the Hub")
    (config,), (name,) = parse_command("predict", DESCRIPTION, argv, (PredictConfig,), positional)
    raise_faults(_config_faults(config))
    table = read_table(config.input)

    from peft_mrpc.distributed import process_state

    examples = examples_to_label(name, table, config)
    classifier = load_classifier(name, config.class_names, config.endpoint)
    labelled = add_predictions(table, examples, classifier, config.batch_size)
    if process_state().is_main_process and config.output == "-":
        sys.stdout.write(format_csv(labelled.columns, labelled.rows))
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
    return faults


def examples_to_label(run: str | Path, table: Table, config: PredictConfig) -> list[Example]:
    """Convert the rows of a table into examples without labels.

    The sentence columns are those that the config names, else those that the Run was trained on if
    the table has them, else columns with usual names.

    Raises:
        UserError: If a column is missing or a sentence is empty.
    """
    columns = (config.sentence1_column, config.sentence2_column)
    record = Path(run).expanduser() / RUN_FILE
    if not any(columns) and record.is_file():
        trained = dict(read_json(record)).get("config") or {}
        recorded = (trained.get("sentence1_column"), trained.get("sentence2_column"))
        columns = recorded if set(recorded) <= {*table.columns} else columns
    first, second = columns
    return as_examples(table, DataConfig(sentence1_column=first, sentence2_column=second))


def add_predictions(
    table: Table, examples: Sequence[Example], classifier: "SentenceClassifier", batch_size: int
) -> Table:
    """Append the columns `prediction` and `probability_<label>` to a table.

    Args:
        table: N rows.
        examples: The same rows as examples.
        classifier: A fine-tuned or a prompt classifier.
        batch_size: Examples in one forward pass.
    Raises:
        UserError: If the table already has one of these columns.
    """
    names = ["prediction", *(f"probability_{label}" for label in classifier.labels)]
    if clash := [name for name in names if name in table.columns]:
        raise UserError(f"{table.where}: already has the columns {', '.join(clash)}. Rename them.")
    probabilities = classifier.predict_proba(examples, batch_size)
    predictions = label_names_of(probabilities, classifier.labels, classifier.threshold)
    rows = [
        {**row, **dict(zip(names, [prediction, *map(float, scores)], strict=True))}
        for row, prediction, scores in zip(table.rows, predictions, probabilities, strict=True)
    ]
    return Table(table.where, [*table.columns, *names], rows)


if __name__ == "__main__":
    sys.exit(run_cli(main))
