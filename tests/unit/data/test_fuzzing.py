"""Whatever a file contains, it is read, or refused with a message."""

from pathlib import Path
from typing import Any

import pytest
from fuzzing import ANY_TEXT, SETTINGS, STRUCTURE, VALUES
from hypothesis import example, given, settings
from hypothesis import strategies as st

from peft_mrpc.config import DataConfig
from peft_mrpc.data.examples import Table, build_splits
from peft_mrpc.data.files import read_table, write_table
from peft_mrpc.errors import UserError
from peft_mrpc.serialization import load_json, load_yaml


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@SETTINGS
@given(content=st.binary() | (STRUCTURE | ANY_TEXT).map(lambda t: t.encode("utf-8", "replace")))
def test_a_file_is_read_or_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(content)
    try:
        table = read_table(path)
    except UserError as error:
        assert error.faults and all(str(path) in fault for fault in error.faults)
    else:
        assert table.rows and all(set(row) <= set(table.columns) for row in table.rows)


@settings(SETTINGS, max_examples=200)
@given(text=STRUCTURE | ANY_TEXT | ANY_TEXT.map(lambda tag: f"a: !!{tag} x"))
@example("!!bool x")
@example("a: &a [*a]")
def test_yaml_and_json_are_read_or_refused(text: str) -> None:
    for load in (load_yaml, load_json):
        try:
            load(text)
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize("drops", [False, True])
@SETTINGS
@given(rows=st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=6))
def test_rows_become_examples_or_faults(drops: bool, rows: list[tuple[Any, Any, Any]]) -> None:
    columns = ["sentence1", "sentence2", "label"]
    table = Table("rows", columns, [dict(zip(columns, row, strict=True)) for row in rows])
    config = DataConfig(drop_invalid_rows=drops)
    try:
        data = build_splits("rows", {"train": table}, None, config)
    except UserError as error:
        assert error.faults
        return
    num_dropped = sum(data.dropped.get("train", {}).values())
    assert len(data.splits["train"]) + num_dropped == len(rows)
    pairs = iter(row[:2] for row in rows)
    for number, row in enumerate(data.splits["train"]):
        assert row.idx == number and (row.sentence1, row.sentence2) in pairs  # in this order
        assert 0 <= row.label < len(data.label_names) <= len(rows)
    assert data.fingerprint("train")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@SETTINGS
@given(values=st.lists(VALUES, min_size=1, max_size=4))
def test_every_value_can_be_written(suffix: str, values: list[Any], tmp_path: Path) -> None:
    path = tmp_path / f"t.{suffix}"
    write_table(path, ["value", "number"], [{"value": v, "number": 1.5} for v in values])
    assert [float(row["number"]) for row in read_table(path).rows] == [1.5] * len(values)
