import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROWS, run_command, write_csv

from peft_mrpc.predict import main

ADDED = ["prediction", "probability_not_equivalent", "probability_equivalent"]


def test_rows_keep_their_order_and_their_other_columns(trained_run: Path, tmp_path: Path) -> None:
    rows = [(f"id-{i}", a, b, 'a "note", kept') for i, (a, b, _) in enumerate(ROWS)]
    source = write_csv(tmp_path / "in.csv", rows, ("id", "sentence1", "sentence2", "note"))
    main([str(trained_run), "--input", str(source), "--output", str(tmp_path / "out.csv")])
    with (tmp_path / "out.csv").open(newline="") as file:
        labelled = list(csv.DictReader(file))
    assert [row["id"] for row in labelled] == [row[0] for row in rows]
    assert [row["note"] for row in labelled] == ['a "note", kept'] * len(rows)
    saved = (trained_run / "predictions" / "validation.jsonl").read_text().splitlines()
    for row, line in zip(labelled, map(json.loads, saved), strict=True):
        assert row["prediction"] == line["prediction"]
        assert float(row["probability_equivalent"]) == pytest.approx(
            line["probabilities"]["equivalent"], abs=1e-6
        )


@pytest.mark.parametrize("suffix", ["jsonl", "tsv", "parquet"])
def test_every_output_type_holds_the_same(
    suffix: str, trained_run: Path, pair_files: dict[str, str], tmp_path: Path
) -> None:
    from peft_mrpc.tables import read_table

    output = tmp_path / f"out.{suffix}"
    main([str(trained_run), "--input", pair_files["unlabelled"], "--output", str(output)])
    table = read_table(output)
    assert table.columns == ["sentence1", "sentence2", *ADDED]
    assert [row["sentence1"] for row in table.rows] == [row[0] for row in ROWS]


def test_standard_input_to_standard_output(trained_run: Path) -> None:
    done = run_command(
        "predict", str(trained_run), "--input", "-", stdin="sentence1,sentence2\na cat,the cat\n"
    )
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert list(row) == ["sentence1", "sentence2", *ADDED]
    assert row["prediction"] in ("equivalent", "not_equivalent")


def test_a_model_without_a_trained_head_is_refused(
    tiny_bert: str, pair_files: dict[str, str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(tiny_bert).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "base")
    said = fails(main, str(tmp_path / "base"), "--input", pair_files["unlabelled"])
    assert "lacks the weights classifier.bias" in said and "expected a trained classifier" in said


def test_a_run_that_lost_a_file_is_refused(
    trained_run: Path, pair_files: dict[str, str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    (tmp_path / "run" / "model" / "tokenizer.json").unlink()
    said = fails(main, str(tmp_path / "run"), "--input", pair_files["unlabelled"])
    assert "damaged: tokenizer.json is missing" in said


def test_a_model_directory_of_another_tool_works_too(
    tiny_bert: str, pair_files: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    main([tiny_bert, "--input", pair_files["unlabelled"], "--output", str(output)])
    assert "probability_LABEL_1" in output.read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--input: got none"),
        (["--input", "gone.csv"], "gone.csv: no such file."),
        (["--input", "{new}", "--output", "x.docx"], "--output: got 'x.docx'; expected .csv"),
        (["--input", "{new}", "--output", "{new}"], "which exists"),
        (["--input", "{new}", "--output", "no/dir/x.csv"], "whose directory does not exist"),
        (["--input", "{new}", "--sentence1_column", "s1"], "--sentence1_column: got 's1'"),
        (["--input", "{clash}"], "already has the columns prediction"),
        (["--input", "{empty}"], "row 1: got an empty 'sentence2'"),
        (["--inputs", "x"], "Did you mean 'input'?"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str],
    said: str,
    trained_run: Path,
    pair_files: dict[str, str],
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    files = {
        "new": pair_files["unlabelled"],
        "clash": write_csv(
            tmp_path / "c.csv", [("a", "b", "c")], ("sentence1", "sentence2", "prediction")
        ),
        "empty": write_csv(tmp_path / "e.csv", [("a", " ")], ("sentence1", "sentence2")),
    }
    message = fails(main, str(trained_run), *(flag.format(**files) for flag in flags))
    assert said in message and len(message.splitlines()) == 1


def test_what_is_no_run_is_refused(
    pair_files: dict[str, str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    flags = ["--input", pair_files["unlabelled"]]
    assert "expected a Run, an adapter or model" in fails(main, "./gone", *flags)
    assert "holds neither peft_mrpc.json nor" in fails(main, str(tmp_path), *flags)
