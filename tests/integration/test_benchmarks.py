"""The benchmarks: what they promise of their options, result files and pages."""

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
OTHERS = ("settings", "soft_prompts", "example_report")
MEASURED = [name for name in NAMES if (FOLDER / f"{name}.json").is_file()]
# Goals that were set out, by benchmark and the beginning of a row's name.
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
    "doctor": {"layer_freeze: seconds": 0.7, "full: peak memory": 0.7, "lora: seconds": 0.7},
    "hard_prompt": {"0 demonstrations": 1.5, "8 demonstrations": 6, "16 demonstrations": 10},
}


def check_record(record: dict[str, Any], name: str) -> None:
    """The shape that is promised."""
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
def begin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a benchmark in this process as its command does."""

    def run(name: str, *words: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *words])
        bench.run(importlib.import_module(name).main)

    return run


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_help_is_short_and_names_the_options(
    name: str, begin: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        begin(name, "--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    wanted = ["--dataset", *(["--output FILE.json", "--quick"] if name in NAMES else [])]
    assert all(option in said for option in wanted) and len(said.splitlines()) < 40


@pytest.mark.parametrize("name", [*NAMES, "settings", "soft_prompts"])
def test_data_that_is_not_there_is_one_line(
    name: str,
    begin: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        begin(name, "--dataset", str(tmp_path / "none"))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}.py: --dataset: got ") and "expected a directory" in line
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.slow
def test_the_command_ends_so_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "predict.py", "--dataset", tmp_path, "--quick"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("predict.py: --dataset: got ") and done.stderr.count("\n") == 1


def test_the_directory_of_mrpc_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRPC_DIR", str(tmp_path))
    assert bench.default_dataset() == str(tmp_path)
    monkeypatch.delenv("MRPC_DIR")
    monkeypatch.setattr(bench, "BESIDE", tmp_path / "none")
    assert bench.default_dataset() == "mrpc"
    monkeypatch.setattr(bench, "BESIDE", tmp_path)
    assert bench.default_dataset() == str(tmp_path)


@pytest.mark.parametrize("quick", [False, True])
def test_a_result_file_is_written_and_the_page_left_alone(quick: bool, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}
    output = tmp_path / "found.json"
    report = bench.build_report("scaling", Namespace(output=output, quick=quick), "lm-eval")
    report.write([bench.speed_row("one", 6.0, 2.0, 1.5)], sizes=[1])
    report.show("| a table |", "goals")
    report.draw(lambda: pytest.fail("there is no picture to draw"))
    record = json.loads(output.read_text())
    assert record["results"][0]["ratio"] == 3 and record["sizes"] == [1]
    assert record["quick"] is quick and "lm-eval" in record["versions"]
    # What was measured before is gone on from, but not with a few rows.
    assert report.read() == ({} if quick else record)
    assert before == {path: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}


def test_quick_alone_writes_nothing() -> None:
    report = bench.build_report("scaling", Namespace(output=None, quick=True))
    assert report.path is None and report.read() == {}
    report.write([bench.speed_row("one", 6.0, 2.0, 1.5)])


@pytest.mark.parametrize(
    ("output", "said"),
    [("none/out.json", "does not exist"), ("out.txt", "*.json"), ("other.json", "something other")],
)
def test_a_result_file_that_cannot_be_is_refused_at_once(
    output: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "other.json").write_text('{"benchmark": "accuracy"}')
    with pytest.raises(UserError, match=re.escape(said)):
        bench.build_report("scaling", Namespace(output=tmp_path / output, quick=False))


def test_a_peer_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="no-such-peer.*requirements.txt"):
        bench.build_report("scaling", Namespace(output=None, quick=True), "no-such-peer")


def test_a_table_is_put_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n")
    for _ in range(2):
        bench.put_table(page, "| new |", "a")
        assert page.read_text() == ("before\n<!-- a -->\n\n| new |\n\n<!-- end of a -->\nafter\n")


def test_peak_memory_is_seen() -> None:
    with bench.PeakMemory() as watched:
        block = bytearray(os.urandom(1)) * 200_000_000
    assert 190e6 < watched.added < 400e6 and len(block) == 200_000_000


@pytest.mark.parametrize("name", MEASURED)
def test_committed_results_have_the_shape_and_the_goals(name: str) -> None:
    record = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    check_record(record, name)
    for beginning, goal in GOALS.get(name, {}).items():
        goals = [r["goal"] for r in record["results"] if r["name"].startswith(beginning)]
        assert goals[:1] == [goal], beginning


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_has_its_page_and_marks(name: str) -> None:
    page = (FOLDER / f"{name}.md").read_text("utf-8")
    assert f"python benchmarks/{name}.py" in page
    marks = re.findall(r"<!-- ((?!end of).*?) -->", page)
    assert marks and all(f"<!-- end of {mark} -->" in page for mark in marks)


def test_mrpc_is_repeated_without_a_pair_twice(tmp_path: Path) -> None:
    from scaling import write_repeated

    data = load_data(DataConfig(dataset="builtin:pairs"))
    size = 2 * len(data.splits["train"]) + 5
    flags = write_repeated(data, tmp_path / "repeated", size)
    again = load_data(DataConfig(dataset=flags[1])).splits["train"]
    assert len({pair.sentence1 for pair in again}) == len(again) == size
    first = data.splits["train"][0]
    assert [pair.sentence1 for pair in again[:: len(data.splits["train"])]] == [
        f"{number} {first.sentence1}" for number in range(3)
    ]
    assert [pair.label for pair in again[:5]] == [p.label for p in data.splits["train"][:5]]


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


def test_a_saved_run_labels_as_the_pipeline_does(trained_run: Path, data_flags: list[str]) -> None:
    from predict import compare, result_rows

    data = load_data(DataConfig("files", validation_file=data_flags[3]))
    found = compare(trained_run, data.splits["validation"], 1)
    assert found["largest_difference"] < 1e-5
    rows = result_rows({"full": found | {"peak_memory": dict.fromkeys(found["seconds"], 1)}})
    assert [row["goal"] for row in rows] == [1.3, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_quick_writes_what_is_promised(name: str, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}
    output = tmp_path / "found.json"
    words = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--output", str(output)]
    words += ["--dataset", str(MRPC) if MRPC.is_dir() else "builtin:pairs"]
    subprocess.run(words, check=True, cwd=tmp_path)
    check_record(json.loads(output.read_text()), name)
    assert before == {path: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}
