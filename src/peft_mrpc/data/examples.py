"""Examples, the splits of a data set, and their conversion from tables and other containers."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from peft_mrpc.config import DataConfig
from peft_mrpc.data.columns import (
    PARAPHRASE_NAMES,
    find_columns,
    infer_label_names,
    label_text,
    missing_label_column,
    split_class_names,
)
from peft_mrpc.data.files import Table
from peft_mrpc.errors import UserError, closest, raise_faults

SPLITS = ("train", "validation", "test")
UNKNOWN_LABEL = -1
# A sequence of examples or of tuples, a `datasets.Dataset`, or a pandas `DataFrame`.
Inputs: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set.

    Attributes:
        idx: Row number in its split, from 0.
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
    """The splits of a data set, with one list of label names."""

    name: str
    label_names: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]

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
        UserError: For another type, a missing column or an empty sentence.
    """
    if isinstance(inputs, Sequence) and all(isinstance(row, Example) for row in inputs):
        return list(inputs)
    table = as_table(inputs, "inputs")
    if not table.rows:
        return []
    first, second, _ = find_columns(table, columns or DataConfig())
    faults: list[str] = []
    examples = list(_rows_to_examples(table, (first, second, None), (), False, faults))
    raise_faults(faults)
    return examples


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
        return Table(where, list(inputs.column_names), inputs.to_list())
    if hasattr(inputs, "columns") and hasattr(inputs, "to_dict"):  # pandas.DataFrame
        return Table(where, [str(name) for name in inputs.columns], inputs.to_dict("records"))
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


def build_splits(
    name: str, tables: Mapping[str, Table], names: Sequence[str] | None, config: DataConfig
) -> DataSplits:
    """Convert one table per split into examples.

    Args:
        name: Name of the data set.
        tables: By split.
        names: Label names, if the source has them; else they are inferred from the labels.
        config: Column names, and label names that take precedence.
    Raises:
        UserError: With every invalid row.
    """
    tables = {split: tables[split] for split in SPLITS if split in tables}
    columns = {split: find_columns(table, config) for split, table in tables.items()}
    if "train" in columns and columns["train"][2] is None:
        raise missing_label_column(tables["train"])
    if config.class_names:
        names = split_class_names(config.class_names)
    # A number is an index into names that the user or the source states, not into inferred names.
    label_names = (
        tuple(names)
        if names is not None
        else infer_label_names(tables, {split: columns[split][2] for split in columns})
    )
    has_indices = names is not None or label_names == PARAPHRASE_NAMES
    faults: list[str] = []
    splits = {
        split: tuple(
            _rows_to_examples(
                table, columns[split], label_names, has_indices, faults, split == "train"
            )
        )
        for split, table in tables.items()
    }
    raise_faults(faults)
    return DataSplits(name, label_names, splits)


def _rows_to_examples(
    table: Table,
    columns: tuple[str, str, str | None],
    label_names: Sequence[str],
    has_indices: bool,
    faults: list[str],
    needs_labels: bool = False,
) -> Iterator[Example]:
    """Convert the rows of a table; append every fault to `faults`."""
    index = {name: number for number, name in enumerate(label_names)}
    if has_indices and not any(name.isdigit() for name in label_names):
        index |= {str(number): number for number in range(len(label_names))}
    for number, row in enumerate(table.rows):
        where = f"{table.where} row {number + 1}"
        sentences = [row.get(column) for column in columns[:2]]
        for column, sentence in zip(columns[:2], sentences, strict=True):
            if sentence is None or (isinstance(sentence, str) and not sentence.strip()):
                faults.append(f"{where}: got an empty {column!r}; expected a sentence.")
            elif not isinstance(sentence, str):
                faults.append(f"{where}: got {repr(sentence)[:40]} in {column!r}; expected text.")
        value = None if columns[2] is None else row.get(columns[2])
        if isinstance(value, list | dict | bytes):
            faults.append(f"{where}: got label {value!r}; expected text or a number.")
            value = None
        text = label_text(value)
        label = index.get(text, UNKNOWN_LABEL)
        if label == UNKNOWN_LABEL and text not in ("", "-1"):
            faults.append(
                f"{where}: got label {text!r}; expected one of {', '.join(label_names)}."
                f"{closest(text, label_names)}"
            )
        elif label == UNKNOWN_LABEL and needs_labels:
            faults.append(f"{where}: got no label; every training example needs one.")
        yield Example(number, str(sentences[0]), str(sentences[1]), label)
