"""From a table's columns to pairs: which hold the sentences, and what their labels are called."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from peft_mrpc.config import DataConfig
from peft_mrpc.data.examples import SPLITS, UNKNOWN_LABEL, DataSplits, Example
from peft_mrpc.data.files import PARTED, Table
from peft_mrpc.errors import UserError, closest, raise_faults

PARAPHRASE_NAMES = ("not_equivalent", "equivalent")
# Column names that pair data sets use, tried in this order where no flag names one.
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


def find_columns(table: Table, config: DataConfig) -> tuple[str, str, str | None]:
    """Names of the two sentence columns and of the label column, None where there is no label.

    Raises:
        UserError: If a named column is missing, or no usual pair of names is there.
    """
    is_one = len(table.columns) == 1 and any(mark in table.columns[0] for mark in ",;|\t")
    parted = f" {PARTED}." if is_one else ""
    faults = []
    for flag in ("sentence1_column", "sentence2_column", "label_column"):
        name = getattr(config, flag)
        if name is not None and name not in table.columns:
            faults.append(
                f"--{flag}: got {name!r}; {table.where} has {', '.join(table.columns)}."
                f"{closest(name, table.columns)}{parted}"
            )
    raise_faults(faults)
    usual = next(filter(None, (_find(table, *pair) for pair in SENTENCE_COLUMNS)), [None, None])
    first, second = config.sentence1_column or usual[0], config.sentence2_column or usual[1]
    if first is None or second is None:
        raise UserError(
            f"{table.where}: found no sentence columns among {', '.join(table.columns)}; "
            f"name them with --sentence1_column and --sentence2_column (found by themselves are "
            f"{'; '.join(', '.join(pair) for pair in SENTENCE_COLUMNS)}).{parted}"
        )
    label = config.label_column or next(
        (column for name in LABEL_COLUMNS for column in _find(table, name)), None
    )
    if len({first, second, label}) < 3:
        raise UserError(
            f"{table.where}: got {first!r}, {second!r} and {label!r} for the sentences and the "
            "label; expected different ones. Name them with --sentence1_column, "
            "--sentence2_column and --label_column."
        )
    return first, second, label


def _find(table: Table, *names: str) -> list[str]:
    """The columns of these names, as they are or in another case; none unless all are there."""
    alike = {column.strip().lower(): column for column in table.columns}
    found = [name if name in table.columns else alike.get(name.lower()) for name in names]
    return [column for column in found if column] if all(found) else []


def build_pairs(
    name: str,
    tables: Mapping[str, Table],
    names: tuple[str, ...] | None,
    config: DataConfig,
) -> DataSplits:
    columns = {split: find_columns(table, config) for split, table in tables.items()}
    if "train" in columns and columns["train"][2] is None:
        raise UserError(_no_label_column(tables["train"]))
    if config.class_names:
        names = tuple(split_class_names(config.class_names))
    # Numbers stand for positions in names that were given, never in names found in the rows.
    given = names is not None
    names = names or _infer_label_names(tables, columns)
    faults: list[str] = []
    splits = {
        split: tuple(_rows_to_pairs(tables[split], columns[split], names, split, faults, given))
        for split in SPLITS
        if split in tables
    }
    raise_faults(faults)
    return DataSplits(name, names, splits)


def split_class_names(text: str) -> list[str]:
    """`no, yes` as a list."""
    return [name.strip() for name in text.split(",")]


def class_name_faults(text: str | None) -> list[str]:
    """What is wrong with `--class_names`."""
    if text is None:
        return []
    names = split_class_names(text)
    if len(names) >= 2 and all(names) and len(set(names)) == len(names):
        return []
    return [f"--class_names: got {text!r}; expected two or more different names, comma-separated."]


def _no_label_column(table: Table) -> str:
    return (
        f"{table.where}: found no label column ({', '.join(LABEL_COLUMNS)}); name it with "
        "--label_column, or the labels of unlabelled data with --class_names."
    )


def _infer_label_names(
    tables: Mapping[str, Table], columns: Mapping[str, tuple[str, str, str | None]]
) -> tuple[str, ...]:
    """Label names as the training rows have them: what they do not hold is not known later."""
    split = next((s for s in SPLITS if s in tables and columns[s][2] is not None), None)
    if split is None:
        raise UserError(_no_label_column(next(iter(tables.values()))))
    label_column = columns[split][2]
    values = {_label_text(row.get(str(label_column))) for row in tables[split].rows} - {"", "-1"}
    if values <= {"0", "1"} and label_column == "Quality":
        return PARAPHRASE_NAMES
    if values == set(PARAPHRASE_NAMES):
        return PARAPHRASE_NAMES
    if len(values) > 50 or any(_is_fraction(value) for value in values):
        some = ", ".join(sorted(values)[:3])
        raise UserError(
            f"{tables[split].where}: column {label_column!r} holds {len(values)} different values "
            f"({some}, ...); expected the names of a few classes. Name another with --label_column."
        )
    if alike := _differ_in_case(values):
        raise UserError(
            f"{tables[split].where}: column {label_column!r} holds {' and '.join(map(repr, alike))}"
            ", which differ in case alone; write them as one, or name every class with "
            "--class_names."
        )
    if len(values) < 2:
        raise UserError(
            f"{tables[split].where}: column {label_column!r} holds "
            f"{', '.join(map(repr, sorted(values))) or 'no label'}; expected at least two classes "
            "(-1 and empty mean unlabelled). Name them all with --class_names."
        )
    ordered = sorted(values, key=lambda v: (not v.isdigit(), int(v) if v.isdigit() else 0, v))
    if len(ordered) == 2 and _denies(ordered[1], ordered[0]):
        ordered.reverse()  # the positive class, of which ROC and precision speak, stands last
    return tuple(ordered)


def _differ_in_case(values: Iterable[str]) -> list[str]:
    """Some labels that are one but for their case; none where there are none."""
    by_text: dict[str, list[str]] = {}
    for value in sorted(values):
        by_text.setdefault(value.casefold(), []).append(value)
    return next((alike for alike in by_text.values() if len(alike) > 1), [])


def _denies(name: str, other: str) -> bool:
    """Whether a label is another with a `not`, `non`, `no`, `un` or `dis` before it."""
    pattern = r"(not|non|no|un|dis|in|ir)[\s_-]*" + re.escape(other)
    return re.fullmatch(pattern, name, flags=re.IGNORECASE) is not None


def _label_text(value: Any) -> str:
    """A label as text: 1, 1.0 and "1.0" are one label; None and NaN are none."""
    if isinstance(value, bool):
        return str(value).lower()
    text = "" if value is None or value != value else str(value).strip()
    if text.lower() == "nan":  # as other programs write that there is none
        return ""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def _is_fraction(text: str) -> bool:
    try:
        return not float(text).is_integer()
    except ValueError:
        return False


def _rows_to_pairs(
    table: Table,
    columns: tuple[str, str, str | None],
    names: Sequence[str],
    split: str,
    faults: list[str],
    given: bool = False,
) -> Iterator[Example]:
    index = {name: number for number, name in enumerate(names)}
    if (given or names == PARAPHRASE_NAMES) and not any(name.isdigit() for name in names):
        index |= {str(number): number for number in range(len(names))}
    for number, row in enumerate(table.rows):
        where = f"{table.where} row {number + 1}"
        sentences = []
        for column in columns[:2]:
            sentence = row.get(str(column))
            if sentence is None or (isinstance(sentence, str) and not sentence.strip()):
                faults.append(f"{where}: got an empty {column!r}; expected a sentence.")
            elif not isinstance(sentence, str):
                faults.append(f"{where}: got {repr(sentence)[:40]} in {column!r}; expected text.")
            sentences.append(str(sentence))
        value = None if columns[2] is None else row.get(columns[2])
        if isinstance(value, list | dict | bytes):
            faults.append(f"{where}: got label {value!r}; expected text or a number.")
            value = None
        text = _label_text(value)
        if text in ("", "-1") and text not in names:
            if split == "train":
                faults.append(f"{where}: got no label; every training pair needs one.")
            label = UNKNOWN_LABEL
        elif text in index:
            label = index[text]
        else:
            label = UNKNOWN_LABEL
            faults.append(
                f"{where}: got label {text!r}; expected one of {', '.join(names)}."
                f"{closest(text, names)}"
            )
        yield Example(number, sentences[0], sentences[1], label)


def examples_from_table(table: Table, config: DataConfig) -> list[Example]:
    """The pairs of a table whose labels, if it has any, do not matter.

    Raises:
        UserError: For missing columns and empty sentences.
    """
    first, second, _ = find_columns(table, config)
    faults: list[str] = []
    pairs = list(_rows_to_pairs(table, (first, second, None), (), "predict", faults))
    raise_faults(faults)
    return pairs
