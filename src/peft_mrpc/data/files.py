"""Read and write tables: csv, tsv, json lines and parquet. No cell is taken for a missing value."""

import csv
import io
import json
import logging
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from peft_mrpc.errors import UserError, one_line, raise_faults
from peft_mrpc.serialization import encode_text, format_json_lines, load_json

logger = logging.getLogger(__name__)

DELIMITERS = "The delimiter is a comma in .csv and a tab in .tsv"
FILE_TYPES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
OUTPUT_TYPES = (".csv", ".tsv", ".jsonl", ".parquet")
MAX_FIELD = 2**31 - 1  # the most that csv accepts on Windows


@dataclass(frozen=True)
class Table:
    """The rows of a file or of another source.

    Attributes:
        where: Names the source in error messages.
        columns: Column names.
        rows: Values by column; text in csv and tsv files.
        class_labels: The label names of each column with a fixed list of them (a ClassLabel), in
            the order of the positions that `datasets` stores for them.
    """

    where: str
    columns: list[str]
    rows: list[dict[str, Any]]
    class_labels: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_table(path: Path | str) -> Table:
    """Read a csv, tsv, jsonl or parquet file.

    `.csv` is quoted as in RFC 4180. `.tsv` is unquoted as in GLUE: a single `"` is text.

    Args:
        path: The file; its suffix determines the format. `-` is CSV from standard input.
    Raises:
        UserError: If the file is missing, empty or not UTF-8, or with every row that is invalid.
    """
    if str(path) == "-":
        if sys.stdin is None:
            raise UserError("standard input: is closed; expected csv.")
        return _parse_text(sys.stdin.buffer.read(), "standard input", ".csv")
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FILE_TYPES:
        # Path.is_dir raises for a name that is too long.
        kind = "directory" if os.path.isdir(path) else f"{suffix or 'nameless'} file"  # noqa: PTH112
        raise UserError(f"{path}: got a {kind}; expected {', '.join(FILE_TYPES)}.")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except IsADirectoryError as error:
        raise UserError(
            f"{path}: got a directory; expected a file ({', '.join(FILE_TYPES)})."
        ) from error
    except (OSError, ValueError) as error:  # a ValueError for a NUL character in the name
        raise UserError(f"{str(path)[:200]}: cannot be read: {_reason(error)}.") from error
    if suffix == ".parquet":
        return _check_rows(_parse_parquet(content, str(path)))
    return _parse_text(content, str(path), suffix)


def _parse_text(content: bytes, where: str, suffix: str) -> Table:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: is not UTF-8 text: {one_line(error)}. Save it as UTF-8."
        ) from error
    if "\0" in text:  # as in UTF-16 without a byte order mark
        raise UserError(f"{where}: got NUL characters; expected UTF-8 text. Save it as UTF-8.")
    parse = {".csv": _parse_csv, ".tsv": _parse_tsv}.get(suffix, parse_jsonl)
    return _check_rows(parse(text, where))


def _check_rows(table: Table) -> Table:
    if not table.rows:
        content = "a header and no row" if table.columns else "an empty file"
        raise UserError(f"{table.where}: got {content}; expected a header and at least one row.")
    return table


def _parse_parquet(content: bytes, where: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(content)).read()
        rows = table.to_pylist()
    # Values out of range and strings that are not UTF-8 raise ValueErrors and OverflowErrors.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: cannot be read as parquet: {one_line(error)[:200]}") from error
    _check_columns(table.column_names, where)
    class_labels = _stored_class_labels(table.schema.metadata or {})
    return Table(where, table.column_names, rows, class_labels)


def _stored_class_labels(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The label names of ClassLabel columns that `datasets.Dataset.to_parquet` stores."""
    try:
        features = load_json(metadata[b"huggingface"].decode())["info"]["features"]
        names = {column: kind.get("names") for column, kind in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):  # none, or of another tool
        return {}
    return {
        column: labels
        for column, labels in names.items()
        if isinstance(labels, list) and labels and all(isinstance(name, str) for name in labels)
    }


def parse_jsonl(text: str, where: str) -> Table:
    """Parse JSON lines.

    Raises:
        UserError: With every line that is not a JSON object; with one fault for a file that is one
            JSON document.
    """
    rows, faults = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = load_json(line)
        except ValueError as error:
            faults.append(f"{where} line {number}: {error}.")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            shown = repr(line.strip()[:40])
            faults.append(f"{where} line {number}: expected a JSON object, got {shown}.")
    if faults and (document := _json_document(text)):
        faults = [f"{where}: got {document}; expected one object per line."]
    raise_faults(faults)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return Table(where, columns, rows)


def _json_document(text: str) -> str | None:
    """The name of what a text is if it is one JSON value, or the beginning of an array."""
    if text.lstrip().startswith("["):
        return "a JSON array"
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return None
    return "one JSON object over several lines" if text.lstrip().startswith("{") else None


def _parse_tsv(text: str, where: str) -> Table:
    # GLUE's fields may contain a single quote, at which csv.reader would join rows.
    lines = text.replace("\r\n", "\n").split("\n")
    return _table_of_records([line.split("\t") for line in lines if line], where)


def _parse_csv(text: str, where: str) -> Table:
    # The default limit of 131,072 characters per field is too small for long documents.
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        records = [row for row in reader if row]
    except csv.Error as error:
        raise UserError(f"{where} line {reader.line_num}: not valid CSV: {error}.") from error
    return _table_of_records(records, where)


def _table_of_records(records: list[list[str]], where: str) -> Table:
    """A table of rows of fields, of which the first is the header."""
    if not records:
        return Table(where, [], [])
    header, *body = records
    other = next((mark for mark in ";|\t" if len(header) == 1 and mark in header[0]), None)
    if other and any(len(row) != 1 for row in body):
        raise UserError(
            f"{where}: got one column, {header[0][:100]!r}. {DELIMITERS}, not {other!r}."
        )
    _check_columns(header, where)
    raise_faults(
        [
            f"{where} row {number}: got {len(row)} fields; expected {len(header)} as in the header."
            for number, row in enumerate(body, start=1)
            if len(row) != len(header)
        ]
    )
    return Table(where, header, [dict(zip(header, row, strict=True)) for row in body])


def _check_columns(names: Sequence[str], where: str) -> None:
    raise_faults(
        [
            f"{where}: got column {name[:100]!r} twice; rename one."
            for name, count in Counter(names).items()
            if count > 1
        ]
    )


def output_file_faults(output: str, overwrite: bool) -> list[str]:
    """The faults of the file that a table is to be written to.

    Args:
        output: Its path.
        overwrite: Whether an existing file may be replaced.
    """
    path = Path(output)
    where = f"output: got {output[:200]!r}"
    faults = []
    if path.suffix.lower() not in OUTPUT_TYPES:
        faults.append(f"{where}; expected {', '.join(OUTPUT_TYPES)}.")
    try:
        if path.is_symlink() and not path.exists():
            faults.append(f"{where}, a link to a file that does not exist; expected a file.")
        elif path.is_dir():
            faults.append(f"{where}, a directory; expected a file.")
        elif path.exists() and not path.is_file():
            faults.append(f"{where}, which is not a regular file; expected a file.")
        elif path.exists() and not overwrite:
            faults.append(f"{where}, which exists. Choose another, or set overwrite.")
        # The directory is tested by a file, because permissions do not show a read-only disk.
        tempfile.TemporaryFile(dir=path.resolve().parent).close()
    except (FileNotFoundError, NotADirectoryError):
        faults.append(f"{where}; expected an existing directory.")
    except (OSError, ValueError) as error:
        faults.append(f"{where}; cannot be written: {_reason(error)}.")
    return faults


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table; a file that exists is replaced, and a link keeps pointing to its file.

    Args:
        path: The file; its suffix, one of OUTPUT_TYPES, determines the format.
        columns: Column names.
        rows: Values by column.
    Raises:
        UserError: If the file cannot be written. An existing file is unchanged.
    """
    content = serialize_table(path.suffix.lower(), columns, rows)
    target = path.resolve()
    try:
        # Written to a temporary file and moved, so that readers never see half a file.
        with tempfile.NamedTemporaryFile("wb", dir=target.parent, delete=False) as file:
            try:
                file.write(content)
                file.close()
                Path(file.name).chmod(0o644)
                Path(file.name).replace(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise UserError(
            f"output: {str(path)!r} could not be written: {_reason(error)}. "
            "Set output to a file on another disk."
        ) from error


def _reason(error: Exception) -> str:
    """The reason of an OSError without its number and path."""
    return getattr(error, "strerror", None) or one_line(error)


def serialize_table(
    suffix: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> bytes:
    """The content of a file of one of OUTPUT_TYPES; text is UTF-8."""
    if suffix == ".parquet":
        return _serialize_parquet(columns, rows)
    if suffix == ".jsonl":
        return encode_text(format_json_lines(rows))
    if suffix == ".tsv":  # unquoted, as it is read: no field may contain a tab or a line break
        lines = [columns, *([_flat(row.get(name)) for name in columns] for row in rows)]
        return encode_text("".join("\t".join(line) + "\n" for line in lines))
    records: list[str] = []
    # The default end of a record, \r\n: csv quotes only the line breaks that occur in it.
    writer = csv.writer(SimpleNamespace(write=records.append))
    writer.writerow(columns)
    writer.writerows([row.get(name) for name in columns] for row in rows)
    return encode_text("".join(record.removesuffix("\r\n") + "\n" for record in records))


def _serialize_parquet(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    arrays = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        try:
            arrays[name] = pyarrow.array(values)
            if pyarrow.types.is_nested(arrays[name].type):  # parquet has no empty objects
                pyarrow.parquet.write_table(pyarrow.table({name: arrays[name]}), io.BytesIO())
        # Values of several types, numbers of more than 64 bits, lone surrogates.
        except (pyarrow.ArrowException, OverflowError, UnicodeError):
            logger.warning("output: column %r has no single parquet type; written as text", name)
            arrays[name] = pyarrow.array([None if v is None else _as_text(v) for v in values])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays), buffer)
    return buffer.getvalue()


def _as_text(value: Any) -> str:
    """A value as text: as it is, or as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return encode_text(text).decode()


def _flat(value: Any) -> str:
    return re.sub(r"[\t\r\n]", " ", "" if value is None else str(value))
