import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROWS, launcher, run_command

from peft_mrpc.errors import UserError
from peft_mrpc.models.batched_inference import (
    compute_with_retry,
    length_sorted_batches,
    run_batched,
)
from peft_mrpc.runs.run import load_run

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


def test_batches_contain_every_row_once_and_similar_lengths() -> None:
    lengths = [3, 9, 1, 9, 5]
    assert length_sorted_batches(lengths, 2) == [[1, 3], [4, 0], [2]]
    # At most ten tokens with padding: two of 5 or less, or one of 9.
    assert length_sorted_batches(lengths, 4, max_tokens=10) == [[1], [3], [4, 0], [2]]
    assert length_sorted_batches([30, 1], 4, max_tokens=10) == [[0], [1]]


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
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    assert len(said) == processes and said[0].startswith(f"rank 0 of {processes}")
    assert sum(int(line.split()[-1]) for line in said) == rows


def test_runs_in_one_process_without_a_launcher() -> None:
    scores = run_batched([1, 2, 3], 2, lambda rows: np.array([[r] for r in rows], float), "")
    assert scores.tolist() == [[0], [1], [2]]


def test_halves_a_batch_that_does_not_fit_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def score(rows: list[int]) -> np.ndarray:
        tried.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return np.array([[10.0 * row] for row in rows])

    assert compute_with_retry([3, 1, 4, 0, 5], score).tolist() == [[30], [10], [40], [0], [50]]
    assert tried == [5, 2, 3, 1, 2]
    assert "out of memory with a batch of 5 examples: retrying with 2" in caplog.text

    def fail(rows: list[int]) -> np.ndarray:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="out of memory with row 1 by itself. Use a smaller"):
        compute_with_retry([0, 1], fail)


@pytest.mark.distributed
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


@pytest.mark.distributed
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
