"""Time of the paired bootstrap behind a comparison: every figure of every run, 10,000 times.

    python benchmarks/bootstrap.py

Answers of 5 runs to 1,725 pairs (MRPC's test split has as many) are drawn by chance, each run right
on about four of five. The peer measures the same figures of one draw after another with
scikit-learn, on fewer draws; both are said in draws a second. One thread.
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

from peft_mrpc.evaluation.bootstrap import DRAWS, bootstrap

NUM_RUNS, NUM_ROWS, PEER_DRAWS = 5, 1725, 100
GOAL_SECONDS = 2.0
Array = NDArray[np.float64]


def main() -> None:
    options = build_parser(__doc__).parse_args()
    report = build_report("bootstrap", options)
    references, chances = draw_answers()
    predictions = [(own[:, 1] > 0.5).astype(int) for own in chances]
    bootstrap(references, predictions, chances, 2, draws=100)  # what is compiled or loaded first
    draws = DRAWS // 10 if options.quick else DRAWS
    seconds = min(time_ours(references, predictions, chances, draws) for _ in range(3))
    peer = time_peer(references, predictions, chances, PEER_DRAWS)
    row = speed_row(
        f"{NUM_RUNS} runs x {NUM_ROWS:,} pairs, all figures",
        *(draws / seconds, PEER_DRAWS / peer, round(DRAWS / GOAL_SECONDS * peer / PEER_DRAWS)),
        seconds=seconds,
        draws=draws,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    row["unit"] = "draws/s"
    report.write([row])
    report.show(goal_table([row]), "goals")
    print(f"{draws:,} draws in {seconds:.2f} s (to reach: 10,000 in {GOAL_SECONDS:g} s)")


def draw_answers() -> tuple[NDArray[np.int64], list[Array]]:
    """True labels [N], and the probabilities of each run, [N, 2]."""
    draw = np.random.default_rng(0)
    references = (draw.random(NUM_ROWS) < 0.665).astype(int)
    scores = [draw.normal((2 * references - 1) * 0.9) + 0.4 for _ in range(NUM_RUNS)]
    positive = [1 / (1 + np.exp(-2 * own)) for own in scores]
    return references, [np.stack([1 - p, p], axis=1) for p in positive]


def time_ours(
    references: NDArray[np.int64],
    predictions: Sequence[NDArray[np.int64]],
    chances: Sequence[Array],
    draws: int,
) -> float:
    started = time.perf_counter()
    bootstrap(references, predictions, chances, 2, draws=draws)
    return time.perf_counter() - started


def time_peer(
    references: NDArray[np.int64],
    predictions: Sequence[NDArray[np.int64]],
    chances: Sequence[Array],
    draws: int,
) -> float:
    """What users write: draw rows, and ask scikit-learn for each figure of each run."""
    draw = np.random.default_rng(0)
    started = time.perf_counter()
    for _ in range(draws):
        rows = draw.integers(NUM_ROWS, size=NUM_ROWS)
        labels = references[rows]
        for said, own in zip(predictions, chances, strict=True):
            for measure in (accuracy_score, matthews_corrcoef):
                measure(labels, said[rows])
            f1_score(labels, said[rows], average=None)
            for measure in (roc_auc_score, average_precision_score, brier_score_loss):
                measure(labels, own[rows, 1])
    return time.perf_counter() - started


if __name__ == "__main__":
    run(main)
