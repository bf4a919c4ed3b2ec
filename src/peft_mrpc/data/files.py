"""Read and write tables: csv, tsv, json lines and parquet. No cell is taken for a missing value."""

import csv
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_mrpc.errors import UserError, one_line, raise_faults
from peft_mrpc.serialization import format_json_lines

DELIMITERS = "The delimiter is a comma in .csv and a tab in .tsv"
FILE_TYPES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
OUTPUT_TYPES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Table:
    """The rows of a file or of another source.

    Attributes:
        where: Names the source in error messages.
        columns: Column names.
        rows: Values by column; text in csv and tsv files.
    """

    where: str
    columns: list[str]
    rows: list[dict[str, Any]]


def read_table(path: Path | str) -> Table:
    """Read a csv, tsv, jsonl or parquet file.

    `.csv` is quoted as in RFC 4180. `.tsv` is unquoted as in GLUE: a single `"` is text.

    Args:
        path: The file; its suffix determines the format. `-` is CSV from standard input.
    Raises:
        UserError: If the file is missing, empty or not UTF-8, or a row has too many or few fields.
    """
    if str(path) == "-":
        return _read_standard_input()
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        raise UserError(f"{path}: got a directory; expected a file ({', '.join(FILE_TYPES)}).")
    if suffix not in FILE_TYPES:
        raise UserError(
            f"{path}: got a {suffix or 'nameless'} file; expected {', '.join(FILE_TYPES)}."
        )
    try:
        if suffix == ".parquet":
            table = _read_parquet(path)
        else:
            parse = parse_jsonl if suffix in (".jsonl", ".json") else _parse_delimited
            table = parse(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as UTF-8 text: {one_line(error)}. Save it as UTF-8."
        ) from error
    _check_rows(table)
    return table


def _read_standard_input() -> Table:
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: is not UTF-8 text: {error}.") from error
    table = _parse_delimited(text, "standard input")
    _check_rows(table)
    return table


def _check_rows(table: Table) -> None:
    if not table.rows:
        content = "a header and no row" if table.columns else "an empty file"
        raise UserError(f"{table.where}: got {content}; expected a header and at least one row.")


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a parquet file: {one_line(error)}") from error
    return Table(str(path), list(rows[0]) if rows else [], rows)


def parse_jsonl(text: str, where: str) -> Table:
    """Parse JSON lines.

    Raises:
        UserError: With every line that is not a JSON object.
    """
    rows, faults = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            faults.append(f"{where} line {number}: not valid JSON: {error.msg}.")
            continue
        if not isinstance(row, dict):
            faults.append(
                f"{where} line {number}: expected a JSON object, got {line.strip()[:40]!r}."
            )
            continue
        rows.append(row)
    raise_faults(faults)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return Table(where, columns, rows)


def _parse_delimited(text: str, where: str) -> Table:
    # GLUE's fields may contain a single quote, at which csv.reader would join rows.
    if where.lower().endswith(".tsv"):
        lines = text.replace("\r\n", "\n").split("\n")
        records = [line.split("\t") for line in lines if line]
    else:
        # The default limit of 131,072 characters per field is too small for long documents.
        csv.field_size_limit(sys.maxsize)
        try:
            records = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
        except csv.Error as error:
            raise UserError(f"{where}: not valid CSV: {error}.") from error
    if not records:
        return Table(where, [], [])
    header, *body = records
    other = next((mark for mark in ";|\t" if len(header) == 1 and mark in header[0]), None)
    if other and any(len(row) != 1 for row in body):
        raise UserError(f"{where}: got one column, {header[0]!r}. {DELIMITERS}, not {other!r}.")
    faults = [
        f"{where}: got column {name!r} twice; rename one."
        for name in dict.fromkeys(header)
        if header.count(name) > 1
    ]
    faults += [
        f"{where} row {number}: got {len(row)} fields; expected {len(header)}, as in the header."
        for number, row in enumerate(body, start=1)
        if len(row) != len(header)
    ]
    raise_faults(faults)
    return Table(where, header, [dict(zip(header, row, strict=True)) for row in body])


def output_file_faults(output: str, overwrite: bool) -> list[str]:
    """The faults of the file that a table is to be written to.

    Args:
        output: Its path.
        overwrite: Whether an existing file may be replaced.
    """
    path = Path(output)
    faults = []
    if path.suffix.lower() not in OUTPUT_TYPES:
        faults.append(f"output: got {output!r}; expected {', '.join(OUTPUT_TYPES)}.")
    if path.is_dir():
        faults.append(f"output: got the directory {output!r}; expected a file.")
    elif path.exists() and not overwrite:
        faults.append(f"output: got {output!r}, which exists. Choose another, or set overwrite.")
    folder = path.absolute().parent
    if not folder.is_dir():
        faults.append(f"output: got {output!r}; expected an existing directory.")
    elif not os.access(folder, os.W_OK):
        faults.append(f"output: got {output!r}; cannot write in {folder}: permission denied.")
    return faults


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table; a file that exists is replaced.

    Args:
        path: The file; its suffix, one of OUTPUT_TYPES, determines the format.
        columns: Column names.
        rows: Values by column.
    """
    # Written to a temporary file and moved, so that readers never see half a file.
    with tempfile.NamedTemporaryFile("wb", dir=path.absolute().parent, delete=False) as file:
        try:
            file.write(_serialize(path.suffix.lower(), columns, rows))
            file.close()
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def format_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Format a table as RFC 4180 CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _serialize(suffix: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        buffer = io.BytesIO()
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
        pyarrow.parquet.write_table(table, buffer)
        return buffer.getvalue()
    if suffix == ".jsonl":
        return format_json_lines(rows).encode()
    if suffix == ".tsv":  # unquoted, as it is read: no field may contain a tab or a line break
        lines = [columns, *([_flat(row.get(name)) for name in columns] for row in rows)]
        return "".join("\t".join(line) + "\n" for line in lines).encode()
    return format_csv(columns, rows).encode()


def _flat(value: Any) -> str:
    return re.sub(r"[\t\r\n]", " ", "" if value is None else str(value))
