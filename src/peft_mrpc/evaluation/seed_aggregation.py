"""Aggregate metrics and records of one training over several seeds."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Entries of `metrics.json` that describe the examples and not the predictions.
EXAMPLE_STATISTICS = ("num_examples", "majority_accuracy")
# Metrics stored for every seed.
SEED_METRICS = ("accuracy", "macro_f1", "f1", "roc_auc", "mcc")


def aggregate_metrics(values: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Aggregate the metrics of one split over seeds.

    Args:
        values: Each seed's entry of `metrics.json`.
        seeds: The seeds.
    Returns:
        The same keys with means. The confusion matrix is that of the first seed, whose model
        represents the Run. In addition: `std`, the sample standard deviations; `num_seeds`;
        `seeds`, the main metrics of each seed; `worst_seed`, the seed with the lowest accuracy
        (ties: the lowest macro F1).
    """
    worst = min(range(len(seeds)), key=lambda i: (values[i]["accuracy"], values[i]["macro_f1"]))
    metrics = [{k: v for k, v in value.items() if k not in EXAMPLE_STATISTICS} for value in values]
    return {
        **aggregate_nested(values),
        "std": aggregate_nested(metrics, statistics.stdev),
        "num_seeds": len(seeds),
        "worst_seed": seeds[worst],
        "seeds": {
            str(seed): {name: value[name] for name in SEED_METRICS}
            for seed, value in zip(seeds, values, strict=True)
        },
    }


def aggregate_nested(
    values: Sequence[Mapping[str, Any]],
    reduce: Callable[[Sequence[float]], float] = statistics.fmean,
) -> dict[str, Any]:
    """Reduce the numbers of equally shaped mappings, by default to their means.

    A number is None where any of the values is None. Means of lists (the confusion matrix) and
    texts are the first value; other reductions omit them.
    """
    result: dict[str, Any] = {}
    for key, first in values[0].items():
        entries = [value[key] for value in values]
        if isinstance(first, Mapping):
            result[key] = aggregate_nested(entries, reduce)
        elif isinstance(first, list | str):
            result |= {key: first} if reduce is statistics.fmean else {}
        elif None in entries:
            result[key] = None
        elif reduce is statistics.fmean and all(entry == first for entry in entries):
            result[key] = first  # counts stay integers
        else:
            result[key] = reduce(entries)
    return result


def aggregate_records(records: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Aggregate the contents of `run.json` over seeds.

    Returns:
        The first record without its log, with `seeds`, the maximum of `peak_memory`, and `timing`:
        means, totals (`total_train_seconds`, `total_score_seconds`) and the values of each seed.
    """
    first = records[0]
    timings = [record["timing"] for record in records]
    memories = [record["peak_memory"] for record in records]
    totals = {
        f"total_{name}": sum(timing[name] for timing in timings)
        for name in ("train_seconds", "score_seconds")
        if all(timing.get(name) is not None for timing in timings)
    }
    return {
        **{key: value for key, value in first.items() if key != "log_history"},
        "finished": max(record["finished"] for record in records),
        "seeds": list(seeds),
        "peak_memory": {key: max(memory[key] for memory in memories) for key in memories[0]},
        "timing": {
            **aggregate_nested(timings),
            **totals,
            "seeds": {
                str(seed): {**timing, "peak_memory": memory}
                for seed, timing, memory in zip(seeds, timings, memories, strict=True)
            },
        },
    }
