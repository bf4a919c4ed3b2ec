"""The benchmarks: their options, result files and pages."""

import importlib
import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench
import pytest
from conftest import MRPC

from peft_mrpc.config import DataConfig
from peft_mrpc.data.loading import load_data
from peft_mrpc.errors import UserError

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = ("accuracy", "layer_freeze", "hard_prompt", "scaling", "predict", "doctor")
WITHOUT_RESULTS = ("settings", "soft_prompts", "example_report")
MEASURED = [name for name in NAMES if (FOLDER / f"{name}.json").is_file()]
# Goals by benchmark and prefix of the name of a row.
GOALS = {
    "accuracy": {"full": 0.84, "lora": 0.82, "dora": 0.82, "layer_freeze": 0.79},
    "layer_freeze": {
        "minilm: peft-mrpc (cold cache) vs. Trainer (padded to 128)": 5,
        "minilm: peft-mrpc (cold cache) vs. Trainer (dynamic padding)": 3,
        "minilm: peft-mrpc (warm cache) vs. Trainer (padded to 128)": 10,
        "minilm: epoch on cached activations": 0.6,
        "bert-base: peft-mrpc (cold cache) vs. Trainer (dynamic padding)": 3.5,
        "full: peft-mrpc": 1.3,
        "lora: peft-mrpc": 1.3,
        "prompt_tuning: peft-mrpc": 1.3,
    },
    "doctor": {"layer_freeze: training": 0.7, "full: peak memory": 0.7, "lora: training": 0.7},
    "hard_prompt": {"0 demonstrations": 1.5, "8 demonstrations": 6, "16 demonstrations": 10},
}


def check_record(record: dict[str, Any], name: str) -> None:
    """Check the fields and types of a result file."""
    assert {"machine", "versions", "command", "results"} <= set(record)
    assert record["command"].startswith(f"python benchmarks/{name}.py")
    assert {"cpu", "cpu_count"} <= set(record["machine"])
    assert {"python", "torch", "transformers"} <= set(record["versions"])
    assert record["results"]
    for row in record["results"]:
        assert {"name", "ours", "goal", "unit"} <= set(row)
        if row["unit"] == "accuracy":
            assert 0 <= row["ours"] <= 1
        else:
            assert {"peer", "ratio"} <= set(row) and row["ours"] > 0 and row["peer"] > 0
        if row["unit"] == "pairs/s":
            assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])


@pytest.fixture
def run_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs a benchmark in this process."""

    def run(name: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *arguments])
        bench.run(importlib.import_module(name).main)

    return run


@pytest.mark.parametrize("name", [*NAMES, *WITHOUT_RESULTS])
def test_help_is_short_and_names_the_options(
    name: str, run_benchmark: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run_benchmark(name, "--help")
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    options = ["--dataset", *(["--output FILE.json", "--quick"] if name in NAMES else [])]
    assert all(option in text for option in options) and len(text.splitlines()) < 40


@pytest.mark.parametrize("name", [*NAMES, "settings", "soft_prompts"])
def test_missing_data_is_an_error_of_one_line(
    name: str,
    run_benchmark: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        run_benchmark(name, "--dataset", str(tmp_path / "none"))
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}.py: --dataset: got ") and "expected a directory" in line
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.slow
def test_the_command_prints_the_same_error(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, FOLDER / "predict.py", "--dataset", tmp_path, "--quick"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("predict.py: --dataset: got ")
    assert process.stderr.count("\n") == 1


def test_default_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRPC_DIR", str(tmp_path))
    assert bench.default_dataset() == str(tmp_path)
    monkeypatch.delenv("MRPC_DIR")
    monkeypatch.setattr(bench, "SHARED_MRPC", tmp_path / "none")
    assert bench.default_dataset() == "mrpc"
    monkeypatch.setattr(bench, "SHARED_MRPC", tmp_path)
    assert bench.default_dataset() == str(tmp_path)


@pytest.mark.parametrize("quick", [False, True])
def test_output_leaves_the_page_unchanged(quick: bool, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}
    output = tmp_path / "results.json"
    report = bench.build_report("scaling", Namespace(output=output, quick=quick), "lm-eval")
    report.write([bench.speed_row("one", 6.0, 2.0, 1.5)], sizes=[1])
    report.show("| a table |", "goals")
    report.draw(lambda: pytest.fail("no plot is written"))
    record = json.loads(output.read_text())
    assert record["results"][0]["ratio"] == 3 and record["sizes"] == [1]
    assert record["quick"] is quick and "lm-eval" in record["versions"]
    # Later runs add to the results, quick runs start from nothing.
    assert report.read() == ({} if quick else record)
    assert before == {path: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}


def test_quick_alone_writes_nothing() -> None:
    report = bench.build_report("scaling", Namespace(output=None, quick=True))
    assert report.path is None and report.read() == {}
    report.write([bench.speed_row("one", 6.0, 2.0, 1.5)])


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("none/out.json", "existing directory"),
        ("out.txt", "*.json"),
        ("other.json", "result file of scaling.py"),
    ],
)
def test_an_invalid_output_is_refused(output: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"benchmark": "accuracy"}')
    with pytest.raises(UserError, match=re.escape(message)):
        bench.build_report("scaling", Namespace(output=tmp_path / output, quick=False))


def test_a_missing_peer_is_named() -> None:
    with pytest.raises(UserError, match="no-such-peer.*requirements.txt"):
        bench.build_report("scaling", Namespace(output=None, quick=True), "no-such-peer")


def test_a_table_is_put_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n")
    for _ in range(2):
        bench.put_table(page, "| new |", "a")
        assert page.read_text() == ("before\n<!-- a -->\n\n| new |\n\n<!-- end of a -->\nafter\n")


def test_peak_memory_is_measured() -> None:
    before = bench.resident_bytes()
    with bench.PeakMemory() as memory:
        block = bytearray(os.urandom(1)) * 200_000_000
    assert 190e6 < memory.peak - before < 400e6 and len(block) == 200_000_000


@pytest.mark.parametrize("name", MEASURED)
def test_committed_results_have_their_fields_and_goals(name: str) -> None:
    record = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    check_record(record, name)
    for prefix, goal in GOALS.get(name, {}).items():
        goals = [r["goal"] for r in record["results"] if r["name"].startswith(prefix)]
        assert goals[:1] == [goal], prefix


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_has_its_page_and_marks(name: str) -> None:
    page = (FOLDER / f"{name}.md").read_text("utf-8")
    assert f"python benchmarks/{name}.py" in page
    marks = re.findall(r"<!-- ((?!end of).*?) -->", page)
    assert marks and all(f"<!-- end of {mark} -->" in page for mark in marks)


def test_repeated_data_has_no_duplicate(tmp_path: Path) -> None:
    from scaling import write_repeated

    data = load_data(DataConfig(dataset="builtin:pairs"))
    size = 2 * len(data.splits["train"]) + 5
    flags = write_repeated(data, tmp_path / "repeated", size)
    repeated = load_data(DataConfig(dataset=flags[1])).splits["train"]
    assert len({pair.sentence1 for pair in repeated}) == len(repeated) == size
    first = data.splits["train"][0]
    assert [pair.sentence1 for pair in repeated[:: len(data.splits["train"])]] == [
        f"{number} {first.sentence1}" for number in range(3)
    ]
    assert [pair.label for pair in repeated[:5]] == [p.label for p in data.splits["train"][:5]]


@pytest.mark.slow
def test_contenders_train_the_same_parameters(tiny_bert: str, data_flags: list[str]) -> None:
    from layer_freeze import PARTS, measure, result_rows
    from training_peer import Task

    data = load_data(DataConfig("files", train_file=data_flags[1], validation_file=data_flags[3]))
    result = measure(Task(tiny_bert, data, 2, "lora"), PARTS["lora"], 1, quick=True)
    assert result["train_pairs"] == 18
    assert set(result["seconds"]) == {"Trainer (dynamic padding)", "peft-mrpc"}
    (speed,) = result_rows({"lora": result})
    assert speed["goal"] == 1.3 and speed["ours"] > 0


@pytest.mark.slow
def test_estimates_are_compared_with_measurements(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    from doctor import Training, compare, result_rows

    file = data_flags[3]  # without duplicates
    data = load_data(DataConfig("files", train_file=file, validation_file=file))
    comparison = compare(Training("linear_probe", tiny_bert, epochs=2), data, 18, tmp_path)
    seconds, peak = result_rows({"one": comparison})
    assert (comparison["examples"], comparison["epochs"]) == (9, 2)
    assert seconds["ours"] > 0 and seconds["peer"] > 0 and seconds["ratio"] <= 1
    assert peak["ratio"] > 0.5


def test_a_run_predicts_the_same_as_the_pipeline(trained_run: Path, data_flags: list[str]) -> None:
    from predict import compare, result_rows

    data = load_data(DataConfig("files", validation_file=data_flags[3]))
    comparison = compare(trained_run, data.splits["validation"], 1)
    assert comparison["largest_difference"] < 1e-5
    rows = result_rows(
        {"full": comparison | {"peak_memory": dict.fromkeys(comparison["seconds"], 1)}}
    )
    assert [row["goal"] for row in rows] == [1.3, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_quick_writes_a_result_file(name: str, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}
    output = tmp_path / "results.json"
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--output", str(output)]
    command += ["--dataset", str(MRPC) if MRPC.is_dir() else "builtin:pairs"]
    subprocess.run(command, check=True, cwd=tmp_path)
    check_record(json.loads(output.read_text()), name)
    assert before == {path: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}
