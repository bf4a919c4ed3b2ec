"""Plots of predictions: arrays in, a matplotlib Figure out. Nothing here saves or shows.

Shapes: N examples, C classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from peft_mrpc.evaluation.metrics import confidence_bins, expected_calibration_error
from peft_mrpc.evaluation.plot_style import BACKGROUND, MUTED, SHADE, add_legend, plot_settings
from peft_mrpc.evaluation.significance import wilson_interval
from peft_mrpc.formatting import escape_control, shorten

# True label indices, [N], and probabilities, [N, C], by name.
ScoredLabels = Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
# Colour and line style of each curve.
Styles = Sequence[tuple[str, str]]
MAX_LABEL_LENGTH = 24


@plot_settings()
def plot_confusion_matrix(
    counts: NDArray[np.int64], label_names: Sequence[str], title: str
) -> Figure:
    """Plot one confusion matrix.

    Args:
        counts: [C, C], row = true label.
        label_names: Names of the C labels.
        title: Title.
    """
    size = 3.4 + 0.5 * len(label_names)
    figure = Figure(figsize=(size + 0.4, size), layout="constrained")
    _draw_confusion(figure.subplots(), counts, label_names, title)
    return figure


@plot_settings()
def plot_confusion_matrices(
    matrices: Mapping[str, NDArray[np.int64]], label_names: Sequence[str]
) -> Figure:
    """Plot the confusion matrices of several Runs, at most four in a row."""
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
    axis: Axes,
    counts: NDArray[np.int64],
    label_names: Sequence[str],
    title: str,
) -> None:
    # Shaded by the share of the true label, so that rare classes are as readable as common ones.
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shades = LinearSegmentedColormap.from_list("shades", [BACKGROUND, SHADE])
    edges = np.arange(len(label_names) + 1) - 0.5
    # Not scikit-learn's display or imshow: an SVG holds images as bitmaps, which blur.
    axis.pcolormesh(edges, edges, shares, cmap=shades, vmin=0, vmax=1, edgecolor=BACKGROUND)
    axis.set_aspect("equal")
    axis.invert_yaxis()
    for (row, column), share in np.ndenumerate(shares):
        text = f"{counts[row, column]}\n{share:.0%}"
        axis.text(column, row, text, ha="center", va="center", fontsize=9.5)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    names = [
        shorten(escape_control(name.replace("_", " ")), MAX_LABEL_LENGTH) for name in label_names
    ]
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names, rotation=90, va="center")
    axis.set(xlabel="predicted", ylabel="true", title=title)


@plot_settings()
def plot_roc_curves(curves: ScoredLabels, styles: Styles, title: str) -> Figure:
    """Plot ROC curves; for more than two classes, one-vs-rest and pooled.

    Args:
        curves: True labels and probabilities by name.
        styles: Colour and line style of each.
        title: Title.
    """
    figure, axis = _square_axes(len(curves), title, "false positive rate", "true positive rate")
    axis.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="chance (0.500)")
    for (name, scored), (color, style) in zip(curves.items(), styles, strict=True):
        truth, score = _binary_view(*scored)
        if len(np.unique(truth)) < 2:
            continue
        false_positives, true_positives, _ = roc_curve(truth, score)
        label = f"{name} ({roc_auc_score(truth, score):.3f})"
        axis.plot(false_positives, true_positives, style, color=color, linewidth=1.8, label=label)
    add_legend(figure, "area under the curve")
    return figure


@plot_settings()
def plot_precision_recall(curves: ScoredLabels, styles: Styles, title: str) -> Figure:
    """Plot precision against recall of the positive label; for more labels, one-vs-rest, pooled."""
    figure, axis = _square_axes(len(curves), title, "recall", "precision")
    truth = next((_binary_view(*scored)[0] for scored in curves.values()), np.zeros(1))
    share = float(truth.mean())
    axis.axhline(share, color=MUTED, linewidth=1, linestyle=":", label=f"chance ({share:.3f})")
    for (name, scored), (color, style) in zip(curves.items(), styles, strict=True):
        truth, score = _binary_view(*scored)
        if len(np.unique(truth)) < 2:
            continue
        precision, recall, _ = precision_recall_curve(truth, score)
        label = f"{name} ({average_precision_score(truth, score):.3f})"
        # A step, because no threshold lies between two points.
        axis.step(recall, precision, style, where="post", color=color, linewidth=1.8, label=label)
    add_legend(figure, "average precision")
    return figure


@plot_settings()
def plot_reliability(curves: ScoredLabels, styles: Styles, title: str) -> Figure:
    """Plot accuracy against confidence in ten bins of equal mass.

    Args:
        curves: True labels and probabilities by name.
        styles: Colour and line style of each.
        title: Title.
    """
    figure, axis = _square_axes(len(curves), title, "mean predicted probability", "accuracy")
    lowest = 1 / next(iter(curves.values()))[1].shape[1]
    ends = [lowest, 1]
    axis.plot(ends, ends, ":", color=MUTED, linewidth=1, label="perfect calibration")
    for (name, scored), (color, style) in zip(curves.items(), styles, strict=True):
        bins = confidence_bins(*scored)
        accuracy = np.array([each.accuracy for each in bins])
        intervals = np.array(
            [wilson_interval(round(each.accuracy * each.count), each.count) for each in bins]
        )
        axis.errorbar(
            [each.confidence for each in bins],
            accuracy,
            yerr=np.abs(intervals.T - accuracy),
            color=color,
            linestyle=style,
            marker="o",
            markersize=4,
            linewidth=1.6,
            elinewidth=0.7,
            label=f"{name} ({expected_calibration_error(*scored):.3f})",
        )
    axis.set_xlim(lowest - 0.02, 1.01)
    axis.set_aspect("auto")
    add_legend(figure, "expected calibration error")
    return figure


def _square_axes(num_curves: int, title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Axes from 0 to 1, with room for a legend below."""
    num_lines = num_curves + 2 + title.count("\n")
    figure = Figure(figsize=(4, 4.2 + 0.2 * num_lines), layout="constrained")
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
