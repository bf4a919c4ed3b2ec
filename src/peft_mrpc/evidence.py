"""How sure a comparison is: an interval for every figure, a test for every difference."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.statistics import (
    DRAWS,
    Interval,
    almost_stochastic_order,
    bootstrap,
    detectable_difference,
    equivalence,
    holm,
    mcnemar,
    percentile_interval,
    permutation,
    wilson_interval,
)
from peft_mrpc.wording import p_text

if TYPE_CHECKING:
    from peft_mrpc.comparison import Comparison

# Below this a difference is called one.
LEVEL = 0.05
MIN_SEEDS = 3
# Accuracies less far apart than this are the same to a reader who asks whether one costs anything.
MARGIN = 0.02


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
        `intervals`, one mapping for each Run: 95 % for `accuracy` (Wilson) and, by paired
        bootstrap, `f1` of each label, `macro_f1` and `roc_auc`. `differences`, one for each two
        Runs, the better first: `accuracy` (in shares) with its interval, rows that one alone has
        right (by the first seed), the exact McNemar probability (over seeds: by permutation), the
        same by Holm for all these differences, the least difference that these rows would show,
        and the probability of the data if they were `margin` apart.
    """
    drawn = _draw(comparison, seed)
    references = comparison.predictions[0].references
    hits = [
        np.array([one.predictions == references for one in seeds]) for seeds in comparison.answers
    ]
    shares = [own.mean(axis=0) for own in hits]
    order = sorted(range(len(shares)), key=lambda n: -shares[n].mean())
    pairs = list(combinations(order, 2))
    p_values = [_p_value(hits[a], hits[b], seed) for a, b in pairs]
    differences = []
    for (a, b), p_value, adjusted in zip(pairs, p_values, holm(p_values), strict=True):
        gaps = shares[a] - shares[b]
        one, other = hits[a][0], hits[b][0]
        differences.append(
            {
                "first": comparison.names[a],
                "second": comparison.names[b],
                "accuracy": float(gaps.mean()),
                "interval": _as_list(
                    percentile_interval(drawn["accuracy"][a] - drawn["accuracy"][b])
                ),
                "only_first_right": int((one & ~other).sum()),
                "only_second_right": int((other & ~one).sum()),
                "test": "mcnemar" if len(hits[a]) == len(hits[b]) == 1 else "permutation",
                "p": p_value,
                "holm": adjusted,
                "detectable": detectable_difference(len(references), float((one != other).mean())),
                "equivalence": equivalence(gaps, margin),
                "dominance": _dominance(comparison, a, b),
            }
        )
    return {
        "level": 0.95,
        "draws": DRAWS,
        "margin": margin,
        "intervals": _intervals(comparison, drawn, shares),
        "differences": differences,
    }


def _draw(comparison: "Comparison", seed: int) -> dict[str, NDArray[np.float64]]:
    """Each Run's figures in every draw of rows, the mean of its seeds', [R, D] each."""
    flat = [one for seeds in comparison.answers for one in seeds]
    drawn = bootstrap(
        flat[0].references,
        [one.predictions for one in flat],
        [one.probabilities[:, 1] for one in flat] if len(comparison.label_names) == 2 else None,
        len(comparison.label_names),
        seed=seed,
    )
    ends = np.cumsum([len(seeds) for seeds in comparison.answers])[:-1]
    return {
        name: np.stack([part.mean(axis=0) for part in np.split(values, ends)])
        for name, values in drawn.items()
    }


def _intervals(
    comparison: "Comparison",
    drawn: Mapping[str, NDArray[np.float64]],
    shares: Sequence[NDArray[np.float64]],
) -> list[dict[str, Any]]:
    intervals = []
    for number, name in enumerate(comparison.names):
        own = {key: _as_list(percentile_interval(of[number])) for key, of in drawn.items()}
        exact = wilson_interval(round(shares[number].sum()), len(shares[number]))
        f1 = {label: own.pop(f"f1_{index}") for index, label in enumerate(comparison.label_names)}
        intervals.append({"name": name, **own, "accuracy": _as_list(exact), "f1": f1})
    return intervals


def _as_list(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _p_value(first: NDArray[np.bool_], second: NDArray[np.bool_], seed: int) -> float:
    """McNemar's for two Runs of one seed; else the test that it is a case of."""
    if len(first) == len(second) == 1:
        return mcnemar(first[0], second[0])
    return permutation(first.mean(axis=0) - second.mean(axis=0), seed=seed)


def _dominance(comparison: "Comparison", first: int, second: int) -> float | None:
    """Almost stochastic order over the seeds' accuracies, where both have some."""
    one, two = (
        [float((own.predictions == own.references).mean()) for own in comparison.answers[number]]
        for number in (first, second)
    )
    if min(len(one), len(two)) < MIN_SEEDS:
        return None
    return almost_stochastic_order(one, two)


def is_sure(difference: Mapping[str, Any]) -> bool:
    """Whether a difference is one, all those that were looked at counted."""
    return float(difference["holm"]) < LEVEL


def is_same(difference: Mapping[str, Any]) -> bool:
    """Whether two accuracies are surely less than the margin apart."""
    return float(difference["equivalence"]) < LEVEL


def difference_header(margin: float) -> list[str]:
    """Names of the columns of the table of differences."""
    return [
        *("better", "than", "points", "95 %", "sure", "p (Holm)", "p"),
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
            f"{one['only_first_right']} : {one['only_second_right']}",
            f"{'yes' if is_same(one) else 'no'} ({p_text(one['equivalence'])})",
            "-" if one["dominance"] is None else f"ε {one['dominance']:.2f}",
        ]
        for one in differences
    ]
