"""Examples, the splits of a data set, and their conversion from tables and other containers."""

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from peft_mrpc.config import IN_MEMORY, DataConfig
from peft_mrpc.data.columns import (
    NO_LABEL_TYPES,
    find_columns,
    label_lookup,
    label_text,
    missing_label_column,
    resolve_label_names,
    row_label,
)
from peft_mrpc.data.files import Table
from peft_mrpc.errors import UserError, closest, collect_faults, raise_faults

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
UNKNOWN_LABEL = -1
MAX_ROWS_SHOWN = 5
# A sequence of examples or of tuples, a `datasets.Dataset`, or a pandas `DataFrame`.
Inputs: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set.

    Attributes:
        idx: Number of the example in its split, from 0; dropped rows do not count.
        sentence1: First sentence.
        sentence2: Second sentence, if the data has two.
        label: Index into the label names; -1 if unknown.
    """

    idx: int
    sentence1: str
    sentence2: str | None
    label: int = UNKNOWN_LABEL


@dataclass(frozen=True)
class DataSplits:
    """The splits of a data set, with one list of label names.

    Attributes:
        name: Its name.
        label_names: C names; of two, the last is the positive class.
        splits: Examples by split.
        dropped: Of each split with invalid rows that were dropped, their number by reason.
    """

    name: str
    label_names: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def fingerprint(self, split: str) -> str:
        """SHA-256 of a split's rows, with label names in place of indices."""
        digest = hashlib.sha256()
        for example in self.splits[split]:
            is_known = example.label != UNKNOWN_LABEL
            name = self.label_names[example.label] if is_known else None
            row = [example.idx, example.sentence1, example.sentence2, name]
            digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()

    @cached_property
    def num_leaked(self) -> dict[str, int]:
        """For each evaluation split, how many of its examples also occur in train.

        Splits carved from train count as train. Case, white space, the order of the sentences and
        the label are ignored.
        """
        keys = {
            split: [frozenset(normalized_texts(example)) for example in examples]
            for split, examples in self.splits.items()
            if split in SPLITS[1:]
        }
        # Train may be large: only the keys that occur elsewhere are collected.
        wanted = {key for split_keys in keys.values() for key in split_keys}
        train = {
            key
            for split, examples in self.splits.items()
            if split not in keys
            for key in map(frozenset, map(normalized_texts, examples))
            if key in wanted
        }
        return {split: sum(key in train for key in keys[split]) for split in keys}


class Problem(NamedTuple):
    """A reason why a row is invalid, as in `got ...; expected ...`."""

    got: str
    expected: str


def normalized_texts(example: Example) -> tuple[str, ...]:
    """The sentences in lower case, with single spaces."""
    texts = (example.sentence1, example.sentence2)
    return tuple(" ".join(text.lower().split()) for text in texts if text is not None)


def label_counts(examples: Iterable[Example], label_names: Sequence[str]) -> dict[str, int]:
    """The number of examples with each label."""
    counts = dict.fromkeys(label_names, 0)
    for example in examples:
        if example.label != UNKNOWN_LABEL:
            counts[label_names[example.label]] += 1
    return counts


def as_examples(inputs: Inputs, columns: DataConfig | None = None) -> list[Example]:
    """Convert inputs into examples. Labels are kept of examples only.

    Args:
        inputs: A sequence of examples or of tuples `(sentence1, sentence2)`, a
            `datasets.Dataset`, a pandas `DataFrame` or a `Table`.
        columns: Names the sentence columns, if they are not usual names.
    Raises:
        UserError: For another type, a missing column or an invalid sentence.
    """
    if isinstance(inputs, Sequence) and all(isinstance(row, Example) for row in inputs):
        return list(inputs)
    table = as_table(inputs, "inputs")
    if not table.rows:
        return []
    first, second, _ = find_columns(table, columns or DataConfig())
    raise_faults(_row_faults(table.where, _invalid_rows(table, (first, second, None), False), ""))
    return list(_convert_rows(table, (first, second, None), {}))


def as_table(inputs: Inputs, where: str) -> Table:
    """Convert inputs, as in `as_examples`, into a table.

    Args:
        inputs: Tuples may hold a third element, the label.
        where: Names the inputs in error messages.
    Raises:
        UserError: For another type, or a row of another length.
    """
    if isinstance(inputs, Table):
        return inputs
    if hasattr(inputs, "column_names") and hasattr(inputs, "to_list"):  # datasets.Dataset
        return _table_of_dataset(inputs, where)
    if hasattr(inputs, "columns") and hasattr(inputs, "to_dict"):  # pandas.DataFrame
        objects = inputs.astype(object)  # no column type turns None into NaN
        rows = objects.where(inputs.notna(), None).rename(columns=str).to_dict("records")
        return Table(where, [str(name) for name in inputs.columns], rows)
    if not isinstance(inputs, Sequence) or isinstance(inputs, str):
        raise UserError(
            f"{where}: got {type(inputs).__name__}; expected a list of tuples, a datasets.Dataset "
            "or a pandas DataFrame."
        )
    names = ("sentence1", "sentence2", "label")
    rows, faults = [], []
    for number, row in enumerate(inputs, start=1):
        if isinstance(row, Example):
            row = (row.sentence1, row.sentence2, row.label)
        if isinstance(row, tuple | list) and len(row) in (2, 3):
            rows.append(dict(zip(names, row, strict=False)))
        else:
            faults.append(
                f"{where} row {number}: got {repr(row)[:40]}; expected (sentence1, sentence2) or "
                "(sentence1, sentence2, label)."
            )
    raise_faults(faults)
    has_labels = any("label" in row for row in rows)
    return Table(where, list(names if has_labels else names[:2]), rows)


def _table_of_dataset(dataset: Any, where: str) -> Table:
    features = dataset.features.items()
    names = {column: kind.names for column, kind in features if getattr(kind, "names", None)}
    return name_class_labels(Table(where, list(dataset.column_names), dataset.to_list(), names))


def name_class_labels(table: Table) -> Table:
    """Replace the positions in ClassLabel columns by the label names.

    A name that means no label, such as `-`, becomes None.

    Raises:
        UserError: With every position that has no name.
    """
    rows, faults = table.rows, []
    for column, labels in table.class_labels.items():
        texts = [label if label_text(label) else None for label in labels]
        for number, row in enumerate(rows, start=1):
            position = row.get(column)
            if not isinstance(position, int):
                continue
            if position >= len(texts):
                faults.append(
                    f"{table.where} row {number}: got {position} in {column!r}; expected at most "
                    f"{len(texts) - 1}, the position of a label name."
                )
            else:
                row[column] = None if position < 0 else texts[position]
    raise_faults(faults)
    names = table.class_labels.items()
    class_labels = {column: tuple(filter(label_text, labels)) for column, labels in names}
    return replace(table, class_labels=class_labels)


def build_splits(
    name: str,
    tables: Mapping[str, Table],
    names: Sequence[str] | None,
    config: DataConfig,
    faults: Sequence[str] = (),
) -> DataSplits:
    """Convert one table per split into examples.

    Args:
        name: Name of the data set.
        tables: By split.
        names: Label names by index, if the source states them.
        config: Column names, label names that take precedence, and whether invalid rows are
            dropped.
        faults: Faults of splits that could not be read.
    Raises:
        UserError: With these faults, and every invalid column and row.
    """
    faults = list(faults)
    columns: dict[str, tuple[str, str, str | None]] = {}
    for split, table in tables.items():
        with collect_faults(faults):
            columns[split] = find_columns(table, config)
            if split == "train" and columns[split][2] is None:
                raise missing_label_column(table)
    invalid = {
        split: _invalid_rows(tables[split], columns[split], needs_labels=split == "train")
        for split in columns
    }
    labelled, row_faults = tables, []
    if config.drop_invalid_rows:
        labelled = {split: _drop_rows(tables[split], rows) for split, rows in invalid.items()}
        faults += [
            f"{table.where}: got no valid row; expected at least one."
            for table in labelled.values()
            if not table.rows
        ]
    else:
        hint = "" if name == IN_MEMORY else " Set drop_invalid_rows to drop such rows."
        for split, problems in invalid.items():
            row_faults += _row_faults(tables[split].where, problems, hint)
    if faults:  # the label names cannot be resolved
        raise_faults([*faults, *row_faults])
    faults = row_faults
    label_columns = {split: columns[split][2] for split in columns}
    splits: dict[str, tuple[Example, ...]] = {}
    with collect_faults(faults):
        label_names, has_indices = resolve_label_names(
            labelled, label_columns, names, config.class_names
        )
        for split, table in tables.items():
            with collect_faults(faults):
                lookup = label_lookup(table, label_columns[split], label_names, has_indices)
                splits[split] = _convert_rows(
                    table, columns[split], lookup, label_names, invalid[split]
                )
    raise_faults(faults)
    return DataSplits(name, label_names, splits, _count_dropped(tables, invalid))


def _count_dropped(
    tables: Mapping[str, Table], invalid: Mapping[str, Mapping[int, Sequence[Problem]]]
) -> dict[str, dict[str, int]]:
    """Log and return the number of invalid rows of each split by their first problem."""
    dropped = {
        split: dict(Counter(problems[0].got for problems in rows.values()))
        for split, rows in invalid.items()
        if rows
    }
    for split, reasons in dropped.items():
        logger.warning(
            "%s: dropped %d of %d rows: %s",
            *(split, len(invalid[split]), len(tables[split].rows)),
            ", ".join(f"{count} with {reason}" for reason, count in reasons.items()),
        )
    return dropped


def _invalid_rows(
    table: Table, columns: tuple[str, str, str | None], needs_labels: bool
) -> dict[int, list[Problem]]:
    """The problems of each invalid row, by row number."""
    invalid = {}
    for number, row in enumerate(table.rows):
        problems = [_sentence_problem(row.get(column), column) for column in columns[:2]]
        if columns[2] is not None:
            problems.append(_label_problem(table, columns[2], row, needs_labels))
        if any(problems):
            invalid[number] = [problem for problem in problems if problem]
    return invalid


def _sentence_problem(value: Any, column: str) -> Problem | None:
    if value is None or (isinstance(value, float) and value != value):
        value = ""
    if not isinstance(value, str):
        return Problem(f"a value of type {type(value).__name__} in {column!r}", "text")
    if not value.strip():
        return Problem(f"an empty {column!r}", "a sentence")
    return _text_problem(value, column)


def _label_problem(
    table: Table, column: str, row: Mapping[str, Any], is_needed: bool
) -> Problem | None:
    value = row.get(column)
    if isinstance(value, NO_LABEL_TYPES):
        return Problem(f"a label of type {type(value).__name__}", "text or a number")
    text = row_label(table, column, row)
    if is_needed and not text:
        return Problem("no label", "a label in each training row")
    return _text_problem(text, column)


def _text_problem(text: str, column: str) -> Problem | None:
    """Half of a UTF-16 pair, from JSON or from broken text, cannot be tokenized or written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return Problem(f"a lone surrogate in {column!r}", "Unicode text")
    return None


def _row_faults(where: str, invalid: Mapping[int, Sequence[Problem]], hint: str) -> list[str]:
    """One fault for each kind of problem."""
    rows: defaultdict[Problem, list[int]] = defaultdict(list)
    for number, problems in invalid.items():
        for problem in problems:
            rows[problem].append(number)
    return [
        f"{where}: got {problem.got} in {_format_rows(numbers)}; expected {problem.expected}.{hint}"
        for problem, numbers in rows.items()
    ]


def _format_rows(numbers: Sequence[int]) -> str:
    """The first rows, counted from 1, and the number of the others."""
    if len(numbers) == 1:
        return f"row {numbers[0] + 1}"
    shown = ", ".join(str(number + 1) for number in numbers[:MAX_ROWS_SHOWN])
    rest = len(numbers) - MAX_ROWS_SHOWN
    return f"rows {shown} and {rest:,} more" if rest > 0 else f"rows {shown}"


def _drop_rows(table: Table, invalid: Collection[int]) -> Table:
    rows = [row for number, row in enumerate(table.rows) if number not in invalid]
    return replace(table, rows=rows)


def _convert_rows(
    table: Table,
    columns: tuple[str, str, str | None],
    lookup: Mapping[str, int],
    label_names: Sequence[str] = (),
    skipped: Collection[int] = (),
) -> tuple[Example, ...]:
    """Convert valid rows.

    Raises:
        UserError: With each unknown label.
    """
    examples: list[Example] = []
    unknown: defaultdict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(table.rows):
        if number in skipped:
            continue
        text = "" if columns[2] is None else row_label(table, columns[2], row)
        if text and text not in lookup:
            unknown[text].append(number)
        label = lookup.get(text, UNKNOWN_LABEL)
        examples.append(Example(len(examples), row[columns[0]], row[columns[1]], label))
    raise_faults(
        [
            f"{table.where}: got label {text[:100]!r} in {_format_rows(numbers)}; expected one of "
            f"{', '.join(label_names)}.{closest(text, label_names)}"
            for text, numbers in unknown.items()
        ]
    )
    return tuple(examples)
