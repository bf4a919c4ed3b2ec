"""Several processes score as one."""

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROWS, launcher, run_command
from endpoint_server import EndpointServer

from peft_mrpc.runs.run import load_run

pytestmark = pytest.mark.distributed

SHARD_SCRIPT = r"""
import sys, numpy as np
from peft_mrpc.distributed import process_state
from peft_mrpc.models.batched_inference import run_batched
rows = int(sys.argv[1])
state = process_state()
seen = []
def score(batch):
    seen.extend(batch)
    return np.array([[row, 2.0 * row] for row in batch])
scores = run_batched([7 - row % 3 for row in range(rows)], 2, score, "")
assert scores.tolist() == [[row, 2.0 * row] for row in range(rows)], scores
# One write a line: two ranks share the pipe.
sys.stdout.write(f"rank {state.process_index} of {state.num_processes} scored {len(seen)}\n")
"""


@pytest.mark.parametrize(("rows", "processes"), [(9, 4), (1, 2)])
def test_results_are_in_row_order_for_any_number_of_processes(
    rows: int, processes: int, tmp_path: Path
) -> None:
    script = tmp_path / "shard.py"
    script.write_text(SHARD_SCRIPT)
    done = subprocess.run(
        [*launcher(processes), str(script), str(rows)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    assert len(lines) == processes and lines[0].startswith(f"rank 0 of {processes}")
    assert sum(int(line.split()[-1]) for line in lines) == rows


def test_two_processes_predict_as_one(
    trained_run: Path, pair_files: dict[str, str], tmp_path: Path
) -> None:
    outputs = []
    for processes in (1, 2):
        output = tmp_path / f"{processes}.jsonl"
        done = run_command(
            *("predict", str(trained_run), "--input", pair_files["unlabelled"]),
            *("--output", str(output), "--batch_size", "2"),
            processes=processes,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        outputs.append([json.loads(line) for line in output.read_text().splitlines()])
    one, two = outputs
    assert len(one) == len(two) == len(ROWS)
    for first, second in zip(one, two, strict=True):
        assert [first[k] for k in ("sentence1", "sentence2", "prediction")] == [
            second[k] for k in ("sentence1", "sentence2", "prediction")
        ]
        assert abs(first["probability_equivalent"] - second["probability_equivalent"]) < 1e-5


def test_two_processes_prompt_as_one(tmp_path: Path) -> None:
    probabilities = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = run_command(
            *("hard_prompt", "--model", "builtin:smollm2", "--dataset", "builtin:pairs"),
            *("--split", "test", "--max_eval_samples", "13", "--batch_size", "3"),
            *("--output_dir", str(out)),
            processes=processes,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        run = load_run(out)
        assert run.record["num_processes"] == processes
        probabilities.append(run.predictions("test"))
    one, two = probabilities
    assert (one.idx == two.idx).all() and (one.predictions == two.predictions).all()
    assert np.abs(one.probabilities - two.probabilities).max() < 1e-5


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_an_error_of_one_process_is_reported_with_its_rank(
    server: EndpointServer, pair_files: dict[str, str], tmp_path: Path
) -> None:
    _, second, *_ = sorted(ROWS, key=lambda row: -len(row[0] + row[1]))
    server.forbidden = second[0]
    options = ["--endpoint", server.url, "--model", "served", "--batch_size", "1"]
    options += ["--validation_file", pair_files["validation"]]
    options += ["--output_dir", str(tmp_path / "run")]
    process = run_command("hard_prompt", *options, processes=2)
    assert process.returncode != 0
    prefix = "peft-mrpc: rank 1: --endpoint: got status 400"
    (line,) = [line for line in process.stderr.splitlines() if line.startswith(prefix)]
    assert "no such model" in line
    assert not (tmp_path / "run").exists()
