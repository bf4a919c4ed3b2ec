"""Metrics of several seeds as one: means, deviations, the worst."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SHOWN_FIGURES = ("accuracy", "macro_f1", "f1", "roc_auc", "mcc")
# What a metrics.json says of the rows and not of the answers: the same for every seed.
FACTS = ("num_examples", "majority_accuracy")


def combine_metrics(values: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """One split's metrics over seeds.

    Args:
        values: Each seed's entry of `metrics.json`.
        seeds: The seeds.
    Returns:
        The same keys with the means (but the first seed's confusion matrix, whose model and
        predictions the Run is read for), `std`, the sample standard deviations, each seed's main
        figures, and the seed with the lowest accuracy (then macro F1).
    """
    worst = min(range(len(seeds)), key=lambda i: (values[i]["accuracy"], values[i]["macro_f1"]))
    figures = [{k: v for k, v in value.items() if k not in FACTS} for value in values]
    return {
        **average(values),
        "std": average(figures, statistics.stdev),
        "num_seeds": len(seeds),
        "worst_seed": seeds[worst],
        "seeds": {
            str(seed): {name: value[name] for name in SHOWN_FIGURES}
            for seed, value in zip(seeds, values, strict=True)
        },
    }


def average(
    values: Sequence[Any], of: Callable[[Sequence[float]], float] = statistics.fmean
) -> dict[str, Any]:
    """Mappings of one shape as one, each number the mean (or the spread) of theirs.

    None stays where any has none; a mean of lists (the confusion matrix) is the first of them, a
    spread leaves them out.
    """
    combined: dict[str, Any] = {}
    for key, first in values[0].items():
        theirs = [value[key] for value in values]
        if isinstance(first, Mapping):
            combined[key] = average(theirs, of)
        elif isinstance(first, list):
            combined |= {key: first} if of is statistics.fmean else {}
        elif None in theirs:
            combined[key] = None
        elif of is statistics.fmean and all(value == first for value in theirs):
            combined[key] = first  # a count stays a whole number
        else:
            combined[key] = of(theirs)
    return combined


def seeds_record(records: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """`run.json` of Runs over several seeds: the first one's, with times and memory of each.

    A time without `total` in its name is the mean: what training once costs.
    """
    first = records[0]
    timings = [record["timing"] for record in records]
    memories = [record["peak_memory"] for record in records]
    totals = {
        f"total_{name}": sum(timing[name] for timing in timings)
        for name in ("train_seconds", "score_seconds")
    }
    return {
        **{key: value for key, value in first.items() if key != "log_history"},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seeds": list(seeds),
        "peak_memory": {key: max(memory[key] for memory in memories) for key in memories[0]},
        "timing": {
            **average(timings),
            **totals,
            "seeds": {
                str(seed): {**timing, "peak_memory": memory}
                for seed, timing, memory in zip(seeds, timings, memories, strict=True)
            },
        },
        "config": {**first["config"], "seeds": [str(seed) for seed in seeds]},
    }
