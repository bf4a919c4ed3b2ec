import io
from pathlib import Path

import pytest

from peft_mrpc.data.files import output_file_faults, read_table, serialize_table, write_table
from peft_mrpc.errors import UserError

COLUMNS = ["sentence1", "note"]
ROWS = [{"sentence1": 'a "quoted", text', "note": "x"}, {"sentence1": "b", "note": "y"}]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_written_table_is_read_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"table.{suffix}"
    path.write_text("replaced")
    write_table(path, COLUMNS, ROWS)
    table = read_table(path)
    assert table.columns == COLUMNS and table.rows == ROWS
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_tsv_fields_contain_no_tabs_and_line_breaks(tmp_path: Path) -> None:
    write_table(tmp_path / "t.tsv", ["text", "number"], [{"text": "a\tb\r\nc", "number": None}])
    assert (tmp_path / "t.tsv").read_text() == "text\tnumber\na b  c\t\n"


def test_reads_csv_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.TextIOWrapper(io.BytesIO(b'\xef\xbb\xbfsentence1,sentence2\n"a, b",c\n'))
    monkeypatch.setattr("sys.stdin", text)
    assert read_table("-").rows == [{"sentence1": "a, b", "sentence2": "c"}]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    with pytest.raises(UserError, match="standard input: is not UTF-8"):
        read_table("-")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(UserError, match="standard input: got an empty file"):
        read_table("-")


def test_formats_csv_with_quotes_where_needed() -> None:
    text = b'sentence1,note\n"a ""quoted"", text",x\nb,y\n'
    assert serialize_table(".csv", COLUMNS, ROWS) == text


def test_reports_every_fault_of_an_output_file(tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("")
    assert output_file_faults(str(tmp_path / "new.csv"), overwrite=False) == []
    assert output_file_faults(str(tmp_path / "there.csv"), overwrite=True) == []
    (fault,) = output_file_faults(str(tmp_path / "there.csv"), overwrite=False)
    assert fault.endswith("which exists. Choose another, or set overwrite.")
    faults = output_file_faults(str(tmp_path / "no" / "out.txt"), overwrite=False)
    assert "expected .csv, .tsv, .jsonl, .parquet." in faults[0]
    assert "expected an existing directory" in faults[1]
