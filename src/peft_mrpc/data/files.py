"""Tables of text: csv, tsv, json lines and parquet, with nothing guessed to be missing."""

import csv
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_mrpc.errors import UserError, one_line, raise_faults

PARTED = "Fields are parted by commas in .csv and by tabs in .tsv"
FILE_TYPES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Table:
    """A file as read: where it came from, its columns, its rows as text, its first row's line."""

    where: str
    columns: list[str]
    rows: list[dict[str, Any]]


def read_table(path: Path | str, text: str | None = None) -> Table:
    """Read a csv, tsv, jsonl or parquet file as text cells; nothing is guessed to be missing.

    `.csv` is quoted as RFC 4180 says. `.tsv` is GLUE's: unquoted, so that a lone `"` is text.

    Args:
        path: The file; its ending decides the format.
        text: The content, where it has been read already (standard input).
    Raises:
        UserError: If the file is missing, empty, not UTF-8, or has a row of the wrong width.
    """
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
            content = path.read_text(encoding="utf-8-sig") if text is None else text
            parse = parse_jsonl if suffix in (".jsonl", ".json") else _parse_delimited
            table = parse(content, str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as UTF-8 text: {one_line(error)}. Save it as UTF-8."
        ) from error
    if not table.rows:
        got = "got a header and no row" if table.columns else "the file is empty"
        raise UserError(f"{path}: {got}; expected a header and at least one row.")
    return table


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a parquet file: {one_line(error)}") from error
    return Table(str(path), list(rows[0]) if rows else [], rows)


def parse_jsonl(text: str, where: str) -> Table:
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
    # GLUE's fields may hold a lone quote: with quoting on, csv joins rows without a word.
    if where.lower().endswith(".tsv"):
        lines = text.replace("\r\n", "\n").split("\n")
        records = [line.split("\t") for line in lines if line]
    else:
        # The default limit of 131,072 characters a field would refuse long documents.
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
        raise UserError(f"{where}: got one column, {header[0]!r}. {PARTED}, not by {other!r}.")
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
