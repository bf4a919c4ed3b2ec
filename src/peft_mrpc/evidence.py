"""How sure a comparison is: an interval for every figure, a test for every difference."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from peft_mrpc.statistics import (
    DRAWS,
    Interval,
    almost_stochastic_order,
    bootstrap,
    detectable_difference,
    holm,
    mcnemar,
    percentile_interval,
    wilson_interval,
)

if TYPE_CHECKING:
    from peft_mrpc.compare import Comparison

# Below this a difference is called one.
LEVEL = 0.05
MIN_SEEDS = 3


def describe_evidence(comparison: "Comparison", seed: int = 0) -> dict[str, Any]:
    """Intervals of each Run's figures, and each two Runs' difference.

    Runs over several seeds are compared row by row by the first seed's answers, and over their
    seeds by almost stochastic order.

    Returns:
        `intervals`, one mapping for each Run: 95 % for `accuracy` (Wilson) and, by paired
        bootstrap, `f1` of each label, `macro_f1` and `roc_auc`. `differences`, one for each two
        Runs, the better first: `accuracy` (in shares) with its interval, rows that one alone has
        right, McNemar's exact probability, the same by Holm for all these differences, and the
        least difference that these rows would show.
    """
    rows = comparison.predictions
    references = rows[0].references
    is_binary = len(comparison.label_names) == 2
    drawn = bootstrap(
        references,
        [one.predictions for one in rows],
        [one.probabilities[:, 1] for one in rows] if is_binary else None,
        len(comparison.label_names),
        seed=seed,
    )
    right = [one.predictions == references for one in rows]
    intervals = []
    for number, name in enumerate(comparison.names):
        own = {key: _as_list(percentile_interval(of[number])) for key, of in drawn.items()}
        exact = wilson_interval(int(right[number].sum()), len(references))
        f1 = {label: own.pop(f"f1_{index}") for index, label in enumerate(comparison.label_names)}
        intervals.append({"name": name, **own, "accuracy": _as_list(exact), "f1": f1})
    order = sorted(range(len(rows)), key=lambda n: -right[n].mean())
    pairs = list(combinations(order, 2))
    p_values = [mcnemar(right[a], right[b]) for a, b in pairs]
    differences = [
        {
            "first": comparison.names[a],
            "second": comparison.names[b],
            "accuracy": float(right[a].mean() - right[b].mean()),
            "interval": _as_list(percentile_interval(drawn["accuracy"][a] - drawn["accuracy"][b])),
            "only_first_right": int((right[a] & ~right[b]).sum()),
            "only_second_right": int((right[b] & ~right[a]).sum()),
            "mcnemar": p_value,
            "holm": adjusted,
            "detectable": detectable_difference(
                len(references), float((right[a] != right[b]).mean())
            ),
            "dominance": _dominance(comparison, a, b),
        }
        for (a, b), p_value, adjusted in zip(pairs, p_values, holm(p_values), strict=True)
    ]
    return {"level": 0.95, "draws": DRAWS, "intervals": intervals, "differences": differences}


def _as_list(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _dominance(comparison: "Comparison", first: int, second: int) -> float | None:
    """Almost stochastic order over the seeds' accuracies, where both have some."""
    one, two = (
        [one["accuracy"] for one in values.get("seeds", {}).values()]
        for run in (comparison.runs[first], comparison.runs[second])
        for values in [run.metrics[comparison.split]]
    )
    if min(len(one), len(two)) < MIN_SEEDS:
        return None
    return almost_stochastic_order(one, two)


def is_sure(difference: Mapping[str, Any]) -> bool:
    """Whether a difference is one, all those that were looked at counted."""
    return float(difference["holm"]) < LEVEL


def difference_header() -> list[str]:
    """Names of the columns of the table of differences."""
    return [
        *("better", "than", "points", "95 %", "it alone right", "the other alone"),
        *("p (McNemar)", "p (Holm)", "sure", "over seeds"),
    ]


def difference_cells(differences: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The differences as text."""
    return [
        [
            one["first"],
            one["second"],
            f"{100 * one['accuracy']:+.1f}",
            " to ".join(f"{100 * end:+.1f}" for end in one["interval"]),
            str(one["only_first_right"]),
            str(one["only_second_right"]),
            p_text(one["mcnemar"]),
            p_text(one["holm"]),
            "yes" if is_sure(one) else "no",
            "-" if one["dominance"] is None else f"ε {one['dominance']:.2f}",
        ]
        for one in differences
    ]


def p_text(value: float) -> str:
    """A probability to read."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
