"""How sure a comparison is: an interval for every figure, a test for every difference."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.evaluation.bootstrap import (
    DRAWS,
    Interval,
    bootstrap,
    percentile_interval,
    reflected_interval,
    row_losses,
)
from peft_mrpc.evaluation.significance import (
    almost_stochastic_order,
    detectable_difference,
    equivalence,
    holm,
    mcnemar,
    permutation,
    wilson_interval,
)
from peft_mrpc.formatting import p_text
from peft_mrpc.report.tables import FIGURE_NAMES

if TYPE_CHECKING:
    from peft_mrpc.report.comparison import Comparison

# Below this a difference is called one.
LEVEL = 0.05
MIN_SEEDS = 3
# Accuracies less far apart than this are the same to a reader who asks whether one costs anything.
MARGIN = 0.02
# Not defined where the rows lack a label.
AREAS = ("roc_auc", "average_precision")


def describe_evidence(
    comparison: "Comparison", margin: float = MARGIN, seed: int = 0
) -> dict[str, Any]:
    """Intervals of each Run's figures, and each two Runs' difference.

    A Run over several seeds is right on a row by the share of its seeds that are, and its figures
    are the means of its seeds' in every draw of rows; over the seeds themselves two Runs are
    compared by almost stochastic order.

    Args:
        comparison: The Runs.
        margin: Accuracies less far apart than this count as equivalent.
        seed: Fixes all draws.
    Returns:
        `intervals`, one mapping for each Run: 95% for `accuracy` (Wilson) and, by paired
        bootstrap, `f1` of each label and the other figures. `differences`, one for each two Runs,
        the more accurate first: `accuracy` (in shares) with its interval, the `others`, rows
        that one alone has right (by the first seed), the exact McNemar probability (over seeds: by
        permutation), the same by Holm for all these differences, the least difference that these
        rows would show, and the probability of the data if they were `margin` apart.
    """
    drawn = _draw(comparison, seed)
    references = comparison.predictions[0].references
    hits = [
        np.array([one.predictions == references for one in seeds]) for seeds in comparison.answers
    ]
    order = sorted(range(len(hits)), key=lambda n: -hits[n].mean())
    differences = [
        _difference(comparison, drawn, hits, pair, margin, seed) for pair in combinations(order, 2)
    ]
    for one, adjusted in zip(differences, holm([one["p"] for one in differences]), strict=True):
        one["holm"] = adjusted
    return {
        "level": 0.95,
        "draws": DRAWS,
        "margin": margin,
        "intervals": _intervals(comparison, drawn, hits),
        "differences": differences,
    }


def _difference(
    comparison: "Comparison",
    drawn: Mapping[str, NDArray[np.float64]],
    hits: Sequence[NDArray[np.bool_]],
    pair: tuple[int, int],
    margin: float,
    seed: int,
) -> dict[str, Any]:
    """What is known of two Runs' difference, but for Holm's adjustment."""
    first, second = pair
    one, other = hits[first], hits[second]  # right or not, by seed and row
    gaps = one.mean(axis=0) - other.mean(axis=0)
    by_draw = drawn["accuracy"][first] - drawn["accuracy"][second]
    is_single = len(one) == len(other) == 1
    return {
        "first": comparison.names[first],
        "second": comparison.names[second],
        "accuracy": float(gaps.mean()),
        "interval": _as_list(percentile_interval(by_draw)),
        "others": _other_differences(comparison, drawn, first, second),
        "only_first_right": int((one[0] & ~other[0]).sum()),
        "only_second_right": int((other[0] & ~one[0]).sum()),
        "test": "mcnemar" if is_single else "permutation",
        "p": mcnemar(one[0], other[0]) if is_single else permutation(gaps, seed=seed),
        "detectable": detectable_difference(len(gaps), float((one[0] != other[0]).mean())),
        "equivalence": equivalence(gaps, margin),
        "dominance": _dominance(one.mean(axis=1), other.mean(axis=1)),
    }


def _draw(comparison: "Comparison", seed: int) -> dict[str, NDArray[np.float64]]:
    """Each Run's figures in every draw of rows, the mean of its seeds', [R, D] each."""
    flat = [one for seeds in comparison.answers for one in seeds]
    references, num_labels = flat[0].references, len(comparison.label_names)
    drawn = bootstrap(
        references,
        [one.predictions for one in flat],
        [one.probabilities for one in flat],
        num_labels,
        seed=seed,
    )
    ends = np.cumsum([len(seeds) for seeds in comparison.answers])[:-1]
    has_areas = len(np.unique(references)) == num_labels
    return {
        name: np.stack([part.mean(axis=0) for part in np.split(values, ends)])
        for name, values in drawn.items()
        if has_areas or name not in AREAS
    }


def _intervals(
    comparison: "Comparison",
    drawn: Mapping[str, NDArray[np.float64]],
    hits: Sequence[NDArray[np.bool_]],
) -> list[dict[str, Any]]:
    intervals = []
    for number, name in enumerate(comparison.names):
        own = {key: _as_list(percentile_interval(of[number])) for key, of in drawn.items()}
        error = reflected_interval(drawn["ece"][number], _calibration_error(comparison, number))
        own["ece"] = [max(0.0, end) for end in _as_list(error)]
        exact = wilson_interval(round(hits[number].mean(axis=0).sum()), hits[number].shape[1])
        f1 = {label: own.pop(f"f1_{index}") for index, label in enumerate(comparison.label_names)}
        intervals.append({"name": name, **own, "accuracy": _as_list(exact), "f1": f1})
    return intervals


def _calibration_error(comparison: "Comparison", number: int) -> float:
    """A Run's ECE over its seeds, as it is measured in every draw."""
    gaps = [row_losses(o.references, o.probabilities)[:, 1:] for o in comparison.answers[number]]
    return float(np.mean([np.abs(own.mean(axis=0)).sum() for own in gaps]))


def _other_differences(
    comparison: "Comparison", drawn: Mapping[str, NDArray[np.float64]], first: int, second: int
) -> dict[str, Any]:
    """Difference and interval of every figure but accuracy."""
    one, two = (comparison.runs[n].metrics[comparison.split] for n in (first, second))
    values = {name: (one[name], two[name]) for name in FIGURE_NAMES}
    for index, label in enumerate(comparison.label_names):
        values[f"f1_{index}"] = (one["f1"][label], two["f1"][label])
    found = {}
    for name, (left, right) in values.items():
        if name in drawn and None not in (left, right):
            gaps = drawn[name][first] - drawn[name][second]
            is_error = name == "ece"
            interval = (
                reflected_interval(gaps, left - right) if is_error else percentile_interval(gaps)
            )
            found[name] = {"difference": left - right, "interval": _as_list(interval)}
    by_label = {
        label: found.pop(f"f1_{index}") for index, label in enumerate(comparison.label_names)
    }
    return {**found, "f1": by_label}


def _as_list(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _dominance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Almost stochastic order over the seeds' accuracies, where both have some."""
    if min(len(one), len(other)) < MIN_SEEDS:
        return None
    return almost_stochastic_order(one.tolist(), other.tolist())


def is_sure(difference: Mapping[str, Any]) -> bool:
    """Whether a difference is one, all those that were looked at counted."""
    return float(difference["holm"]) < LEVEL


def is_same(difference: Mapping[str, Any]) -> bool:
    """Whether two accuracies are surely less than the margin apart."""
    return float(difference["equivalence"]) < LEVEL


def difference_header(margin: float) -> list[str]:
    """Names of the columns of the table of differences."""
    return [
        *("better", "than", "points", "95%", "sure", "p (Holm)", "p", "ROC-AUC, points"),
        *("right alone", f"same within {100 * margin:g} points", "over seeds"),
    ]


def difference_cells(differences: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The differences as text."""
    return [
        [
            one["first"],
            one["second"],
            f"{100 * one['accuracy']:+.1f}",
            " to ".join(f"{100 * end:+.1f}" for end in one["interval"]),
            "yes" if is_sure(one) else "no",
            p_text(one["holm"]),
            p_text(one["p"]),
            _area_text(one["others"].get("roc_auc")),
            f"{one['only_first_right']} : {one['only_second_right']}",
            f"{'yes' if is_same(one) else 'no'} ({p_text(one['equivalence'])})",
            "-" if one["dominance"] is None else f"ε {one['dominance']:.2f}",
        ]
        for one in differences
    ]


def _area_text(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    ends = " to ".join(f"{100 * end:+.1f}" for end in found["interval"])
    return f"{100 * found['difference']:+.1f} ({ends})"
