import errno
import io
import os
import tempfile
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


@pytest.mark.parametrize("text", ["a\rb", "a\nb", "a\r\nb", "a\r", '"', ",", " a "])
def test_csv_keeps_line_breaks_and_quotes_inside_a_field(text: str, tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", COLUMNS, [{"sentence1": text, "note": text}])
    assert read_table(tmp_path / "t.csv").rows == [{"sentence1": text, "note": text}]
    assert (tmp_path / "t.csv").read_bytes().startswith(b"sentence1,note\n")


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


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1, "one", None], ["1", "one", None]),
        ([10**30, 1], [str(10**30), "1"]),
        (["a \ud800", "b"], [r"a \ud800", "b"]),
        ([[1], {"a": "é"}], ["[1]", '{"a": "é"}']),
        ([{}], ["{}"]),
    ],
)
def test_a_parquet_column_of_several_types_is_written_as_text(
    values: list[object], texts: list[object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_table(tmp_path / "t.parquet", ["id"], [{"id": value} for value in values])
    assert [row["id"] for row in read_table(tmp_path / "t.parquet").rows] == texts
    assert caplog.messages == ["output: column 'id' has no single parquet type; written as text"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_lone_surrogate_is_written_as_an_escape(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{suffix}"
    write_table(path, ["text"], [{"text": "a \ud800"}])
    (row,) = read_table(path).rows
    assert row["text"] == ("a \ud800" if suffix == "jsonl" else r"a \ud800")


def test_a_link_keeps_pointing_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "target.csv").write_text("before")
    link = tmp_path / "link.csv"
    link.symlink_to("target.csv")
    (fault,) = output_file_faults(str(link), overwrite=False)
    assert "which exists" in fault
    write_table(link, COLUMNS, ROWS)
    assert link.is_symlink() and read_table(tmp_path / "target.csv").rows == ROWS
    (tmp_path / "target.csv").unlink()
    (fault,) = output_file_faults(str(link), overwrite=True)
    assert fault.endswith("a link to a file that does not exist; expected a file.")


def test_a_failed_write_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("before")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match="could not be written: No space left on device"):
        write_table(path, COLUMNS, ROWS)
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"] and path.read_text() == "before"


def test_an_output_in_a_read_only_place_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    (fault,) = output_file_faults(str(tmp_path / "o.csv"), overwrite=False)
    assert fault.endswith("o.csv'; cannot be written: Read-only file system.")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_not_an_output(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "o.csv")
    (fault,) = output_file_faults(str(tmp_path / "o.csv"), overwrite=True)
    assert "is not a regular file" in fault


def test_reports_every_fault_of_an_output_file(tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("")
    assert output_file_faults(str(tmp_path / "new.csv"), overwrite=False) == []
    assert output_file_faults(str(tmp_path / "there.csv"), overwrite=True) == []
    (fault,) = output_file_faults(str(tmp_path / "there.csv"), overwrite=False)
    assert fault.endswith("which exists. Choose another, or set overwrite.")
    faults = output_file_faults(str(tmp_path / "no" / "out.txt"), overwrite=False)
    assert "expected .csv, .tsv, .jsonl, .parquet." in faults[0]
    assert "expected an existing directory" in faults[1]
