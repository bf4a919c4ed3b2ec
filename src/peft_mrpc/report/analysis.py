"""Significance analysis: an interval for each metric, tests for each difference of two Runs."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.evaluation.bootstrap import NUM_RESAMPLES, bootstrap, percentile_interval
from peft_mrpc.evaluation.metrics import METRICS, SCALAR_METRICS
from peft_mrpc.evaluation.significance import (
    equivalence_test,
    holm_adjustment,
    mcnemar_test,
    permutation_test,
    wilson_interval,
)
from peft_mrpc.report.comparison import Comparison

SIGNIFICANCE_LEVEL = 0.05


def analyze(comparison: Comparison, margin: float = 0.02, seed: int = 0) -> dict[str, Any]:
    """Compute intervals of each Run's metrics, and analyze the differences of all pairs of Runs.

    For a multi-seed Run, an example counts as correct by the share of seeds that predict it
    correctly, and metrics are means over the seeds in every resample.

    Args:
        comparison: The Runs.
        margin: Accuracies that differ by less than this are equivalent.
        seed: Seed of all draws.
    Returns:
        The part `analysis` of `report.json`, described in `assets/report.schema.json`.
    """
    resampled = _resample_metrics(comparison, seed)
    is_correct = [
        np.array([rows.is_correct for rows in seeds]) for seeds in comparison.seed_predictions
    ]  # [S, N] each
    order = sorted(range(len(is_correct)), key=lambda n: -is_correct[n].mean())
    differences = [
        _difference(comparison, resampled, is_correct, pair, margin, seed)
        for pair in combinations(order, 2)
    ]
    adjusted = holm_adjustment([difference["p"] for difference in differences])
    for difference, p_value in zip(differences, adjusted, strict=True):
        difference["holm"] = p_value
    return {
        "level": 0.95,
        "num_resamples": NUM_RESAMPLES,
        "margin": margin,
        "intervals": _intervals(comparison, resampled, is_correct),
        "differences": differences,
    }


def is_significant(difference: Mapping[str, Any]) -> bool:
    """Whether two accuracies differ significantly, adjusted for the number of comparisons."""
    return float(difference["holm"]) < SIGNIFICANCE_LEVEL


def is_equivalent(difference: Mapping[str, Any]) -> bool:
    """Whether two accuracies are shown to differ by less than the margin."""
    return float(difference["equivalence"]) < SIGNIFICANCE_LEVEL


def find_difference(first: str, second: str, analysis: Mapping[str, Any]) -> Mapping[str, Any]:
    """The difference of two Runs, whichever of them is the first."""
    difference: Mapping[str, Any] = next(
        entry
        for entry in analysis["differences"]
        if {entry["first"], entry["second"]} == {first, second}
    )
    return difference


def _difference(
    comparison: Comparison,
    resampled: Mapping[str, NDArray[np.float64]],
    is_correct: Sequence[NDArray[np.bool_]],
    pair: tuple[int, int],
    margin: float,
    seed: int,
) -> dict[str, Any]:
    """The analysis of two Runs, without the adjusted p value."""
    first, second = pair
    by_example = is_correct[first].mean(axis=0) - is_correct[second].mean(axis=0)
    by_resample = resampled["accuracy"][first] - resampled["accuracy"][second]
    # The first seed represents a multi-seed Run.
    first_correct, second_correct = is_correct[first][0], is_correct[second][0]
    if len(is_correct[first]) == len(is_correct[second]) == 1:
        test, p_value = "mcnemar", mcnemar_test(first_correct, second_correct)
    else:
        test, p_value = "permutation", permutation_test(by_example, seed)
    return {
        "first": comparison.names[first],
        "second": comparison.names[second],
        "accuracy": float(by_example.mean()),
        "interval": percentile_interval(by_resample),
        "other_metrics": _metric_differences(comparison, resampled, first, second),
        "only_first_correct": int((first_correct & ~second_correct).sum()),
        "only_second_correct": int((second_correct & ~first_correct).sum()),
        "test": test,
        "p": p_value,
        "equivalence": equivalence_test(by_example, margin),
    }


def _resample_metrics(comparison: Comparison, seed: int) -> dict[str, NDArray[np.float64]]:
    """Each Run's metrics in each resample, means over its seeds, [R, D] each."""
    flat = [rows for seeds in comparison.seed_predictions for rows in seeds]
    num_labels = len(comparison.label_names)
    resampled = bootstrap(
        comparison.references,
        [rows.predictions for rows in flat],
        [rows.probabilities for rows in flat],
        num_labels,
        seed=seed,
    )
    ends = np.cumsum([len(seeds) for seeds in comparison.seed_predictions])[:-1]
    has_all_labels = len(np.unique(comparison.references)) == num_labels
    return {
        name: np.stack([part.mean(axis=0) for part in np.split(values, ends)])
        for name, values in resampled.items()
        if has_all_labels or name not in METRICS or not METRICS[name].needs_all_labels
    }


def _intervals(
    comparison: Comparison,
    resampled: Mapping[str, NDArray[np.float64]],
    is_correct: Sequence[NDArray[np.bool_]],
) -> list[dict[str, Any]]:
    intervals = []
    for number, name in enumerate(comparison.names):
        entry: dict[str, Any] = {
            key: percentile_interval(values[number]) for key, values in resampled.items()
        }
        num_correct = round(is_correct[number].mean(axis=0).sum())
        entry["accuracy"] = wilson_interval(num_correct, is_correct[number].shape[1])
        f1 = {label: entry.pop(f"f1_{index}") for index, label in enumerate(comparison.label_names)}
        intervals.append({"name": name, **entry, "f1": f1})
    return intervals


def _metric_differences(
    comparison: Comparison, resampled: Mapping[str, NDArray[np.float64]], first: int, second: int
) -> dict[str, Any]:
    """Difference and interval of each resampled metric but accuracy."""
    first_metrics, second_metrics = comparison.metrics[first], comparison.metrics[second]

    def entry(key: str, first_value: float, second_value: float) -> dict[str, Any]:
        interval = percentile_interval(resampled[key][first] - resampled[key][second])
        return {"difference": first_value - second_value, "interval": interval}

    differences: dict[str, Any] = {
        metric.name: entry(metric.name, first_metrics[metric.name], second_metrics[metric.name])
        for metric in SCALAR_METRICS
        if metric.name != "accuracy" and metric.name in resampled
    }
    differences["f1"] = {
        label: entry(f"f1_{index}", first_metrics["f1"][label], second_metrics["f1"][label])
        for index, label in enumerate(comparison.label_names)
    }
    return differences
