import numpy as np
import pytest
import torch

from peft_mrpc.errors import UserError
from peft_mrpc.models.batched_inference import (
    compute_with_retry,
    length_sorted_batches,
    run_batched,
)


def test_batches_contain_every_row_once_and_similar_lengths() -> None:
    lengths = [3, 9, 1, 9, 5]
    assert length_sorted_batches(lengths, 2) == [[1, 3], [4, 0], [2]]
    # At most ten tokens with padding: two of 5 or less, or one of 9.
    assert length_sorted_batches(lengths, 4, max_tokens=10) == [[1], [3], [4, 0], [2]]
    assert length_sorted_batches([30, 1], 4, max_tokens=10) == [[0], [1]]


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
