from typing import Any

import pytest

from peft_mrpc.evaluation.seed_aggregation import aggregate_metrics, aggregate_records

ROWS: list[dict[str, Any]] = [
    {
        "accuracy": accuracy,
        "macro_f1": 0.5,
        "mcc": 0.0,
        "f1": {"no": 0.0, "yes": f1},
        "roc_auc": area,
        "num_examples": 10,
        "majority_accuracy": 0.6,
        "confusion_matrix": [[1, 2], [3, 4]],
    }
    for accuracy, f1, area in ((0.5, 0.2, 0.5), (0.7, 0.4, None))
]


def test_metrics_are_means_and_standard_deviations_worked_by_hand() -> None:
    values = aggregate_metrics(ROWS, [4, 9])
    assert values["accuracy"] == pytest.approx(0.6)
    # Two values d apart have the sample standard deviation d / sqrt(2).
    assert values["std"]["accuracy"] == pytest.approx(0.2 / 2**0.5)
    assert values["std"]["f1"] == pytest.approx({"no": 0.0, "yes": 0.2 / 2**0.5})
    assert values["roc_auc"] is None and values["std"]["roc_auc"] is None
    assert values["num_examples"] == 10 and values["num_seeds"] == 2
    assert values["confusion_matrix"] == [[1, 2], [3, 4]]
    assert "num_examples" not in values["std"] and "confusion_matrix" not in values["std"]


def test_each_seed_keeps_its_main_metrics_and_the_worst_is_named() -> None:
    values = aggregate_metrics(ROWS, [4, 9])
    assert values["worst_seed"] == 4
    assert (
        values["seeds"]["9"]["accuracy"] == 0.7 and "majority_accuracy" not in values["seeds"]["9"]
    )


def test_records_have_mean_and_total_times_and_the_largest_memory() -> None:
    records = [
        {
            "seed": seed,
            "finished": f"2025-01-0{seed}T00:00:00Z",
            "log_history": [{"loss": 1.0}],
            "timing": {"train_seconds": seconds, "score_seconds": 1.0},
            "peak_memory": {"resident_bytes": memory},
        }
        for seed, seconds, memory in ((1, 2.0, 50), (2, 4.0, 40))
    ]
    record = aggregate_records(records, [1, 2])
    assert record["seed"] == 1 and record["seeds"] == [1, 2] and "log_history" not in record
    assert record["timing"]["train_seconds"] == 3 and record["timing"]["total_train_seconds"] == 6
    assert record["timing"]["seeds"]["2"]["train_seconds"] == 4
    assert record["peak_memory"] == {"resident_bytes": 50}
    assert record["finished"] == "2025-01-02T00:00:00Z"
