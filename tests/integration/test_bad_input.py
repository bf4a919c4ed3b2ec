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
MANY = HEADER + "the cat sat,a cat ran,yes\nthe dog ran,the mat sat,no\n" * 6
TRAIN_MANY = "train --model {bert} --train_file many.csv --validation_file good.csv"
VALUES = [
    BadInput(f"train {words}", f"{TRAIN_MANY} {words}", (message,), {"many.csv": MANY})
    for words, message in {
        "--learning_rate nan": "--learning_rate: got nan; expected a number.",
        "--learning_rate 1e400": "--learning_rate: got inf; expected a number above 0.",
        "--weight_decay nan": "--weight_decay: got nan; expected a number.",
        "--num_train_epochs -1": "--num_train_epochs: got -1.0; expected a number above 0.",
        "--per_device_train_batch_size 0": "--per_device_train_batch_size: got 0; expected at",
        "--max_length -1": "--max_length: got -1 tokens; expected at least 8.",
        "--max_train_samples 0": "--max_train_samples: got 0; expected at least 1.",
        "--selection_fraction 1": "--selection_fraction: got 1.0; expected a number between 0 and",
        "--threshold nan": "--threshold: got 'nan'; expected auto or a number between 0 and 1.",
        "--class_weights nan,1": "--class_weights: got 'nan,1'; expected none, balanced, or",
        "--class_weights 1,2,3": "--class_weights: got 3 numbers; expected 2, for no, yes.",
        "--dropout 1.5": "--dropout: got 1.5; expected 0 or more and below 1.",
        "--swap_sentences foo": "--swap_sentences: got 'foo'; expected one of auto, false, true.",
        "--head_layer 99": "--head_layer: got '99'; expected 1 to 2 (the layers of",
        "--seed abc": "--seed: got 'abc'; expected a valid integer.",
        "--seed -1": "--seed: got -1; expected 0 to 4294967295.",
        "--seeds 1,1": "--seeds: got 1 twice; expected different seeds.",
        "--seeds -1": "--seeds: got -1; expected integers from 0 to 4294967295, such as 1,2,3.",
        "--seeds a,b": "--seeds: got 'a,b'; expected a valid array.",
        "--seeds 1,2 --seed 3": "--seeds: got seed as well. Remove one of the two.",
        "--split nonsense": "--split: got 'nonsense'; files has train, validation.",
        "--class_names a,a": "--class_names: got 'a,a'; expected two or more different names",
        "--method lora --r 0": "--r: got 0; expected at least 1.",
        "--method lora --lora_dropout nan": "--lora_dropout: got nan; expected",
        "--method lora --target_modules [ --dry_run": "--target_modules: got '['; expected a valid",
        "--method prompt_tuning --num_virtual_tokens 64": "expected at most 56.",
        "--push_to_hub --hub_model_id 'a b'": "--hub_model_id: got 'a b'; expected owner/name.",
        "--resume_from_checkpoint good.csv": "which has no trainer_state.json; expected a",
    }.items()
]
LABELS = [
    BadInput(f"labels: {name}", f"{TRAIN} t.csv", (message,), {"t.csv": content})
    for name, content, message in (
        (
            "differing in case",
            HEADER + "a,b,yes\nc,d,Yes\n",
            "t.csv: column 'label': got 'Yes' and 'yes', which differ only in case; expected one",
        ),
        (
            "one",
            HEADER + "a,b,yes\nc,d,yes\n",
            "t.csv: column 'label': got 'yes'; expected at least two classes",
        ),
        (
            "too many",
            HEADER + "".join(f"a,b,l{n}\n" for n in range(3000)),
            "got 3000 different values (l0, l1, l10, ...); expected the names of a few classes.",
        ),
        (
            "of single sentences",
            "sentence1,label\na,yes\nb,no\n",
            "got the columns sentence1, label; expected one of the usual pairs of sentence columns",
        ),
    )
]
CONFIGS = [
    BadInput(f"config {name}", "train --config c.yaml", (message,), {"c.yaml": content})
    for name, content, message in (
        ("empty", "", "c.yaml: expected `name: value` lines, one for each option."),
        ("list", "- model: x\n", "c.yaml: expected `name: value` lines, one for each option."),
        ("number as a key", "1: 2\n", "c.yaml: expected `name: value` lines"),
        ("unknown key", "nonsense: 1\n", "c.yaml: nonsense: got an unknown option."),
        ("key of a peer", "method: lora\nlora_r: 8\n", "c.yaml: lora_r: got an unknown option. Us"),
        ("key twice", "seed: 1\nseed: 2\n", "not valid YAML: got the key 'seed' twice, line 2"),
        ("syntax", "a: b: c\n", "c.yaml: not valid YAML: mapping values are not allowed here, lin"),
        ("Python tag", "model: !!python/object/apply:os.system [ls]\n", "could not determine a"),
        ("lone surrogate", 'model: "\\ud800"\n', "c.yaml: not valid YAML: got a lone surrogate"),
        ("another file", "config: d.yaml\n", "a file of options cannot name another one"),
        ("list for a text", "model: [a]\n", "c.yaml: model: got ['a']; expected a valid string."),
        ("text for a number", "num_train_epochs: many\n", "got 'many'; expected a valid number."),
        ("fraction", "seed: 1.5\n", "c.yaml: seed: got 1.5; expected a valid integer."),
        ("not a boolean", "overwrite: maybe\n", "got 'maybe'; expected a valid boolean."),
        ("NaN", "weight_decay: .nan\n", "c.yaml: weight_decay: got nan; expected a number."),
        ("mapping of seeds", "seeds: {a: 1}\n", "c.yaml: seeds: got {'a': 1}; expected a valid"),
    )
]
SEARCH = "tune --model {bert} --train_file many.csv --validation_file good.csv --method lora"
SPACES = [
    BadInput(
        f"search space {name}",
        f"{SEARCH} --search_space s.yaml",
        (message,),
        {"s.yaml": content, "many.csv": MANY},
    )
    for name, content, message in (
        ("empty", "", "s.yaml: expected lines `name: {low: 1e-5, high: 1e-3, log: true}`."),
        ("list", "[]", "s.yaml: expected lines `name: {low: 1e-5, high: 1e-3, log: true}`."),
        ("number", "r: 5", "s.yaml: r: got 5; expected {low, high}, {factor} or {choices}, with"),
        ("without choices", "r: {choices: []}", "s.yaml: r: got {'choices': []}; expected"),
        ("nested choices", "r: {choices: [[1]]}", "got [[1]]; expected numbers, words, true or f"),
        ("unknown", "learning_rat: {low: 1, high: 2}", "is not an option of lora. Did you mean"),
        ("reversed", "r: {low: 8, high: 1}", "expected finite numbers, low < high, log true or"),
        ("NaN", "r: {low: .nan, high: 1}", "expected finite numbers, low < high, log true or"),
        ("zero step", "r: {low: 1, high: 4, step: 0}", "`step > 0` must hold, but got step=0."),
        ("large step", "r: {low: 1, high: 4, step: 9}", "expected a step of at most high - low."),
        (
            "log of a negative",
            "r: {low: -1, high: 4, log: true}",
            "s.yaml: r: `low >= 1` must hold",
        ),
        ("small factor", "learning_rate: {factor: 0.5}", "expected a factor above 1 for a value"),
        ("seed", "seed: {choices: [1, 2]}", "s.yaml: seed: must be the same in all trials; remo"),
        ("key twice", "r: {choices: [4]}\nr: {choices: [8]}", "got the key 'r' twice, line 2"),
        ("word", "r: {choices: [x]}", "r in the search space: r: got 'x'; expected a valid integ"),
        ("end", "learning_rate: {choices: [-1, 0.1]}", "got -1.0; expected a number above 0."),
        ("large", f"r: {{low: 1, high: {LARGE}}}", f"got {LARGE}; expected an integer of 64 bits."),
    )
]
SEARCHES = [
    BadInput(f"tune {words}", f"{SEARCH} {words}", (message,), {**PROJECT, "many.csv": MANY})
    for words, message in {
        "--search_space no.yaml": "--search_space: got 'no.yaml'; expected a readable YAML file.",
        "--objective foo": "--objective: got 'foo'; expected one of accuracy, loss, macro_f1,",
        "--pruner foo": "--pruner: got 'foo'; expected one of median, none.",
        "--num_trials 0": "--num_trials: got 0; expected at least 1.",
        "--num_trials 1.5": "--num_trials: got 1.5; expected a valid integer.",
        "--seeds 1,2": "--seeds: a search has one seed; train the best recipe with seeds;",
        "--output_dir p": "which holds files that do not belong to a search (README.md, model);",
        "--output_dir good.csv": "--output_dir: got 'good.csv', a file; expected a directory.",
        "--storage nonsense": "--storage: got 'nonsense', which cannot be opened: Could not parse",
        "--storage foo://u:secret@x/y": "--storage: got 'foo://***@x/y', which cannot be opened:",
        "--storage sqlite:////no/x.db": "--storage: got 'sqlite:////no/x.db', which cannot be",
    }.items()
]
TEXT = "name: t\ntext: '{sentence1} {sentence2}?'\n"
WORDS = "label_words: {yes: 'Yes', no: 'No'}\n"
TEMPLATES = [
    BadInput(
        f"template {name}", f"{PROMPT} --template t.yaml --dry_run", (message,), {"t.yaml": content}
    )
    for name, content, message in (
        ("list", "[]", "t.yaml: got no mapping; expected the keys text and label_words."),
        ("without text", f"name: t\n{WORDS}", "t.yaml: key text is missing."),
        ("without words", TEXT, "t.yaml: key label_words is missing."),
        ("unknown key", f"{TEXT}{WORDS}x: 1\n", "t.yaml: got an unknown key 'x'."),
        (
            "key twice",
            f"name: t\n{TEXT}{WORDS}",
            "not valid YAML: got the key 'name' twice, line 2",
        ),
        ("style", f"{TEXT}{WORDS}style: foo\n", "key style: got 'foo'; expected 'auto', 'chat' or"),
        (
            "field",
            f"name: t\ntext: '{{x}}'\n{WORDS}",
            "key text: got the fields {x}; expected {sen",
        ),
        ("brace", f"name: t\ntext: '{{sentence1'\n{WORDS}", "Write a literal brace twice."),
        ("format", f"name: t\ntext: '{{sentence1:>9}}'\n{WORDS}", "got a field with `:` or `!`;"),
        ("same words", f"{TEXT}label_words: {{yes: A, no: A}}\n", "got 'A' more than once; expect"),
        ("one label", f"{TEXT}label_words: {{yes: A}}\n", "expected two or more labels."),
        ("number", f"{TEXT}label_words: {{yes: 1, no: A}}\n", "yes.0: got 1; expected text in quo"),
        ("other labels", f"{TEXT}label_words: {{a: A, b: B}}\n", "but the data's labels are no, y"),
        ("prefix", f"{TEXT}label_words: {{yes: A, no: A B}}\n", "one is a token prefix of the oth"),
        (
            "lone surrogate",
            f'{TEXT}{WORDS}system: "\\ud800"\n',
            "not valid YAML: got a lone surrog",
        ),
    )
]
PROMPTS = [
    BadInput(
        f"hard_prompt {words}",
        f"{PROMPT} --template t.yaml {words}",
        (message,),
        {"t.yaml": TEXT + WORDS},
    )
    for words, message in {
        "--template no.yaml": "--template: got 'no.yaml'; expected a readable file.",
        "--template nonsense": "--template: got 'nonsense'; expected a YAML file, a directory of",
        "--template t.yaml,t.yaml": "--template: got 't' twice; name each template once.",
        "--calibration foo": "--calibration: got 'foo'; expected one of affine, batch, contextual",
        "--calibration affine": "calibration affine: needs training examples; set train_file.",
        "--calibration batch": "a calibration on the scored examples needs at least 8.",
        "--num_demonstrations -1": "--num_demonstrations: got -1; expected at least 0.",
        "--num_demonstrations 1.5": "--num_demonstrations: got 1.5; expected a valid integer.",
        "--num_demonstrations 1": "num_demonstrations 1: needs training examples; set train_file.",
        "--device_map foo": "--device_map: got 'foo'; expected one of auto, replica.",
        "--batch_size 0": "--batch_size: got 0; expected at least 1.",
        "--model {bert}": "a BertForSequenceClassification; expected a causal language model.",
        "--model good.csv": "--model: got 'good.csv', which is not a directory; expected a model.",
        "--push_to_hub": "--push_to_hub: got no hub_model_id; expected owner/name.",
        "--method lora": "--method: got an unknown option.",
    }.items()
]
PROMPTS.append(
    BadInput(
        "prompts longer than the model's positions",
        f"{PROMPT} --template t.yaml",
        ("validation, row 1, t: its prompt has", "expected at most 256"),
        {"t.yaml": TEXT + WORDS, "good.csv": HEADER + "the cat " * 200 + ",a,yes\na,b,no\n"},
    )
)
GATES = [
    BadInput(f"compare {words}", f"compare r {words}", (message,), run_files(), 2, ("comparison",))
    for words, message in {
        "r": "RUN: got r twice; name each Run once.",
        "./r": "RUN: got r twice; name each Run once.",
        "good.csv": "RUN: got 'good.csv', which is not a directory; expected a Run.",
        "--fail_under nonsense=1": "--fail_under: got 'nonsense'; expected one of accuracy,",
        "--fail_under accuracy": "--fail_under: got 'accuracy'; expected METRIC=NUMBER, 0 to 1.",
        "--fail_under accuracy=nan": "--fail_under: got 'accuracy=nan'; expected METRIC=NUMBER,",
        "--fail_under f1.maybe=0.5": "--fail_under: got 'f1.maybe'; expected one of f1.no, f1.yes",
        "--baseline nope": "--baseline: got 'nope'; expected one of the compared Runs: r.",
        "--no_worse_than 0.1": "--no_worse_than: needs a baseline; set baseline to one of the",
        "--baseline r --no_worse_than nan": "--no_worse_than: got 'nan'; expected METRIC=NUMBER",
        "--split nonsense": "r: has no labelled split 'nonsense'; it has test.",
        "--equivalence_margin nan": "--equivalence_margin: got nan; expected a number",
        "--max_examples -1": "--max_examples: got -1; expected 0 or more.",
        "--output_dir good.csv": "--output_dir: got 'good.csv', a file; expected a directory.",
        "--output_dir r": "which holds files that do not belong to a report (metrics.json, model",
    }.items()
]
OTHER_DATA = run_files("run.json", "data.splits.test.fingerprint", "1" * 64)
GATES.append(
    BadInput(
        "compare Runs of other examples",
        "compare r q",
        ("q: was scored on other examples of 'test' than r",),
        run_files() | {path.replace("r/", "q/", 1): text for path, text in OTHER_DATA.items()},
        must_not_exist=("comparison",),
    )
)
SCORED = '{"sentence1": 5, "sentence2": "b"}\n'
PREDICTIONS = [
    BadInput(f"predict {words}: {message}", f"predict {words}", (message,), files)
    for words, message, files in (
        ("", "predict: got no RUN; expected a Run, a directory, or owner/name on the Hub.", {}),
        ("{run}", "--input: got none; expected a file, or - for standard input.", {}),
        ("{run} r --input good.csv", "expected one RUN.", {}),
        ("{run} --input d", "d: got a directory; expected .csv, .tsv, .jsonl", {"d/x": ""}),
        ("gone --input good.csv", "got 'gone', which is not a directory; expected a Run,", {}),
        ("d --input good.csv", "got 'd', which contains no peft_mrpc.json, adapter", {"d/x": ""}),
        ("d --input good.csv", "cannot be read as JSON: not valid JSON", {"d/config.json": "{o"}),
        ("d --input good.csv", "got []; expected a JSON", {"d/adapter_config.json": "[]"}),
        ("{run} --input good.csv --output ./good.csv --overwrite", "which is the input; exp", {}),
        ("{run} --input good.csv --class_names a,b", "has its own label names", {}),
        ("{bert} --input good.csv --class_names a,b,c", "got 3 names; expected 2, the number", {}),
        ("{run} --input good.csv --class_names a", "expected two or more different names, ", {}),
        ("{run} --input t.csv", "t.csv: got the columns a, b; expected", {"t.csv": "a,b\n1,2\n"}),
        ("{run} --input good.csv --sentence1_column x", "got 'x'; good.csv has sentence1,", {}),
        ("{run} --input t.jsonl", "of type int in 'sentence1' in row 1", {"t.jsonl": SCORED}),
        ("{run} --input good.csv --batch_size 0", "--batch_size: got 0; expected at least 1.", {}),
        ("{run} --input good.csv --endpoint http://x/v1", "uses no served model; expected", {}),
        ("{llama} --input good.csv", "lacks the weights score.weight; expected a trained", {}),
        (
            "{run} --input t.csv --output o.csv",
            "t.csv: already has the columns prediction. Rename them.",
            {"t.csv": "sentence1,sentence2,prediction\na,b,c\n"},
        ),
    )
]
OTHERS = [
    BadInput(command, command, (message,), files)
    for command, message, files in (
        ("push", "push: got no RUN; expected the directory of a Run.", {}),
        ("push gone --repo_id a/b", "RUN: got 'gone', which is not a directory; expected", {}),
        ("push d --repo_id a/b", "RUN: got 'd', which has no run.json; expected", {"d/x": ""}),
        ("push r q --repo_id a/b", "push: got r q; expected one RUN.", run_files()),
        ("push r --repo_id a/b/c", "--repo_id: got 'a/b/c'; expected owner/name.", run_files()),
        ("push r --repo_id ../x", "--repo_id: got '../x'; expected owner/name.", run_files()),
        (f"{PUSH} --base_model_id ../x", "--base_model_id: got '../x'; expected", run_files()),
        ("doctor --nonsense", "--nonsense: got an unknown option.", {}),
        ("doctor x", "got 'x'; expected an option (--name value).", {}),
        ("doctor --method foo", "--method: got 'foo'; expected one of bitfit, dora, full,", {}),
        ("doctor --num_examples 5", "got the size of a training set. Add --method and", {}),
        ("doctor --method lora --model d", "which contains no config.json; expect", {"d/x": ""}),
        ("doctor --num_examples 0", "--num_examples: got 0; expected at least 1.", {}),
        ("doctor --mean_tokens -1", "--mean_tokens: got -1; expected at least 1.", {}),
        ("doctor --num_examples nan", "--num_examples: got nan; expected a valid integer.", {}),
        ("quickstart x", "got 'x'; expected an option (--name value).", {}),
        ("quickstart --overwrite", "--overwrite: got an unknown option.", {}),
        ("quickstart --output_dir", "--output_dir: got 0 words; expected one text", {}),
        ("quickstart --output_dir good.csv", "'good.csv', a file; expected a directory.", {}),
        ("quickstart --output_dir good.csv/q", "cannot write in", {}),
        ("quickstart --output_dir p", "that do not belong to a quickstart (README.md,", PROJECT),
        ("quickstart --output_dir r", "do not belong to a quickstart (metrics", run_files()),
        ("quickstart --output_dir .", "do not belong to a quickstart (good.csv)", {}),
    )
]
ROWS = [
    *(*FILES, *DATA, *LABELS, *OPTIONS, *VALUES, *CONFIGS, *HOMES, *OUTPUTS, *RUN_FILES),
    *(*DIRECTORIES, *NAMES, *SPACES, *SEARCHES, *TEMPLATES, *PROMPTS, *GATES, *PREDICTIONS),
    *OTHERS,
]


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
