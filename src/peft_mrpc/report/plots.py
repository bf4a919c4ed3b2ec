"""The plots of a report: metrics, errors, probabilities and costs of Runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from peft_mrpc.evaluation.plot_style import LIGHT, MARKERS, Theme, add_legend, themed
from peft_mrpc.evaluation.plots import (
    Styles,
    draw_cells,
    plot_confusion_matrices,
    plot_precision_recall,
    plot_reliability,
    plot_roc_curves,
)
from peft_mrpc.formatting import format_count, shorten
from peft_mrpc.report.comparison import Comparison
from peft_mrpc.runs.run import Predictions, Run

MAX_NAME_LENGTH = 34
CAPTIONS = {
    "accuracies": "Accuracy of each Run with its 95% interval; ticks below a dot are its seeds",
    "confusion_matrices": "Confusion matrices: counts, and shares of each true label",
    "disagreements": "Number of examples that one Run (row) predicts correctly and another "
    "(column) does not",
    "roc_curves": "ROC curves with the area under each",
    "precision_recall": "Precision-recall curves with average precision",
    "reliability": "Accuracy against predicted probability in ten bins of equal mass, with 95% "
    "intervals",
    "costs": "Accuracy against trained parameters, training time and inference time",
    "seed_spread": "Accuracy of each seed with mean and standard deviation",
    "learning_curves": "Training loss by epoch of the first seed; dotted: loss on the held-out "
    "examples",
}


@dataclass(frozen=True)
class RunPoint:
    """One Run in the plots of accuracies and costs.

    Attributes:
        name: Its name.
        method: Determines the colour, unless `color` does.
        accuracy: Its accuracy, the mean over seeds.
        deviation: Standard deviation over seeds; None for one seed.
        trained: Number of trained parameters.
        train_seconds: Training time; None without training.
        score_seconds: Inference time of 1,000 examples.
        color: Its colour.
        interval: 95% interval of the accuracy.
        seeds: Accuracy of each seed.
    """

    name: str
    method: str
    accuracy: float
    deviation: float | None = None
    trained: int = 0
    train_seconds: float | None = None
    score_seconds: float | None = None
    color: str = ""
    interval: tuple[float, float] = (0.0, 1.0)
    seeds: tuple[float, ...] = ()


def build_plots(
    comparison: Comparison, analysis: Mapping[str, Any], theme: Theme = LIGHT
) -> dict[str, Figure]:
    """Draw the plots of a report; plots without data are omitted.

    Returns:
        Figures by file name, in the order of the report.
    """
    names, where = _short_names(comparison), comparison.description
    styles = theme.method_styles([run.record["method"] for run in comparison.runs])
    points = _points(comparison, analysis, styles, names)
    majority = comparison.metrics[0]["majority_accuracy"]
    scored = {
        name: (rows.references, rows.probabilities)
        for name, rows in zip(names, comparison.predictions, strict=True)
    }
    errors = [run.model_run.metrics[comparison.split]["ece"] for run in comparison.runs]
    matrices = {
        name: count_confusions(rows, len(comparison.label_names))
        for name, rows in zip(names, comparison.predictions, strict=True)
    }
    figures = {
        "accuracies": plot_accuracies(points, majority, where, theme=theme),
        "confusion_matrices": plot_confusion_matrices(
            matrices, comparison.label_names, theme=theme
        ),
        "roc_curves": plot_roc_curves(scored, styles, where, theme=theme),
        "precision_recall": plot_precision_recall(scored, styles, where, theme=theme),
        "reliability": plot_reliability(scored, styles, errors, where, theme=theme),
        "costs": plot_costs(points, where, theme=theme),
    }
    if len(names) > 1:
        is_correct = np.array([rows.is_correct for rows in comparison.predictions])
        alone = is_correct.astype(np.int64) @ (~is_correct).T.astype(np.int64)
        figures["disagreements"] = plot_disagreements(names, alone, where, theme=theme)
    if any(len(point.seeds) > 1 for point in points):
        figures["seed_spread"] = plot_seed_spread(points, majority, where, theme=theme)
    curves = {name: _losses(run) for name, run in zip(names, comparison.runs, strict=True)}
    if any(curves.values()):
        figures["learning_curves"] = plot_learning_curves(curves, styles, "training", theme=theme)
    return {name: figures[name] for name in CAPTIONS if name in figures}


def count_confusions(rows: Predictions, num_labels: int) -> NDArray[np.int64]:
    """Confusion matrix, [C, C]: row = true label, column = predicted label."""
    counts = np.zeros((num_labels, num_labels), dtype=np.int64)
    np.add.at(counts, (rows.references, rows.predictions), 1)
    return counts


def _short_names(comparison: Comparison) -> list[str]:
    """Names that fit in a legend."""
    short = [shorten(name, MAX_NAME_LENGTH) for name in comparison.names]
    return short if len(set(short)) == len(short) else comparison.names


def _points(
    comparison: Comparison, analysis: Mapping[str, Any], styles: Styles, names: Sequence[str]
) -> list[RunPoint]:
    return [
        RunPoint(
            name=name,
            method=row["method"],
            accuracy=row["accuracy"],
            deviation=row["std"]["accuracy"] if "std" in row else None,
            trained=row["trained_parameters"],
            train_seconds=row["train_seconds"],
            score_seconds=1000 / row["score_pairs_per_second"],
            color=color,
            interval=tuple(interval["accuracy"]),
            seeds=tuple(
                seed.metrics[comparison.split]["accuracy"] for seed in run.members or (run,)
            ),
        )
        for name, (color, _), row, interval, run in zip(
            names,
            styles,
            comparison.rows()[1:],
            analysis["intervals"],
            comparison.runs,
            strict=True,
        )
    ]


def _losses(run: Run) -> dict[str, list[tuple[float, float]]]:
    """Epochs and losses: `train` and, if recorded, `held out`; empty without a training log."""
    log = run.model_run.record.get("log_history") or []
    series = {
        kind: [(row["epoch"], row[key]) for row in log if key in row]
        for kind, key in (("train", "loss"), ("held out", "eval_loss"))
    }
    return {kind: points for kind, points in series.items() if points and series["train"]}


@themed
def plot_accuracies(
    points: Sequence[RunPoint], majority: float, title: str, *, theme: Theme = LIGHT
) -> Figure:
    """Plot accuracies with their intervals, the best on top, and the majority baseline."""
    figure = Figure(figsize=(6, 1.1 + 0.48 * len(points)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(majority, color=theme.muted, linestyle=":", linewidth=1.2)
    for place, point in enumerate(sorted(points, key=lambda point: point.accuracy)):
        color = point.color or theme.method_color(point.method)
        low, high = point.interval
        axis.hlines(place, low, high, color=color, linewidth=2.4, alpha=0.55)
        axis.plot(
            point.accuracy, place, "o", color=color, markersize=7, markeredgecolor=theme.background
        )
        if len(point.seeds) > 1:
            axis.plot(
                point.seeds, [place - 0.26] * len(point.seeds), "|", color=color, markersize=6
            )
        # The name is above its line: beside it, a phone would have no room for the line.
        axis.annotate(
            f"{point.name}  {point.accuracy:.3f}",
            (low, place),
            (0, 7),
            textcoords="offset points",
            fontsize=10,
        )
    axis.annotate(
        "majority baseline",
        (majority, -0.62),
        (4, 2),
        textcoords="offset points",
        fontsize=9,
        color=theme.muted,
    )
    axis.margins(x=0.04)
    axis.set(yticks=[], ylim=(-0.65, len(points) - 0.35), title=title)
    axis.set_xlabel("accuracy with 95% interval")
    axis.grid(axis="x")
    axis.spines["left"].set_visible(False)
    return figure


@themed
def plot_seed_spread(
    points: Sequence[RunPoint], majority: float, title: str, *, theme: Theme = LIGHT
) -> Figure:
    """Plot the accuracy of each seed, with mean and standard deviation."""
    figure = Figure(figsize=(max(5.2, 1.2 + 1.5 * len(points)), 4.2), layout="constrained")
    axis = figure.subplots()
    for column, point in enumerate(points):
        values = np.array(point.seeds)
        color = point.color or theme.method_color(point.method)
        offsets = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
        axis.scatter(
            column + offsets, values, s=26, color=color, edgecolor=theme.background, zorder=3
        )
        mean, text = float(values.mean()), f"{values.mean():.3f}"
        if len(values) > 1:
            std = float(values.std(ddof=1))
            axis.bar(column, 2 * std, 0.56, mean - std, color=color, alpha=0.18)
            axis.hlines(mean, column - 0.28, column + 0.28, color=color, linewidth=2)
            text += f"\n± {std:.3f}"
        axis.annotate(text, (column + 0.32, mean), fontsize=8, va="center")
    axis.axhline(majority, color=theme.muted, linestyle=":", label="majority baseline")
    axis.set_xticks(range(len(points)), [point.name.replace(" · ", "\n") for point in points])
    axis.set_xlim(-0.5, len(points) - 0.2)
    axis.set(ylabel="accuracy", title=title)
    axis.grid(axis="y")
    add_legend(figure)
    return figure


@themed
def plot_learning_curves(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    styles: Styles,
    title: str,
    *,
    theme: Theme = LIGHT,
) -> Figure:
    """Plot losses by epoch.

    Args:
        curves: For each Run, epochs and losses: `train` and, if recorded, `held out`.
        styles: Colour and line style of each Run; held-out losses are thin and dotted.
        title: Title.
        theme: Colours.
    """
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axis = figure.subplots()
    for (name, series), (color, style) in zip(curves.items(), styles, strict=True):
        if points := series.get("train"):
            line: dict[str, Any] = {"color": color, "linestyle": style, "label": name}
            axis.plot(*zip(*points, strict=True), linewidth=1.6, **line)
        if points := series.get("held out"):
            line = {"color": color, "linestyle": ":", "linewidth": 1.2, "marker": "o"}
            axis.plot(*zip(*points, strict=True), **line, markersize=3, label=f"{name}, held out")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="epoch", ylabel="loss", ylim=(0, None), title=title)
    axis.grid()
    add_legend(figure, columns=2)
    return figure


@themed
def plot_disagreements(
    names: Sequence[str], alone: NDArray[np.int64], title: str, *, theme: Theme = LIGHT
) -> Figure:
    """Plot how many examples one Run predicts correctly and another does not.

    Args:
        names: Names of the R Runs.
        alone: [R, R]: examples that the row predicts correctly and the column does not.
        title: Title.
        theme: Colours.
    """
    side = 2.6 + 0.85 * len(names)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axis = figure.subplots()
    texts = [
        "" if row == column else str(alone[row, column]) for row, column in np.ndindex(alone.shape)
    ]
    draw_cells(axis, alone / max(1, alone.max()), texts, theme)
    labels = [name.replace(" · ", "\n") for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=30, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), labels)
    axis.set(xlabel="incorrect in this Run", ylabel="correct in this Run", title=title)
    return figure


@themed
def plot_accuracy_against_parameters(
    points: Sequence[RunPoint], title: str, *, theme: Theme = LIGHT
) -> Figure:
    """Plot accuracy against the number of trained parameters, with the linear probe as baseline."""
    figure = Figure(figsize=(8.4, 5), layout="constrained")
    axis = figure.subplots()
    _draw_costs(axis, points, [point.trained for point in points], theme)
    for probe in (point for point in points if point.method == "linear_probe"):
        axis.axhline(probe.accuracy, color=theme.muted, linewidth=0.8, linestyle="--", zorder=1)
        axis.annotate(
            "linear probe",
            (1, probe.accuracy),
            (-4, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=theme.muted,
        )
    axis.set(ylabel="accuracy", title=title)
    axis.set_xlabel("trained parameters, head included (equal ones side by side)")
    # A legend, best first: there is no room for names beside crowded points.
    figure.legend(*_ranked_handles(axis, points), loc="outside right center", labelspacing=0.8)
    return figure


@themed
def plot_costs(points: Sequence[RunPoint], title: str, *, theme: Theme = LIGHT) -> Figure:
    """Plot accuracy against trained parameters, training time and inference time."""
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    costs: dict[str, list[float | None]] = {
        "trained parameters": [point.trained for point in points],
        "training, seconds": [point.train_seconds for point in points],
        "inference of 1,000 examples, seconds": [point.score_seconds for point in points],
    }
    for axis, (name, values) in zip(axes, costs.items(), strict=True):
        _draw_costs(axis, points, values, theme)
        axis.set_xlabel(name)
    axes[0].set_ylabel("accuracy")
    figure.suptitle(title, fontsize=10)
    handles, names = _ranked_handles(axes[0], points)
    figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(points)))
    return figure


def _draw_costs(
    axis: Axes, points: Sequence[RunPoint], costs: Sequence[float | None], theme: Theme
) -> None:
    """Draw points on a logarithmic axis; costs of zero have a mark of their own at the left."""
    positive = [cost for cost in costs if cost]
    zero_mark = min(positive, default=1.0) / 8
    has_zero = len(positive) < len(costs)
    markers = {point.name: MARKERS[n % len(MARKERS)] for n, point in enumerate(_ranked(points))}
    axis.set_xscale("log")
    lowest = zero_mark if has_zero else min(positive, default=1.0)
    highest = max(positive, default=zero_mark)
    span = highest / lowest
    if span == 1:
        axis.set_xlim(lowest / 2, lowest * 2)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 30 else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: format_count(cost)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    for point, place in zip(points, dodge([cost or zero_mark for cost in costs]), strict=True):
        deviation = "" if point.deviation is None else f" ± {point.deviation:.3f}"
        axis.errorbar(
            *(place, point.accuracy),
            yerr=point.deviation,
            color=point.color or theme.method_color(point.method),
            marker=markers[point.name],
            markersize=8,
            markeredgecolor=theme.background,
            capsize=3,
            linestyle="none",
            label=f"{point.name}  {point.accuracy:.3f}{deviation}",
        )
    if has_zero:
        axis.axvline(zero_mark, color=theme.muted, linewidth=0.8, linestyle=":")
        axis.annotate(
            "none",
            (zero_mark, 0),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=theme.muted,
        )
    axis.margins(x=0.12, y=0.1)
    axis.grid()


def dodge(costs: Sequence[float], share: float = 0.022) -> list[float]:
    """Positions on a logarithmic axis, moved apart where points would cover each other.

    Args:
        costs: Positive values.
        share: Minimum distance as a share of the span of all costs, of at least a factor of e.
    """
    positions = np.log(np.array(costs, dtype=float))
    distance = share * max(float(np.ptp(positions)), 1.0)
    # Clusters of points at minimum distance, merged while two of them are too close.
    clusters = [[number] for number in np.argsort(positions, kind="stable")]

    def center(cluster: list[Any]) -> float:
        return float(positions[cluster].mean())

    left = 0
    while left < len(clusters) - 1:
        first, second = clusters[left], clusters[left + 1]
        needed = distance * (len(first) + len(second)) / 2
        if center(second) - center(first) < needed - 1e-12:
            clusters[left : left + 2] = [first + second]
            left = max(0, left - 1)
        else:
            left += 1
    moved = positions.copy()
    for cluster in clusters:
        offsets = np.arange(len(cluster)) - (len(cluster) - 1) / 2
        moved[cluster] = center(cluster) + distance * offsets
    return [float(position) for position in np.exp(moved)]


def _ranked(points: Sequence[RunPoint]) -> list[RunPoint]:
    return sorted(points, key=lambda point: -point.accuracy)


def _ranked_handles(axis: Axes, points: Sequence[RunPoint]) -> tuple[list[Any], list[str]]:
    """Handles and names of a legend, most accurate first; markers without error bars."""
    handles, names = axis.get_legend_handles_labels()
    order = [points.index(point) for point in _ranked(points)]
    bars = cast("list[ErrorbarContainer]", handles)
    return [bars[n].lines[0] for n in order], [names[n] for n in order]
