"""Pictures of Runs beside each other: how good, at what cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from peft_mrpc.evaluation.plot_style import MARKERS, method_color, paper, soft_ink
from peft_mrpc.formatting import short_count


@dataclass(frozen=True)
class RunPoint:
    """One Run as a point.

    Attributes:
        name: What it is called.
        method: Gives the colour, unless one is given.
        accuracy: Its (mean) accuracy.
        deviation: Standard deviation over seeds, None for one seed.
        trained: How many numbers train.
        train_seconds: What training took, None where nothing trained.
        score_seconds: What answering 1,000 pairs takes.
        color: Its colour in the other pictures.
    """

    name: str
    method: str
    accuracy: float
    deviation: float | None = None
    trained: int = 0
    train_seconds: float | None = None
    score_seconds: float | None = None
    color: str = ""


def plot_accuracy_against_parameters(points: Sequence[RunPoint], title: str) -> Figure:
    """What accuracy each method buys with how many trained numbers."""
    figure = Figure(figsize=(8.4, 5), layout="constrained")
    axis = figure.subplots()
    _draw_costs(axis, points, [point.trained for point in points])
    for control in (point for point in points if point.method == "linear_probe"):
        axis.axhline(control.accuracy, color=soft_ink(), linewidth=0.8, linestyle="--", zorder=1)
        axis.annotate(
            "the head alone",
            (1, control.accuracy),
            (-4, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=soft_ink(),
        )
    axis.set(ylabel="accuracy", title=title)
    axis.set_xlabel("trained parameters, head included (like ones side by side)")
    # Named in a legend, from the best down: beside crowded points there is no place for names.
    figure.legend(*_sorted_handles(axis, points), loc="outside right center", labelspacing=0.8)
    return figure


def plot_costs(points: Sequence[RunPoint], title: str) -> Figure:
    """Accuracy against what it costs: trained parameters, training time, time of answers."""
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    costs: dict[str, list[float | None]] = {
        "trained parameters": [point.trained for point in points],
        "training, seconds": [point.train_seconds for point in points],
        "1,000 answers, seconds": [point.score_seconds for point in points],
    }
    for axis, (name, values) in zip(axes, costs.items(), strict=True):
        _draw_costs(axis, points, values)
        axis.set_xlabel(name)
    axes[0].set_ylabel("accuracy")
    figure.suptitle(title, fontsize=10)
    handles, names = _sorted_handles(axes[0], points)
    figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(points)))
    return figure


def _draw_costs(axis: Axes, points: Sequence[RunPoint], costs: Sequence[float | None]) -> None:
    """Points on a logarithmic axis; what costs nothing stands left of it, at a mark of its own."""
    paid = [cost for cost in costs if cost]
    nothing = min(paid, default=1.0) / 8
    markers = {
        point.name: MARKERS[n % len(MARKERS)] for n, point in enumerate(_by_accuracy(points))
    }
    axis.set_xscale("log")
    if not paid:
        axis.set_xlim(nothing / 2, nothing * 2)
    least = nothing if len(paid) < len(costs) else min(paid, default=1.0)
    span = max(paid, default=1.0) / least
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 30 else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: short_count(cost)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    for point, cost in zip(points, side_by_side([cost or nothing for cost in costs]), strict=True):
        spread = "" if point.deviation is None else f" ± {point.deviation:.3f}"
        axis.errorbar(
            *(cost, point.accuracy),
            yerr=point.deviation,
            color=point.color or method_color(point.method),
            marker=markers[point.name],
            markersize=8,
            markeredgecolor=paper(),
            capsize=3,
            linestyle="none",
            label=f"{point.name}  {point.accuracy:.3f}{spread}",
        )
    if len(paid) < len(costs):
        axis.axvline(nothing, color=soft_ink(), linewidth=0.8, linestyle=":")
        axis.annotate(
            "none",
            (nothing, 0),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=soft_ink(),
        )
    axis.margins(x=0.12, y=0.1)
    axis.grid()


def side_by_side(costs: Sequence[float], share: float = 0.022) -> list[float]:
    """Places on a logarithmic axis, moved apart where points would lie on one another.

    Args:
        costs: All above 0.
        share: Of the span of all (or of a factor of e, if they lie nearer), the least between two.
    """
    places = np.log(np.array(costs, dtype=float))
    least = share * max(float(np.ptp(places)), 1.0)
    order = np.argsort(places, kind="stable")
    groups = [[number] for number in order]
    where = [float(places[number]) for number in order]  # the middle of each group
    merged = True
    while merged:
        merged = False
        for left in range(len(groups) - 1):
            reach = least * (len(groups[left]) + len(groups[left + 1])) / 2
            if where[left + 1] - where[left] < reach - 1e-12:
                groups[left] += groups.pop(left + 1)
                where[left] = float(places[groups[left]].mean())
                del where[left + 1]
                merged = True
                break
    for group, middle in zip(groups, where, strict=True):
        places[group] = middle + least * (np.arange(len(group)) - (len(group) - 1) / 2)
    return [float(place) for place in np.exp(places)]


def _by_accuracy(points: Sequence[RunPoint]) -> list[RunPoint]:
    return sorted(points, key=lambda point: -point.accuracy)


def _sorted_handles(axis: Axes, points: Sequence[RunPoint]) -> tuple[list[Any], list[str]]:
    handles, names = axis.get_legend_handles_labels()
    order = [points.index(point) for point in _by_accuracy(points)]
    # The marker alone: stubs of error bars say nothing.
    bars = cast("list[ErrorbarContainer]", handles)
    return [bars[n].lines[0] for n in order], [names[n] for n in order]
