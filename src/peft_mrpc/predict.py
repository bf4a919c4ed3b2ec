"""Label new pairs with a Run, an adapter or model directory, or a repository on the Hub."""

import csv
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc import config as cfg
from peft_mrpc.api import load_classifier
from peft_mrpc.cli.app import run_cli
from peft_mrpc.cli.parser import parse_flags
from peft_mrpc.config import PredictConfig
from peft_mrpc.data.columns import class_name_faults, examples_from_table
from peft_mrpc.data.files import Table, read_table
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import UserError, raise_faults
from peft_mrpc.evaluation.thresholds import predict_labels
from peft_mrpc.prompting.endpoint import address_faults
from peft_mrpc.runs.run import RUN_FILE
from peft_mrpc.runs.staging import check_writable
from peft_mrpc.serialization import format_json_lines, read_json

DESCRIPTION = "Label new pairs: peft-mrpc predict RUN --input pairs.csv --output labelled.csv"
OUTPUT_TYPES = (".csv", ".tsv", ".jsonl", ".parquet")


def main(argv: Sequence[str]) -> None:
    (config, names), _ = parse_flags(
        "predict",
        DESCRIPTION,
        (PredictConfig,),
        argv,
        positional={"dest": "run", "metavar": "RUN", "help": "Run, directory or owner/name"},
    )
    predict(names.run, config)


def predict(name: str, config: PredictConfig) -> None:
    """Label the rows of a file; every other column is kept as it was.

    Raises:
        UserError: For a missing input, an existing output, columns that clash.
    """
    _check(config)
    table = _read_input(str(config.input))
    columns = _data_config(name, config, table)
    pairs = examples_from_table(table, columns)
    predictor = load_classifier(name, config.class_names, config.endpoint)
    added = ["prediction", *(f"probability_{label}" for label in predictor.labels)]
    clash = [column for column in added if column in table.columns]
    if clash:
        raise UserError(f"{table.where}: already has the columns {', '.join(clash)}; rename them.")
    probabilities = predictor.predict_proba(pairs, config.batch_size)
    if process_state().is_main_process:
        rows = _labelled_rows(table, probabilities, predictor.labels, predictor.threshold)
        _write_output(config.output, [*table.columns, *added], rows)
        if config.output != "-":
            sys.stderr.write(f"{len(rows)} pairs labelled: {config.output}\n")


def _check(config: PredictConfig) -> None:
    faults = class_name_faults(config.class_names)
    if config.input is None:
        faults.append("--input: got none; expected a file, or - for standard input.")
    faults += address_faults(config.endpoint)
    if config.batch_size < 1:
        faults.append(f"--batch_size: got {config.batch_size}; expected at least 1.")
    output = Path(config.output)
    if config.output != "-":
        if output.suffix.lower() not in OUTPUT_TYPES:
            faults.append(f"--output: got {config.output!r}; expected {', '.join(OUTPUT_TYPES)}.")
        if output.exists() and not config.overwrite:
            faults.append(
                f"--output: got {config.output!r}, which exists; name another, or --overwrite."
            )
        if output.is_dir():
            faults.append(f"--output: got {config.output!r}, a directory; expected a file.")
        if not output.absolute().parent.is_dir():
            faults.append(f"--output: got {config.output!r}, whose directory does not exist.")
    raise_faults(faults)
    if config.output != "-":
        check_writable(output.absolute().parent, f"--output: got {config.output!r}")


def _data_config(name: str, config: PredictConfig, table: Table) -> cfg.DataConfig:
    """The columns that were named, now or when the Run was trained on a table that had them."""
    named = cfg.DataConfig(
        sentence1_column=config.sentence1_column, sentence2_column=config.sentence2_column
    )
    record = Path(name).expanduser() / RUN_FILE
    if record.is_file() and not (named.sentence1_column or named.sentence2_column):
        trained = dict(read_json(record)).get("config") or {}
        columns = [trained.get(f"sentence{number}_column") for number in (1, 2)]
        if set(columns) <= {*table.columns}:
            named.sentence1_column, named.sentence2_column = columns
    return named


def _read_input(name: str) -> Table:
    if name != "-":
        return read_table(name)
    if process_state().num_processes > 1:
        raise UserError("--input: got -, which one process alone can read; expected a file.")
    try:
        return read_table("stdin.csv", text=sys.stdin.buffer.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: is not UTF-8 text: {error}.") from error


def _labelled_rows(
    table: Table,
    probabilities: NDArray[np.float64],
    label_names: Sequence[str],
    threshold: float,
) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "prediction": label_names[label],
            **{
                f"probability_{name}": float(score)
                for name, score in zip(label_names, scores, strict=True)
            },
        }
        for row, label, scores in zip(
            table.rows, predict_labels(probabilities, threshold), probabilities, strict=True
        )
    ]


def _write_output(name: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    if name == "-":
        sys.stdout.write(_as_delimited(columns, rows, ","))
        return
    path = Path(name)
    # Written aside and moved, so that a reader never sees half a file.
    with tempfile.NamedTemporaryFile("wb", dir=path.absolute().parent, delete=False) as file:
        try:
            file.write(_serialize(path.suffix.lower(), columns, rows))
            file.close()
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _serialize(suffix: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> bytes:
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        buffer = io.BytesIO()
        pyarrow.parquet.write_table(
            pyarrow.table({c: [row.get(c) for row in rows] for c in columns}), buffer
        )
        return buffer.getvalue()
    if suffix == ".jsonl":
        return format_json_lines(rows).encode()
    return _as_delimited(columns, rows, "\t" if suffix == ".tsv" else ",").encode()


def _as_delimited(columns: Sequence[str], rows: Sequence[dict[str, Any]], delimiter: str) -> str:
    if delimiter == "\t":  # unquoted, as we read it; no field holds a tab or a line break then
        lines = ["\t".join(columns)]
        lines += ["\t".join(_flat(row.get(column, "")) for column in columns) for row in rows]
        return "\n".join(lines) + "\n"
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _flat(value: Any) -> str:
    return (
        ("" if value is None else str(value))
        .replace("\t", " ")
        .replace("\r", " ")
        .replace("\n", " ")
    )


if __name__ == "__main__":
    sys.exit(run_cli(main))
