"""The columns of a table and the label names in them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peft_mrpc.config import DataConfig
from peft_mrpc.data.files import DELIMITERS, Table
from peft_mrpc.errors import UserError, closest, raise_faults

PARAPHRASE_NAMES = ("not_equivalent", "equivalent")
# Usual names of the two sentence columns, in the order of preference.
SENTENCE_COLUMNS = (
    ("sentence1", "sentence2"),
    ("#1 String", "#2 String"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
)
LABEL_COLUMNS = ("label", "Quality", "is_duplicate", "gold_label")
# What a row without a label has: `-` in SNLI, -1 on the Hub, `nan` from other programs.
MISSING_LABELS = ("", "-", "-1", "-1.0", "nan")
NO_LABEL_TYPES = (list, dict, bytes)
MAX_LABELS = 50
MAX_SHOWN = 20


def find_columns(table: Table, config: DataConfig) -> tuple[str, str, str | None]:
    """The names of the two sentence columns and of the label column.

    Args:
        table: A table.
        config: Its column names take precedence over the usual ones.
    Returns:
        Three names; the last is None if the table has no label column.
    Raises:
        UserError: If a named column is missing, or no usual sentence columns are present.
    """
    is_one_column = len(table.columns) == 1 and any(mark in table.columns[0] for mark in ",;|\t")
    hint = f" {DELIMITERS}." if is_one_column else ""
    faults = []
    for argument in ("sentence1_column", "sentence2_column", "label_column"):
        name = getattr(config, argument)
        if name is not None and name not in table.columns:
            faults.append(
                f"{argument}: got {name!r}; {table.where} has {_listed(table.columns)}."
                f"{closest(name, table.columns)}{hint}"
            )
    raise_faults(faults)
    usual = next(filter(None, (_match(table, *pair) for pair in SENTENCE_COLUMNS)), [None, None])
    first, second = config.sentence1_column or usual[0], config.sentence2_column or usual[1]
    if first is None or second is None:
        raise UserError(
            f"{table.where}: got the columns {_listed(table.columns)}; expected one of the usual "
            f"pairs of sentence columns ({'; '.join(', '.join(p) for p in SENTENCE_COLUMNS)}). "
            f"Set sentence1_column and sentence2_column.{hint}"
        )
    label = config.label_column or next(
        (column for name in LABEL_COLUMNS for column in _match(table, name)), None
    )
    if len({first, second, label}) < 3:
        raise UserError(
            f"{table.where}: got {first!r}, {second!r} and {label!r} for the sentences and the "
            "label; expected different columns. Set sentence1_column, sentence2_column and "
            "label_column."
        )
    return first, second, label


def _listed(names: Sequence[str]) -> str:
    """The first names, comma-separated, and the number of the others."""
    shown = ", ".join(name[:100] for name in names[:MAX_SHOWN])
    rest = len(names) - MAX_SHOWN
    return f"{shown} and {rest:,} more" if rest > 0 else shown


def _match(table: Table, *names: str) -> list[str]:
    """The columns with these names, in any case; empty unless all are present."""
    by_lower = {column.strip().lower(): column for column in table.columns}
    columns = [name if name in table.columns else by_lower.get(name.lower()) for name in names]
    return [column for column in columns if column] if all(columns) else []


def split_class_names(text: str) -> list[str]:
    """Split comma-separated label names."""
    return [name.strip() for name in text.split(",")]


def class_name_faults(text: str | None) -> list[str]:
    """The faults of `class_names`."""
    if text is None:
        return []
    names = split_class_names(text)
    faults = []
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        faults = ["expected two or more different names, comma-separated"]
    elif missing := [name for name in names if not label_text(name)]:
        faults = [f"{missing[0]!r} means no label; expected names of classes"]
    elif not text.isascii() and text.encode(errors="replace").decode() != text:
        faults = ["expected UTF-8 text"]
    return [f"class_names: got {text!r}; {fault}." for fault in faults]


def missing_label_column(table: Table) -> UserError:
    """The error for a table that needs labels and has none."""
    return UserError(
        f"{table.where}: got no label column ({', '.join(LABEL_COLUMNS)}). Set label_column, or "
        "class_names if the data has no labels."
    )


def resolve_label_names(
    tables: Mapping[str, Table],
    label_columns: Mapping[str, str | None],
    stated: Sequence[str] | None,
    class_names: str | None,
) -> tuple[tuple[str, ...], bool]:
    """The label names of a data set.

    Args:
        tables: By split, the training split first.
        label_columns: The label column of each table.
        stated: Names by index, if the source states them.
        class_names: The names that the user states; they take precedence.
    Returns:
        The names, and whether a number in the label column is an index into them.
    Raises:
        UserError: If there are no labels, or they are not the names of a few classes.
    """
    if class_names is not None:
        return tuple(split_class_names(class_names)), True
    if stated is not None:
        return tuple(stated), True
    for split, column in label_columns.items():
        if column is not None and column in tables[split].class_labels:
            return tuple(tables[split].class_labels[column]), False
    names = _infer_label_names(tables, label_columns)
    return names, names == PARAPHRASE_NAMES


def label_lookup(
    table: Table, column: str | None, label_names: Sequence[str], has_indices: bool
) -> dict[str, int]:
    """The index of each label of a table in the label names.

    A ClassLabel column is renamed by position if its names are as many and all different.

    Args:
        table: The table.
        column: Its label column.
        label_names: Names by index.
        has_indices: Whether a number is an index into the label names.
    Raises:
        UserError: If the names of a ClassLabel column do not correspond to the label names.
    """
    index = {name: number for number, name in enumerate(label_names)}
    if column is not None and column in table.class_labels:
        names = table.class_labels[column]
        if set(names) <= set(label_names):
            return index
        is_renamed = has_indices and len(names) == len(label_names)
        if not is_renamed or set(names) & set(label_names):
            raise UserError(
                f"{table.where}: got the label names {_listed(names)}; expected those of "
                f"class_names or of the first split, {_listed(label_names)}."
            )
        return {name: number for number, name in enumerate(names)}
    if has_indices and not any(name.isdecimal() for name in label_names):
        index |= {str(number): number for number in range(len(label_names))}
    return index


def row_label(table: Table, column: str, row: Mapping[str, Any]) -> str:
    """The label of a row as text, empty if it has none.

    The names of a ClassLabel column are not changed.
    """
    value = row.get(column)
    return value or "" if column in table.class_labels else label_text(value)


def _infer_label_names(
    tables: Mapping[str, Table], label_columns: Mapping[str, str | None]
) -> tuple[str, ...]:
    """Label names in the first split that has labels; other splits may use no others.

    Of two names, a negated one (`not_equivalent`) comes first: the last is the positive class.

    Args:
        tables: By split, the training split first.
        label_columns: The label column of each table.
    Raises:
        UserError: If there are no labels, or they are not the names of a few classes.
    """
    split = next((name for name, column in label_columns.items() if column is not None), None)
    if split is None:
        raise missing_label_column(next(iter(tables.values())))
    table, column = tables[split], str(label_columns[split])
    values = {label_text(row.get(column)) for row in table.rows} - {""}
    if values <= {"0", "1"} and column == "Quality":
        return PARAPHRASE_NAMES
    if values == set(PARAPHRASE_NAMES):
        return PARAPHRASE_NAMES
    where = f"{table.where}: column {column!r}"
    if len(values) > MAX_LABELS or any(_is_fraction(value) for value in values):
        some = ", ".join(value[:40] for value in sorted(values)[:3])
        raise UserError(
            f"{where}: got {len(values)} different values ({some}, ...); expected the names of a "
            "few classes. Set label_column to another column."
        )
    if similar := _differ_in_case(values):
        raise UserError(
            f"{where}: got {' and '.join(map(repr, similar))}, which differ only in case; expected "
            "one spelling. Correct the labels, or name every class with class_names."
        )
    if len(values) < 2:
        raise UserError(
            f"{where}: got {', '.join(map(repr, sorted(values))) or 'no label'}; expected at least "
            "two classes (empty, - and -1 mean no label). Name all classes with class_names."
        )
    names = sorted(values, key=lambda v: (not v.isdecimal(), int(v) if v.isdecimal() else 0, v))
    if len(names) == 2 and _negates(names[1], names[0]):
        names.reverse()
    return tuple(names)


def label_text(value: Any) -> str:
    """A label as text: 1, 1.0 and "1.0" are the same label; empty if there is none."""
    if getattr(value, "ndim", None) == 0:  # NumPy's
        value = value.item()
    if isinstance(value, bool):
        return str(value).lower()
    text = "" if value is None or isinstance(value, NO_LABEL_TYPES) else str(value).strip()
    if text.lower() in MISSING_LABELS:
        return ""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def _differ_in_case(values: Iterable[str]) -> list[str]:
    """Labels that differ from each other only in case; empty if there are none."""
    by_text: dict[str, list[str]] = {}
    for value in sorted(values):
        by_text.setdefault(value.casefold(), []).append(value)
    return next((names for names in by_text.values() if len(names) > 1), [])


def _negates(name: str, other: str) -> bool:
    """Whether a label is another one behind `not`, `non`, `no`, `un`, `dis`, `in` or `ir`."""
    pattern = r"(not|non|no|un|dis|in|ir)[\s_-]*" + re.escape(other)
    return re.fullmatch(pattern, name, flags=re.IGNORECASE) is not None


def _is_fraction(text: str) -> bool:
    try:
        return not float(text).is_integer()
    except ValueError:
        return False
