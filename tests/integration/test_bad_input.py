"""Bad input ends in one line for each fault and the right exit code, and changes no file.

Each row is a command line that runs in a directory of its own, with the files that it needs. The
words must occur in what the command prints or logs. Afterwards the directory holds the same files
with the same content.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        f"{command.split()[0]} --{option} {LARGE}",
        f"{command} --{option} {LARGE}",
        (f"--{option}: got {LARGE}; expected an integer of 64 bits.",),
    )
    for option, command in {
        "seed": "train",
        "max_length": "train",
        "max_steps": "train",
        "r": "train --method lora",
        "num_trials": "tune",
        "max_examples": "compare r",
        "per_device_train_batch_size": f"{TRAIN} good.csv",
        "max_train_samples": f"{TRAIN} good.csv",
        "batch_size": "predict {run} --input good.csv",
        "batch_tokens": "hard_prompt --model {llama}",
    }.items()
]
HOMES = [
    BadInput(
        f"unknown user in {command.split()[0]}",
        command,
        words,
    )
    for command, words in {
        "train --model {bert} --train_file ~nobody9/t.csv": ("~nobody9/t.csv: no such file.",),
        "hard_prompt --config ~nobody9/c.yaml": ("--config: got '~nobody9/c.yaml'; expected",),
        "predict ~nobody9/run --input good.csv": ("got '~nobody9/run'",),
        "doctor --model ~nobody9/model --method lora": ("got '~nobody9/model'",),
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
SCORES = {"accuracy": 1.0, "macro_f1": 1.0, "mcc": 1.0, "roc_auc": 1.0, "average_precision": 1.0}
SCORES |= {"brier": 0.0, "ece": 0.0, "majority_accuracy": 0.5, "num_examples": 2}


def run_files(file: str = "", path: str = "", value: object = None) -> dict[str, str]:
    """The files of a Run, `r`, in one of which a value is replaced.

    Args:
        file: The file.
        path: The keys of the value, joined by dots; without keys the whole content.
        value: The new value.
    """
    split = {"num_examples": 2, "fingerprint": "0" * 64}
    record = {
        **{"format_version": 1, "method": "full", "model": "m", "base_model_id": None, "seed": 1},
        **{"finished": "2026-01-01T00:00:00Z", "config": {}, "versions": {}, "strategy": "train"},
        "data": {"name": "d", "label_names": ["no", "yes"], "splits": {"test": split}},
        "timing": {"score_pairs_per_second": 1.0},
        "peak_memory": {"resident_bytes": 1},
        "hardware": {"cpu": "c", "gpus": []},
    }
    f1 = {"f1": {"no": 1.0, "yes": 1.0}, "confusion_matrix": [[1, 0], [0, 1]]}
    artifact = {
        **{"format_version": 1, "model": "m", "base_model_id": "m", "method": "full"},
        **{"label_names": ["no", "yes"], "max_length": 8, "threshold": 0.5, "files": []},
    }
    contents: dict[str, Any] = {
        "run.json": record,
        "metrics.json": {"test": {**SCORES, **f1}},
        "model/peft_mrpc.json": artifact,
    }
    *keys, last = path.split(".")
    parent = contents[file] if file else {}
    for key in keys:
        parent = parent[key]
    if path:
        parent[last] = value
    elif file:
        contents[file] = value
    rows = [
        {"idx": n, "sentence1": "a", "label": name, "prediction": name}
        | {"probabilities": {"no": float(name == "no"), "yes": float(name == "yes")}}
        for n, name in enumerate(["no", "yes"])
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    files = {f"r/{name}": json.dumps(content) for name, content in contents.items()}
    return {**files, "r/predictions/test.jsonl": lines}


def damaged(command: str, file: str, path: str, value: object, words: str) -> BadInput:
    """A command that reads a Run in which one value is wrong."""
    name = f"{command.split()[0]} {file} {path} {str(value)[:12]}"
    return BadInput(name, command, (f"{file}: {words}",), run_files(file, path, value))


COMPARE, NAN, INF = "compare r --output_dir runs", float("nan"), float("inf")
LABEL = "predict r --input good.csv --output runs.csv"
PUSH = "push r --repo_id me/x --dry_run"


def labels_of_another_tool(labels: object, words: str) -> BadInput:
    """A classifier of another tool whose configuration has wrong labels."""
    content = json.dumps({"model_type": "bert", "id2label": labels})
    command = "predict m --input good.csv --output runs.csv"
    return BadInput(f"labels {labels}", command, (words,), {"m/config.json": content})


RUN_FILES = [
    BadInput("compare nothing", "compare", ("compare: got no RUN; expected directories of Runs.",)),
    BadInput("no Run", "compare gone", ("RUN: got 'gone', which is not a directory; expected",)),
    BadInput("no run.json", "compare d", ("which has no run.json; expected a Run.",), {"d/x": ""}),
    BadInput(
        "Run is not JSON",
        COMPARE,
        ("r/run.json: cannot be read as JSON: not valid JSON",),
        run_files() | {"r/run.json": "{oops"},
    ),
    BadInput(
        "Run of deep JSON",
        COMPARE,
        ("r/run.json: cannot be read as JSON: nested more than 100 levels deep",),
        run_files() | {"r/run.json": "[" * 100_000},
    ),
    BadInput(
        "Run is not text",
        COMPARE,
        ("r/run.json: cannot be read as JSON: 'utf-8' codec",),
        run_files() | {"r/run.json": b"\xff\xfe"},
    ),
    damaged(COMPARE, "run.json", "", [], "damaged: the content is []; expected object."),
    damaged(COMPARE, "run.json", "format_version", 99, "got format 99; this version of"),
    damaged(COMPARE, "run.json", "seed", 10**30, "damaged: seed is 1000000000"),
    damaged(COMPARE, "run.json", "seed", "1", 'damaged: seed is "1"; expected integer.'),
    damaged(COMPARE, "run.json", "threshold", NAN, "damaged: threshold is NaN; expected number."),
    damaged(COMPARE, "run.json", "threshold", 7, "damaged: threshold is 7; expected at most 1."),
    damaged(COMPARE, "run.json", "data.label_names", ["a", "a"], "damaged: data.label_names is"),
    damaged(COMPARE, "run.json", "data.label_names", ["a"], "damaged: data.label_names is"),
    damaged(COMPARE, "run.json", "data.splits.test", {}, "damaged: data.splits.test lacks num"),
    damaged(COMPARE, "run.json", "timing", None, "damaged: timing is null; expected object."),
    damaged(COMPARE, "metrics.json", "", 3, "damaged: the content is 3; expected object."),
    damaged(COMPARE, "metrics.json", "test.accuracy", NAN, "damaged: test.accuracy is NaN;"),
    damaged(COMPARE, "metrics.json", "test.accuracy", INF, "damaged: test.accuracy is Infinity;"),
    damaged(COMPARE, "metrics.json", "test.accuracy", True, "damaged: test.accuracy is true;"),
    damaged(COMPARE, "metrics.json", "test.accuracy", 1.5, "damaged: test.accuracy is 1.5;"),
    damaged(COMPARE, "metrics.json", "test.f1", {"no": 1}, "damaged: test.f1 lacks yes."),
    damaged(COMPARE, "metrics.json", "test.confusion_matrix", [[2]], "damaged: test.confusion"),
    damaged(COMPARE, "metrics.json", "test.num_examples", 0, "damaged: test.num_examples is 0;"),
    BadInput(
        "quality gate of NaN",
        f"{COMPARE} --fail_under accuracy=0.9",
        ("metrics.json: damaged: test.accuracy is NaN; expected number.",),
        run_files("metrics.json", "test.accuracy", NAN),
    ),
    BadInput(
        "control characters in a name",
        COMPARE,
        ("data.label_names is", "\\u001b[2J"),
        run_files("run.json", "data.label_names", ["\x1b[2J", "\x1b[2J"]),
    ),
    BadInput(
        "no predictions",
        COMPARE,
        ("test.jsonl: damaged: 0 rows, expected rows 0 to 1 in order",),
        run_files() | {"r/predictions/test.jsonl": ""},
    ),
    BadInput(
        "predictions that are not objects",
        COMPARE,
        ("test.jsonl: damaged: row 0: the content is 3; expected object",),
        run_files() | {"r/predictions/test.jsonl": "3\n4\n"},
    ),
    BadInput(
        "cut predictions",
        COMPARE,
        ("test.jsonl: damaged: not valid JSON",),
        run_files() | {"r/predictions/test.jsonl": '{"idx": 0'},
    ),
    damaged(LABEL, "model/peft_mrpc.json", "", [], "damaged: the content is []; expected object."),
    damaged(LABEL, "model/peft_mrpc.json", "threshold", NAN, "damaged: threshold is NaN;"),
    damaged(LABEL, "model/peft_mrpc.json", "max_length", -1, "damaged: max_length is -1;"),
    damaged(LABEL, "model/peft_mrpc.json", "max_length", 10**9, "damaged: max_length is 1000000"),
    damaged(LABEL, "model/peft_mrpc.json", "label_names", ["a", "a"], "damaged: label_names is"),
    damaged(LABEL, "model/peft_mrpc.json", "label_names", None, "damaged: label_names is null;"),
    damaged(LABEL, "model/peft_mrpc.json", "files", ["../x"], 'damaged: files.0 is "../x";'),
    damaged(PUSH, "model/peft_mrpc.json", "files", ["/etc/hosts"], 'damaged: files.0 is "/etc'),
    damaged(PUSH, "model/peft_mrpc.json", "files", [".env"], 'damaged: files.0 is ".env";'),
    BadInput(
        "push of a missing file",
        PUSH,
        ("r/model: damaged: w.bin is missing.",),
        run_files("model/peft_mrpc.json", "files", ["w.bin"]),
    ),
    BadInput("push to no name", "push r", ("--repo_id: got none; expected owner/name.",)),
    BadInput("push to a word", "push r --repo_id x", ("--repo_id: got 'x'; expected owner/name.",)),
]
WRITE = "train --model {bert} --train_file good.csv --validation_file good.csv --method full"
PROMPT = "hard_prompt --model {llama} --quantization none --validation_file good.csv"
PROJECT = {"p/README.md": "mine", "p/model/weights.bin": "precious"}
DIRECTORIES = [
    *(
        BadInput(
            f"{command.split()[0]} {options} into a directory that is not a Run",
            f"{command} --output_dir p {options}",
            ("--output_dir: got 'p', which holds files but not a Run; expected a new directory",),
            PROJECT,
        )
        for command in (WRITE, PROMPT)
        for options in ("", "--overwrite")
    ),
    BadInput(
        "other files in a Run",
        f"{WRITE} --output_dir r --overwrite",
        ("'r', which holds files that do not belong to a Run (x.txt); expected",),
        run_files() | {"r/x.txt": ""},
    ),
    BadInput(
        "existing Run",
        f"{WRITE} --output_dir r",
        ("which already holds a Run; choose another directory, or replace it with overwrite.",),
        run_files(),
    ),
    BadInput(
        "damaged Run",
        f"{WRITE} --output_dir r --overwrite",
        ("which holds files but not a Run;", "r/run.json: damaged: seed is null"),
        run_files("run.json", "seed", None),
    ),
    BadInput("file as directory", f"{WRITE} --output_dir good.csv", ("a file; expected a direc",)),
    BadInput("directory in a file", f"{WRITE} --output_dir good.csv/r", ("cannot write in",)),
    BadInput("long directory", f"{WRITE} --output_dir {'a' * 300}", ("File name too long.",)),
    BadInput("long hidden name", f"{WRITE} --output_dir {'a' * 250}", ("File name too long.",)),
    BadInput("working directory", f"{WRITE} --output_dir .", ("--output_dir: got '.', ",)),
    BadInput(
        "report in a directory that is not a report",
        "compare r --output_dir p --overwrite",
        ("--output_dir: got 'p', which holds files that do not belong to a report (README.md,",),
        PROJECT | run_files(),
    ),
    BadInput(
        "report with the names of a report",
        "compare r --output_dir p --overwrite",
        ("'p', which holds files but not a report; expected a new directory",),
        run_files() | {"p/report.html": "mine"},
    ),
]
SERVED = "hard_prompt --model m --validation_file good.csv --endpoint"
NAMES = [
    BadInput("command", "trian", ("COMMAND: got 'trian'; expected one of", "mean 'train'?")),
    *(
        BadInput(f"option {theirs}", f"{command} {theirs} 1", (f"unknown option. Use {ours}.",))
        for command, theirs, ours in (
            ("train", "--model_name_or_path", "--model"),
            ("train", "--task_name", "--dataset"),
            ("train", "--epochs", "--num_train_epochs"),
            ("train", "--lr", "--learning_rate"),
            ("train", "--batch_size", "--per_device_train_batch_size"),
            ("train", "--max_seq_length", "--max_length"),
            ("train --method lora", "--lora_r", "--r"),
            ("train", "--load_in_4bit", "--quantization nf4"),
            ("hard_prompt", "--num_fewshot", "--num_demonstrations"),
            ("push r", "--hub_model_id", "--repo_id"),
        )
    ),
    BadInput("large digits", f"train --seed {'9' * 5000}", ("--seed: got '999", "valid integer.")),
    BadInput(
        "password of an invalid address",
        f"{SERVED} http://user:secret@host:port/v1",
        ("--endpoint: got 'http://***@host:port/v1'; expected http://HOST:PORT/v1.",),
    ),
    BadInput(
        "key in an address",
        f"{SERVED} http://localhost/v1?key=secret",
        ("--endpoint: got 'http://localhost/v1?***'; expected http://HOST:PORT/v1.",),
    ),
    BadInput(
        "no server",
        f"{SERVED} http://user:secret@127.0.0.1:9/v1 --output_dir s",
        ("--endpoint: got no response of http://***@127.0.0.1:9/v1/chat/completions",),
        {"good.csv": HEADER + "a,b,equivalent\nc,d,not_equivalent\n"},
    ),
    BadInput("file of a server", f"{SERVED} file:///etc/hosts", ("expected http://HOST:PORT/v1.",)),
]
ROWS = [*FILES, *DATA, *OPTIONS, *HOMES, *OUTPUTS, *RUN_FILES, *DIRECTORIES, *NAMES]


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
