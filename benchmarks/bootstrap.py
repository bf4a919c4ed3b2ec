"""Speed of the paired bootstrap that computes the intervals of a comparison.

    python benchmarks/bootstrap.py

The predictions of 5 Runs for 1,725 examples, the size of MRPC's test split, are random, with an
accuracy of about 80 %. The peer computes the same metrics with scikit-learn, one resample after the
other. Both speeds are in resamples per second with one thread. The result goes into
`bootstrap.json` beside this file, the table into `bootstrap.md`.
"""

import resource
import time
from collections.abc import Sequence

import numpy as np
from bench import build_parser, build_report, goal_table, run, speed_row
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    matthews_corrcoef,
    roc_auc_score,
)

from peft_mrpc.evaluation.bootstrap import NUM_RESAMPLES, bootstrap

NUM_RUNS, NUM_EXAMPLES, PEER_RESAMPLES = 5, 1725, 100
GOAL_SECONDS = 2.0
Array = NDArray[np.float64]


def main() -> None:
    options = build_parser(__doc__).parse_args()
    report = build_report("bootstrap", options)
    references, probabilities = draw_predictions()
    predictions = [(rows[:, 1] > 0.5).astype(int) for rows in probabilities]
    bootstrap(references, predictions, probabilities, 2, num_resamples=100)  # warm-up
    num_resamples = NUM_RESAMPLES // 10 if options.quick else NUM_RESAMPLES
    seconds = min(
        time_ours(references, predictions, probabilities, num_resamples) for _ in range(3)
    )
    peer = time_peer(references, predictions, probabilities, PEER_RESAMPLES)
    row = speed_row(
        f"{NUM_RUNS} runs x {NUM_EXAMPLES:,} examples, all metrics",
        num_resamples / seconds,
        PEER_RESAMPLES / peer,
        round(NUM_RESAMPLES / GOAL_SECONDS * peer / PEER_RESAMPLES),
        seconds=seconds,
        num_resamples=num_resamples,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        unit="resamples/s",
    )
    report.write([row])
    report.show(goal_table([row]), "goals")
    print(f"{num_resamples:,} resamples in {seconds:.2f} s (goal: 10,000 in {GOAL_SECONDS:g} s)")


def draw_predictions() -> tuple[NDArray[np.int64], list[Array]]:
    """True labels, [N], and the probabilities of each run, [N, 2]."""
    rng = np.random.default_rng(0)
    references = (rng.random(NUM_EXAMPLES) < 0.665).astype(int)
    scores = [rng.normal((2 * references - 1) * 0.9) + 0.4 for _ in range(NUM_RUNS)]
    positive = [1 / (1 + np.exp(-2 * score)) for score in scores]
    return references, [np.stack([1 - p, p], axis=1) for p in positive]


def time_ours(
    references: NDArray[np.int64],
    predictions: Sequence[NDArray[np.int64]],
    probabilities: Sequence[Array],
    num_resamples: int,
) -> float:
    started = time.perf_counter()
    bootstrap(references, predictions, probabilities, 2, num_resamples=num_resamples)
    return time.perf_counter() - started


def time_peer(
    references: NDArray[np.int64],
    predictions: Sequence[NDArray[np.int64]],
    probabilities: Sequence[Array],
    num_resamples: int,
) -> float:
    """Resample the examples, and compute each metric of each run with scikit-learn."""
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    for _ in range(num_resamples):
        rows = rng.integers(NUM_EXAMPLES, size=NUM_EXAMPLES)
        labels = references[rows]
        for predicted, scores in zip(predictions, probabilities, strict=True):
            for measure in (accuracy_score, matthews_corrcoef):
                measure(labels, predicted[rows])
            f1_score(labels, predicted[rows], average=None)
            for measure in (roc_auc_score, average_precision_score, brier_score_loss):
                measure(labels, scores[rows, 1])
    return time.perf_counter() - started


if __name__ == "__main__":
    run(main)
