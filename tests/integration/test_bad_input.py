"""Bad input ends in one line for each fault and the right exit code, and changes no file.

Each row is a command line that runs in a directory of its own, with the files that it needs. The
words must occur in what the command prints or logs. Afterwards the directory holds the same files
with the same content.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from peft_mrpc.__main__ import dispatch
from peft_mrpc.cli.app import run_cli

HEADER = "sentence1,sentence2,label\n"
PAIRS = HEADER + "the cat sat,a cat sat,yes\nthe dog ran,a cat sat,no\n"
JSON_PAIR = '{"sentence1": "the cat", "sentence2": "a cat", "label": "yes"}\n'
DEEP = '{"sentence1": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}\n"
DIGITS = '{"sentence1": "a", "x": ' + "9" * 5000 + "}\n"
TRAIN = "train --model {bert} --validation_file good.csv --train_file"
PREDICT = "predict {run} --input good.csv --output"


@dataclass(frozen=True)
class BadInput:
    """A command line and what must come of it.

    Attributes:
        name: Names the row.
        command: The command line; `{bert}`, `{llama}` and `{run}` are a tiny classifier, a tiny
            causal LM and a Run.
        words: Texts that the output must contain.
        files: Content by path, written before; a `good.csv` of labelled pairs is always there.
        exit_code: The exit code of the command.
        must_not_exist: Paths that must not exist afterwards, beside the check of the directory.
        num_lines: Number of lines of the error.
    """

    name: str
    command: str
    words: tuple[str, ...]
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    exit_code: int = 2
    must_not_exist: tuple[str, ...] = ("runs",)
    num_lines: int = 1


FILES = [
    BadInput("no file", f"{TRAIN} no.csv", ("no.csv: no such file.",)),
    BadInput("directory", f"{TRAIN} d.csv", ("d.csv: got a directory; expected",), {"d.csv/x": ""}),
    BadInput("long name", f"{TRAIN} {'a' * 5000}.csv", ("cannot be read: File name too long.",)),
    BadInput("suffix", f"{TRAIN} t.xlsx", ("t.xlsx: got a .xlsx file; expected .csv, .tsv",)),
    BadInput("empty", f"{TRAIN} t.csv", ("t.csv: got an empty file; expected",), {"t.csv": ""}),
    BadInput("header", f"{TRAIN} t.csv", ("got a header and no row",), {"t.csv": HEADER}),
    BadInput("bytes", f"{TRAIN} t.csv", ("t.csv: is not UTF-8 text: ",), {"t.csv": b"\xff\xfe,"}),
    BadInput(
        "NUL characters",
        f"{TRAIN} t.csv",
        ("t.csv: got NUL characters; expected UTF-8 text. Save it as UTF-8.",),
        {"t.csv": PAIRS.encode("utf-16-le")},
    ),
    BadInput(
        "open quote",
        f"{TRAIN} t.csv",
        ("t.csv line 3: not valid CSV: unexpected end of data.",),
        {"t.csv": HEADER + 'a,b,yes\n"c,d,no\n'},
    ),
    BadInput(
        "column twice",
        f"{TRAIN} t.csv",
        ("t.csv: got column 'label' twice; rename one.",),
        {"t.csv": "sentence1,sentence2,label,label\na,b,1,1\n"},
    ),
    BadInput(
        "wide header",
        f"{TRAIN} t.csv",
        ("t.csv: got the columns c0, c1, c2,", "and 99,980 more; expected one of the usual pairs"),
        {"t.csv": ",".join(f"c{n}" for n in range(100_000)) + "\n" + "," * 99_999 + "\n"},
    ),
    BadInput(
        "fields",
        f"{TRAIN} t.csv",
        ("t.csv row 2: got 2 fields; expected 3 as in the header.",),
        {"t.csv": HEADER + "a,b,yes\na,b\n"},
    ),
    BadInput(
        "many faults",
        f"{TRAIN} t.csv",
        ("t.csv row 1: got 1 fields", "row 10: got 1 fields", "... and 490 more faults"),
        {"t.csv": HEADER + "a\n" * 500},
        num_lines=11,
    ),
    BadInput(
        "JSON array",
        f"{TRAIN} t.json",
        ("t.json: got a JSON array; expected one object per line.",),
        {"t.json": "[\n" + JSON_PAIR + "]"},
    ),
    BadInput(
        "JSON array on one line",
        f"{TRAIN} t.jsonl",
        ("t.jsonl: got a JSON array; expected one object per line.",),
        {"t.jsonl": "[" + JSON_PAIR.strip() + "]"},
    ),
    BadInput(
        "JSON object over lines",
        f"{TRAIN} t.json",
        ("t.json: got one JSON object over several lines; expected one object per line.",),
        {"t.json": '{"data": [\n' + JSON_PAIR + "]}"},
    ),
    BadInput(
        "not JSON",
        f"{TRAIN} t.jsonl",
        ("t.jsonl line 2: not valid JSON: Expecting value.", "line 3: expected a JSON object"),
        {"t.jsonl": JSON_PAIR + "oops\n5\n"},
        num_lines=2,
    ),
    BadInput(
        "deep and large JSON",
        f"{TRAIN} t.jsonl",
        ("t.jsonl line 1: nested more than 100 levels deep.", "line 2: a number with too many"),
        {"t.jsonl": DEEP + DIGITS},
        num_lines=2,
    ),
    BadInput(
        "not parquet", f"{TRAIN} t.parquet", ("t.parquet: cannot be read as",), {"t.parquet": PAIRS}
    ),
    BadInput(
        "YAML with aliases",
        "train --config c.yaml",
        ("c.yaml: not valid YAML: more than 100,000 values, aliases expanded",),
        {
            "c.yaml": "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(8))
        },
    ),
    BadInput(
        "deep YAML",
        "train --config c.yaml",
        ("c.yaml: not valid YAML: nested more than 100 levels deep",),
        {"c.yaml": "a: " + "[" * 400 + "]" * 400},
    ),
    BadInput(
        "long YAML",
        "train --config c.yaml",
        ("c.yaml: not valid YAML: more than 100,000 characters",),
        {"c.yaml": "a: " + "x" * 100_000},
    ),
]
DATA = [
    BadInput(
        "no labels",
        f"{TRAIN} t.csv",
        ("t.csv: got no label in rows 3, 4; expected a label in each", "Set drop_invalid_rows"),
        {"t.csv": PAIRS + "a,b,-1\nc,d,-\n"},
    ),
    BadInput(
        "empty sentences",
        f"{TRAIN} t.csv",
        ("got an empty 'sentence2' in rows 3, 4, 5, 6, 7 and 3 more; expected a sentence.",),
        {"t.csv": PAIRS + "a,,yes\n" * 8},
    ),
    BadInput(
        "number as a sentence",
        f"{TRAIN} t.jsonl",
        ("t.jsonl: got a value of type int in 'sentence1' in row 2; expected text.",),
        {"t.jsonl": JSON_PAIR + '{"sentence1": 5, "sentence2": "b", "label": "no"}'},
    ),
    BadInput(
        "lone surrogate",
        f"{TRAIN} t.jsonl --dry_run",
        ("t.jsonl: got a lone surrogate in 'sentence2' in row 2; expected Unicode text. Set drop",),
        {"t.jsonl": JSON_PAIR + '{"sentence1": "a", "sentence2": "\\ud800", "label": "no"}'},
    ),
    BadInput(
        "unknown label",
        f"{TRAIN} good.csv --test_file t.csv",
        ("t.csv: got label 'maybe' in row 1; expected one of no, yes.",),
        {"t.csv": HEADER + "a,b,maybe\n"},
    ),
    BadInput(
        "faults of all files",
        f"{TRAIN} t.csv --test_file no.csv",
        ("t.csv: got an empty 'sentence1' in row 1", "no.csv: no such file."),
        {"t.csv": HEADER + ",b,yes\n"},
        num_lines=2,
    ),
    BadInput(
        "nothing left",
        f"{TRAIN} t.csv --drop_invalid_rows",
        ("t.csv: got no valid row; expected at least one.",),
        {"t.csv": HEADER + ",b,yes\n"},
    ),
    BadInput(
        "dropped rows",
        f"{TRAIN} t.csv --drop_invalid_rows --method full --dry_run",
        ("train: dropped 2 of 4 rows: 1 with no label, 1 with an empty 'sentence1'",),
        {"t.csv": PAIRS + "a,b,\n,b,yes\n"},
        exit_code=0,
        num_lines=0,
    ),
    BadInput(
        "no split",
        "train --model {bert} --dataset d",
        ("dataset: got the splits x;",),
        {"d/x.tsv": ""},
    ),
    BadInput(
        "surrogate in predict",
        "predict {run} --input t.jsonl --output o.csv",
        ("t.jsonl: got a lone surrogate in 'sentence1' in row 1; expected Unicode text.",),
        {"t.jsonl": '{"sentence1": "a \\ud800", "sentence2": "b"}'},
    ),
]
LARGE = "1" + "0" * 30
OPTIONS = [
    BadInput(
        f"{option} {LARGE}",
        f"{command} --{option} {LARGE}",
        (f"--{option}: got {LARGE}; expected an integer of 64 bits.",),
    )
    for option, command in {
        "per_device_train_batch_size": f"{TRAIN} good.csv",
        "max_train_samples": f"{TRAIN} good.csv",
        "batch_size": "predict {run} --input good.csv",
        "batch_tokens": "hard_prompt --model {llama}",
    }.items()
]
OUTPUTS = [
    BadInput("output type", f"{PREDICT} o.docx", ("--output: got 'o.docx'; expected .csv, .tsv",)),
    BadInput(
        "output directory", f"{PREDICT} o.csv", ("'o.csv', a directory; expected",), {"o.csv/x": ""}
    ),
    BadInput("output exists", f"{PREDICT} good.csv", ("--output: got 'good.csv', which exists.",)),
    BadInput("output in a file", f"{PREDICT} good.csv/o.csv", ("expected an existing directory",)),
    BadInput("output nowhere", f"{PREDICT} no/o.csv", ("expected an existing directory",)),
    BadInput("output name", f"{PREDICT} {'a' * 300}.csv", ("cannot be written: File name too",)),
]
ROWS = [*FILES, *DATA, *OPTIONS, *OUTPUTS]


def test_the_rows_have_different_names() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bad_input(
    row: BadInput,
    tiny_bert: str,
    tiny_llama: str,
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, content in {"good.csv": PAIRS, **row.files}.items():
        data = content.encode() if isinstance(content, str) else content
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)
    before = snapshot(tmp_path)
    names = {"bert": tiny_bert, "llama": tiny_llama, "run": str(trained_run)}
    caplog.set_level("INFO", "peft_mrpc")
    capfd.readouterr()
    code = run_cli(dispatch, [word.format(**names) for word in shlex.split(row.command)])
    printed = capfd.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("peft-mrpc: ")]
    output = printed.out + printed.err + caplog.text
    assert code == row.exit_code, output
    assert [word for word in row.words if word not in output] == [], output
    assert "Traceback" not in output
    assert len(errors) == row.num_lines, errors
    assert [path for path in row.must_not_exist if Path(path).exists()] == []
    assert snapshot(tmp_path) == before


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """The content of every file in a directory; None for directories and links."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }
