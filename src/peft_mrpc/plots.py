"""Pictures of results: arrays in, a matplotlib Figure out. Nothing here saves or shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

# One colour for each method, the same in every picture: Okabe and Ito's colour-blind safe ones for
# the common methods, Paul Tol's muted ones for the others.
METHOD_COLORS = {
    "layer_freeze": "#0072B2",
    "prompt_tuning": "#D55E00",
    "hard_prompt": "#009E73",
    "full": "#CC79A7",
    "lora": "#E69F00",
    "linear_probe": "#56B4E9",
    "prefix_tuning": "#000000",
    "p_tuning": "#AA4499",
    "dora": "#882255",
    "oft": "#CC6677",
    "vera": "#DDCC77",
    "ia3": "#117733",
    "ln_tuning": "#999933",
    "bitfit": "#332288",
}
OTHER_COLORS = ("#8C6D1F", "#7F7F7F")
LINE_STYLES = ("-", "--", "-.", ":")
DPI = 150
MARKERS = "os^vDPX<>phd8*"


@dataclass(frozen=True)
class ParameterPoint:
    """One method in the picture of accuracy against trained parameters.

    Attributes:
        name: What it is called there.
        method: Gives the colour.
        trained: How many numbers train.
        accuracy: Its (mean) accuracy.
        deviation: Standard deviation over seeds, None for one seed.
    """

    name: str
    method: str
    trained: int
    accuracy: float
    deviation: float | None = None


def run_styles(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and line style of each Run: colour by method, style by its turn within the method."""
    styles: list[tuple[str, str]] = []
    for position, method in enumerate(methods):
        turn = methods[:position].count(method)
        unknown = sorted({m for m in methods if m not in METHOD_COLORS})
        color = METHOD_COLORS.get(method) or OTHER_COLORS[unknown.index(method) % len(OTHER_COLORS)]
        styles.append((color, LINE_STYLES[turn % len(LINE_STYLES)]))
    return styles


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
        _draw_confusion(axis, counts, label_names, name)
    for axis in axes[len(matrices) :]:
        axis.set_axis_off()
    return figure


def _draw_confusion(
    axis: Axes, counts: NDArray[np.int64], label_names: Sequence[str], title: str
) -> None:
    # Shaded by the share of the true label, so that a rare class is read as well as a common one.
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        axis.text(
            column,
            row,
            f"{counts[row, column]}\n{shares[row, column]:.0%}",
            ha="center",
            va="center",
            color="white" if shares[row, column] > 0.55 else "#1a1a1a",
        )
    names = [name.replace("_", " ") for name in label_names]
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names, rotation=90, va="center")
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(title, fontsize=10)
    for spine in axis.spines.values():
        spine.set_visible(False)


def plot_roc_curves(
    curves: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]],
    styles: Sequence[tuple[str, str]],
    title: str,
) -> Figure:
    """ROC curves in one picture; over more than two classes, one against the rest, pooled.

    Args:
        curves: For each name the true label indices, [N], and the probabilities, [N, C].
        styles: Colour and line style of each.
        title: What was scored.
    """
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#8c8c8c", linewidth=1, linestyle=":", label="chance (0.500)")
    for (name, (references, probabilities)), (color, style) in zip(
        curves.items(), styles, strict=True
    ):
        truth, score = _binary_view(references, probabilities)
        if len(np.unique(truth)) < 2:
            continue
        false_positives, true_positives, _ = roc_curve(truth, score)
        label = f"{name} ({roc_auc_score(truth, score):.3f})"
        axis.plot(
            false_positives, true_positives, color=color, linestyle=style, linewidth=2, label=label
        )
    axis.set(
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        xlabel="false positive rate",
        ylabel="true positive rate",
        aspect="equal",
    )
    axis.set_title(title, fontsize=10)
    axis.grid(color="#d9d9d9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False, fontsize=9, title="area under the curve")
    return figure


def plot_seeds(
    figures: Mapping[str, Sequence[float]], seeds: Sequence[int], majority: float, title: str
) -> Figure:
    """What each seed reached, and the mean with one standard deviation.

    Args:
        figures: For each metric one value a seed.
        seeds: The seeds.
        majority: Accuracy of always answering the most frequent label.
        title: What was scored.
    """
    figure = Figure(figsize=(1.6 + 1.25 * len(figures), 4.2), layout="constrained")
    axis = figure.subplots()
    spots = np.linspace(-0.16, 0.16, len(seeds))
    for column, values in enumerate(figures.values()):
        mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
        axis.bar(column, 2 * spread, 0.56, mean - spread, color="#0072B2", alpha=0.16)
        axis.hlines(mean, column - 0.28, column + 0.28, color="#0072B2", linewidth=2)
        axis.scatter(column + spots, values, s=26, color="#0072B2", edgecolor="white", zorder=3)
        text = f"{mean:.3f}\n± {spread:.3f}"
        axis.annotate(text, (column + 0.32, mean), fontsize=8, va="center", color="#3a3a3a")
    name = next(iter(figures))
    axis.hlines(majority, -0.4, 0.4, color="#8c8c8c", linestyle=":", label=f"majority's {name}")
    axis.set_xticks(range(len(figures)), [n.replace(" ", "\n", 1) for n in figures], fontsize=9)
    axis.set_xlim(-0.5, len(figures) - 0.2)
    axis.set_xlabel(f"a dot for each seed, left to right: {', '.join(map(str, seeds))}", fontsize=8)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="y", color="#d9d9d9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return figure


def plot_accuracy_against_parameters(points: Sequence[ParameterPoint], title: str) -> Figure:
    """What accuracy each method buys with how many trained numbers.

    Args:
        points: The methods; a mean that stands for several seeds has a deviation, drawn as a bar.
        title: What was scored.
    """
    figure = Figure(figsize=(8.4, 5), layout="constrained")
    axis = figure.subplots()
    # Named in a legend, from the best down: beside crowded points there is no place for names.
    for number, point in enumerate(sorted(points, key=lambda p: -p.accuracy)):
        spread = "" if point.deviation is None else f" ± {point.deviation:.3f}"
        axis.errorbar(
            point.trained,
            point.accuracy,
            yerr=point.deviation,
            color=METHOD_COLORS.get(point.method, OTHER_COLORS[0]),
            marker=MARKERS[number % len(MARKERS)],
            markersize=8,
            markeredgecolor="white",
            capsize=3,
            linewidth=1.2,
            label=f"{point.name}  {point.accuracy:.3f}{spread}",
        )
    axis.set_xscale("log")
    axis.set_xlabel("trained parameters, head included")
    axis.set_ylabel("accuracy")
    axis.set_title(title, fontsize=10)
    axis.grid(color="#d9d9d9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=9, labelspacing=0.8)
    return figure


def _binary_view(
    references: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if probabilities.shape[1] == 2:
        return references, probabilities[:, 1]
    return np.eye(probabilities.shape[1], dtype=np.int64)[references].ravel(), probabilities.ravel()
