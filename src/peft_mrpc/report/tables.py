"""Tables of every figure with its interval, and of its differences."""

from collections.abc import Mapping, Sequence
from typing import Any

FIGURE_NAMES = {
    "macro_f1": "macro F1",
    "mcc": "MCC",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "ece": "calibration error",
}
# Less is better of these.
ERRORS = ("brier", "ece")


def figure_header(label_names: Sequence[str]) -> list[str]:
    """Names of the columns of the table of figures."""
    f1 = [f"F1 {name.replace('_', ' ')}" for name in label_names]
    return ["method", "accuracy", *f1, *(_name(name) for name in FIGURE_NAMES)]


def figure_values(row: Mapping[str, Any], label_names: Sequence[str]) -> list[float | None]:
    """One Run's figures in the order of the columns; None where one is not defined."""
    f1 = [row["f1"][name] for name in label_names]
    return [row["accuracy"], *f1, *(row[name] for name in FIGURE_NAMES)]


def figure_cells(
    row: Mapping[str, Any], interval: Mapping[str, Any], label_names: Sequence[str]
) -> list[str]:
    """One Run's figures, each with its interval, as text."""
    ends = [interval["accuracy"], *(interval["f1"][name] for name in label_names)]
    ends += [interval.get(name) for name in FIGURE_NAMES]
    return [
        row["name"],
        *(
            "-" if value is None or own is None else f"{value:.3f} ({own[0]:.3f} to {own[1]:.3f})"
            for value, own in zip(figure_values(row, label_names), ends, strict=True)
        ),
    ]


def gap_header(label_names: Sequence[str]) -> list[str]:
    """Names of the columns of the table of differences in other figures than accuracy."""
    return ["more accurate", "than", *figure_header(label_names)[2:]]


def gap_values(
    difference: Mapping[str, Any], label_names: Sequence[str]
) -> list[Mapping[str, Any] | None]:
    """Two Runs' differences in the order of the columns; None where one is not defined."""
    others = difference["others"]
    return [
        *(others["f1"].get(name) for name in label_names),
        *(others.get(name) for name in FIGURE_NAMES),
    ]


def gap_cells(difference: Mapping[str, Any], label_names: Sequence[str]) -> list[str]:
    """Two Runs' differences in points, each with its interval, as text."""
    return [
        difference["first"],
        difference["second"],
        *(_points(found) for found in gap_values(difference, label_names)),
    ]


def _points(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    low, high = (f"{100 * end:+.1f}" for end in found["interval"])
    return f"{100 * found['difference']:+.1f} ({low} to {high})"


def _name(figure: str) -> str:
    return FIGURE_NAMES[figure] + (" (less is better)" if figure in ERRORS else "")
