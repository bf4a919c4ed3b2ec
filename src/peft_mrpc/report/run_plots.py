"""Pictures of Runs beside each other: how good, how steady, where they disagree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from peft_mrpc.evaluation.plot_style import (
    add_legend,
    paper,
    readable,
    soft_ink,
)
from peft_mrpc.evaluation.plots import BLUE, Styles, draw_cells


@dataclass(frozen=True)
class Whisker:
    """One Run's accuracy and where it may lie.

    Attributes:
        name: What it is called.
        color: Its colour.
        value: The accuracy.
        low: From here...
        high: ...to here, at 95%.
        seeds: The accuracy of each seed, if there are several.
    """

    name: str
    color: str
    value: float
    low: float
    high: float
    seeds: tuple[float, ...] = ()


def plot_accuracies(whiskers: Sequence[Whisker], majority: float, title: str) -> Figure:
    """Accuracies with their intervals, the best on top, beside what the commoner label reaches."""
    figure = Figure(figsize=(6, 1.1 + 0.48 * len(whiskers)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(majority, color=soft_ink(), linestyle=":", linewidth=1.2)
    ordered = sorted(whiskers, key=lambda one: one.value)
    for place, one in enumerate(ordered):
        axis.hlines(place, one.low, one.high, color=one.color, linewidth=2.4, alpha=0.55)
        axis.plot(one.value, place, "o", color=one.color, markersize=7, markeredgecolor=paper())
        axis.plot(one.seeds, [place - 0.26] * len(one.seeds), "|", color=one.color, markersize=6)
        # The name above its line: beside it a phone would have no room for the line.
        axis.annotate(
            f"{one.name}  {one.value:.3f}",
            (one.low, place),
            (0, 7),
            textcoords="offset points",
            fontsize=10,
        )
    axis.annotate(
        "always the commoner label",
        (majority, -0.62),
        (4, 2),
        textcoords="offset points",
        fontsize=9,
        color=soft_ink(),
    )
    axis.margins(x=0.04)
    axis.set(yticks=[], ylim=(-0.65, len(ordered) - 0.35), title=title)
    axis.set_xlabel("accuracy, with its 95% interval")
    axis.grid(axis="x")
    axis.spines["left"].set_visible(False)
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
    for column, values in enumerate(figures.values()):
        _draw_spread(axis, column, values, readable(BLUE))
    name = next(iter(figures))
    axis.hlines(majority, -0.4, 0.4, color=soft_ink(), linestyle=":", label=f"majority's {name}")
    axis.set_xticks(range(len(figures)), [n.replace(" ", "\n", 1) for n in figures])
    axis.set_xlim(-0.5, len(figures) - 0.2)
    axis.set_xlabel(f"a dot for each seed, left to right: {', '.join(map(str, seeds))}")
    axis.set_title(title)
    axis.use_sticky_edges = False  # a bar would hold the axis to its foot, and cut dots there
    axis.margins(y=0.12)
    axis.grid(axis="y")
    axis.legend()
    return figure


def plot_seed_spread(
    spreads: Mapping[str, Sequence[float]], styles: Styles, majority: float, title: str
) -> Figure:
    """Each Run's accuracy by seed, with mean and one standard deviation.

    Args:
        spreads: For each Run one accuracy a seed; a Run of one seed is a dot.
        styles: Colour and line style of each.
        majority: Accuracy of always answering the most frequent label.
        title: What was scored.
    """
    figure = Figure(figsize=(max(5.2, 1.2 + 1.5 * len(spreads)), 4.2), layout="constrained")
    axis = figure.subplots()
    for column, (values, (color, _)) in enumerate(zip(spreads.values(), styles, strict=True)):
        _draw_spread(axis, column, values, color)
    axis.axhline(majority, color=soft_ink(), linestyle=":", label="always the commoner label")
    axis.set_xticks(range(len(spreads)), [name.replace(" · ", "\n") for name in spreads])
    axis.set_xlim(-0.5, len(spreads) - 0.2)
    axis.set(ylabel="accuracy", title=title)
    axis.grid(axis="y")
    add_legend(axis)
    return figure


def _draw_spread(axis: Axes, column: int, values: Sequence[float], color: str) -> None:
    spots = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
    axis.scatter(column + spots, values, s=26, color=color, edgecolor=paper(), zorder=3)
    mean, text = float(np.mean(values)), f"{np.mean(values):.3f}"
    if len(values) > 1:
        spread = float(np.std(values, ddof=1))
        axis.bar(column, 2 * spread, 0.56, mean - spread, color=color, alpha=0.18)
        axis.hlines(mean, column - 0.28, column + 0.28, color=color, linewidth=2)
        text += f"\n± {spread:.3f}"
    axis.annotate(text, (column + 0.32, mean), fontsize=8, va="center")


def plot_learning_curves(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], styles: Styles, title: str
) -> Figure:
    """Losses by epoch.

    Args:
        curves: For each Run `train` and, where it was measured, `held out`: epochs and losses.
        styles: Colour and line style of each Run; what was held out is thin and dotted.
        title: What was trained on.
    """
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axis = figure.subplots()
    for (name, series), (color, style) in zip(curves.items(), styles, strict=True):
        for kind, points in series.items():
            is_train = kind == "train"
            axis.plot(
                *zip(*points, strict=True),
                color=color,
                linestyle=style if is_train else ":",
                marker=None if is_train else "o",
                markersize=3,
                linewidth=1.6 if is_train else 1.2,
                label=name if is_train else f"{name}, {kind}",
            )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="epoch", ylabel="loss", ylim=(0, None), title=title)
    axis.grid()
    add_legend(axis, columns=2)
    return figure


def plot_disagreements(names: Sequence[str], alone: NDArray[np.int64], title: str) -> Figure:
    """Of each two Runs, how many pairs the one has right and the other wrong.

    Args:
        names: The R Runs.
        alone: [R, R]: pairs that the row has right and the column wrong.
        title: What was scored.
    """
    side = 2.6 + 0.85 * len(names)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axis = figure.subplots()
    texts = [
        "" if row == column else str(alone[row, column]) for row, column in np.ndindex(alone.shape)
    ]
    draw_cells(axis, alone / max(1, alone.max()), texts)
    labels = [name.replace(" · ", "\n") for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=30, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), labels)
    axis.set(xlabel="wrong in this Run", ylabel="right in this Run", title=title)
    return figure
