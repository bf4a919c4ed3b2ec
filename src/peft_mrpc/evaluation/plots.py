"""Pictures of answers: arrays in, a matplotlib Figure out. Nothing here saves or shows."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from peft_mrpc.evaluation.bootstrap import roc_band
from peft_mrpc.evaluation.plot_style import add_legend, contrast, paper, readable, soft_ink
from peft_mrpc.evaluation.reliability import confidence_bins
from peft_mrpc.evaluation.significance import wilson_interval

# For each name true label indices, [N], and probabilities, [N, C].
Answers = Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
Styles = Sequence[tuple[str, str]]
BLUE = "#0072B2"
# Bands of more curves than this would cover each other.
MAX_BANDS = 6


def plot_confusion_matrix(
    counts: NDArray[np.int64], label_names: Sequence[str], title: str
) -> Figure:
    """One confusion matrix.

    Args:
        counts: [C, C], row = true label.
        label_names: Names of the C labels.
        title: What was scored.
    """
    size = 3.4 + 0.5 * len(label_names)
    figure = Figure(figsize=(size + 0.4, size), layout="constrained")
    _draw_confusion(figure.subplots(), counts, label_names, title)
    return figure


def plot_confusion_matrices(
    matrices: Mapping[str, NDArray[np.int64]], label_names: Sequence[str]
) -> Figure:
    """Confusion matrices of several Runs side by side, at most four in a row."""
    rows = -(-len(matrices) // 4)
    columns = -(-len(matrices) // rows)  # five are 3 + 2, not 4 + 1
    figure = Figure(figsize=(3.6 * columns + 0.4, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, counts) in zip(axes, matrices.items(), strict=False):
        _draw_confusion(axis, counts, label_names, name.replace(" · ", "\n"))
    for axis in axes[len(matrices) :]:
        axis.set_axis_off()
    return figure


def _draw_confusion(
    axis: Axes, counts: NDArray[np.int64], label_names: Sequence[str], title: str
) -> None:
    # Shaded by the share of the true label, so that a rare class is read as well as a common one.
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [f"{n}\n{share:.0%}" for n, share in zip(counts.flat, shares.flat, strict=True)]
    draw_cells(axis, shares, texts)
    names = [name.replace("_", " ") for name in label_names]
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names, rotation=90, va="center")
    axis.set(xlabel="predicted", ylabel="true", title=title)


def draw_cells(axis: Axes, shares: NDArray[np.float64], texts: Sequence[str]) -> None:
    """A grid of cells from the page's colour (0) to blue (1), each with its text."""
    shades = LinearSegmentedColormap.from_list("shades", [paper(), readable(BLUE)])
    edges = np.arange(shares.shape[0] + 1) - 0.5, np.arange(shares.shape[1] + 1) - 0.5
    # No image: in an SVG an image is a bitmap, and blurs.
    axis.pcolormesh(edges[1], edges[0], shares, cmap=shades, vmin=0, vmax=1, edgecolor=paper())
    axis.set_aspect("equal")
    axis.invert_yaxis()
    for (row, column), text in zip(np.ndindex(shares.shape), texts, strict=True):
        shade = to_hex(shades(float(shares[row, column])))
        ink = max(("#ffffff", "#14181d"), key=lambda one: contrast(one, shade))
        axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=9.5)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def plot_roc_curves(curves: Answers, styles: Styles, title: str) -> Figure:
    """ROC curves in one picture; over more than two classes, one against the rest, pooled.

    Of two classes each curve has its band: where 95 % of curves lie when the rows are drawn anew.

    Args:
        curves: True labels and probabilities by name.
        styles: Colour and line style of each.
        title: What was scored.
    """
    figure, axis = _square(len(curves), title, "false positive rate", "true positive rate")
    axis.plot([0, 1], [0, 1], color=soft_ink(), linewidth=1, linestyle=":", label="chance (0.500)")
    for (name, answers), (color, style) in zip(curves.items(), styles, strict=True):
        truth, score = _binary_view(*answers)
        if len(np.unique(truth)) < 2:
            continue
        false_positives, true_positives, _ = roc_curve(truth, score)
        label = f"{name} ({roc_auc_score(truth, score):.3f})"
        axis.plot(
            false_positives,
            true_positives,
            color=color,
            linestyle=style,
            linewidth=1.8,
            label=label,
        )
        if answers[1].shape[1] == 2 and len(curves) <= MAX_BANDS:
            grid, low, high = roc_band(truth, score)
            axis.fill_between(grid, low, high, color=color, alpha=0.13, linewidth=0)
    add_legend(axis, "area under the curve")
    return figure


def plot_precision_recall(curves: Answers, styles: Styles, title: str) -> Figure:
    """Precision against recall of the last of two labels; of more, one against the rest, pooled."""
    figure, axis = _square(len(curves), title, "recall", "precision")
    truth = next((_binary_view(*answers)[0] for answers in curves.values()), np.zeros(1))
    share = float(truth.mean())
    axis.axhline(share, color=soft_ink(), linewidth=1, linestyle=":", label=f"chance ({share:.3f})")
    for (name, answers), (color, style) in zip(curves.items(), styles, strict=True):
        truth, score = _binary_view(*answers)
        if len(np.unique(truth)) < 2:
            continue
        precision, recall, _ = precision_recall_curve(truth, score)
        label = f"{name} ({average_precision_score(truth, score):.3f})"
        # A step, since no threshold lies between two of the points.
        axis.step(
            *(recall, precision),
            where="post",
            color=color,
            linestyle=style,
            linewidth=1.8,
            label=label,
        )
    add_legend(axis, "average precision")
    return figure


def plot_reliability(
    curves: Answers, styles: Styles, errors: Sequence[float], title: str
) -> Figure:
    """How often answers are right against how sure they are, in ten bins of as many answers each.

    Args:
        curves: True labels and probabilities by name.
        styles: Colour and line style of each.
        errors: Expected calibration error of each.
        title: What was scored.
    """
    figure, axis = _square(
        len(curves), title, "probability of the answer", "share of right answers"
    )
    least = 1 / next(iter(curves.values()))[1].shape[1]
    ends = [least, 1]
    axis.plot(ends, ends, ":", color=soft_ink(), linewidth=1, label="as sure as right")
    for (name, answers), (color, style), error in zip(curves.items(), styles, errors, strict=True):
        bins = confidence_bins(*answers)
        right = np.array([one.right for one in bins])
        about = [wilson_interval(round(one.right * one.count), one.count) for one in bins]
        reach = np.array([[one.low for one in about], [one.high for one in about]])
        axis.errorbar(
            [one.confidence for one in bins],
            right,
            yerr=np.abs(reach - right),
            color=color,
            linestyle=style,
            marker="o",
            markersize=4,
            linewidth=1.6,
            elinewidth=0.7,
            label=f"{name} ({error:.3f})",
        )
    axis.set_xlim(least - 0.02, 1.01)
    axis.set_aspect("auto")
    add_legend(axis, "expected calibration error")
    return figure


def _square(num_curves: int, title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Axes of shares, with room for a legend below."""
    figure = Figure(figsize=(4, 4.2 + 0.18 * num_curves), layout="constrained")
    axis = figure.subplots()
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, title=title)
    axis.set_aspect("equal")
    axis.grid()
    return figure, axis


def _binary_view(
    references: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if probabilities.shape[1] == 2:
        return references, probabilities[:, 1]
    return np.eye(probabilities.shape[1], dtype=np.int64)[references].ravel(), probabilities.ravel()
