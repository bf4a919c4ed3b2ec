"""Label the rows of a table with a classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peft_mrpc.config import DataConfig, PredictConfig
from peft_mrpc.data.examples import Example, as_examples
from peft_mrpc.data.files import Table
from peft_mrpc.errors import UserError
from peft_mrpc.evaluation.thresholds import label_names_of
from peft_mrpc.runs.run import RUN_FILE
from peft_mrpc.serialization import read_json, user_path

if TYPE_CHECKING:
    from peft_mrpc.models.classifier import SentenceClassifier


def examples_to_label(run: str | Path, table: Table, config: PredictConfig) -> list[Example]:
    """Convert the rows of a table into examples without labels.

    The sentence columns are those that the config names, else those that the Run was trained on if
    the table has them, else columns with usual names.

    Raises:
        UserError: If a column is missing or a sentence is empty.
    """
    columns = (config.sentence1_column, config.sentence2_column)
    record = user_path(run) / RUN_FILE
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
