"""The plots of a report: metrics, errors, probabilities and costs of Runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from sklearn.metrics import confusion_matrix

from peft_mrpc.evaluation.plot_style import (
    BACKGROUND,
    MARKERS,
    MUTED,
    add_legend,
    method_styles,
    plot_settings,
)
from peft_mrpc.evaluation.plots import (
    Styles,
    plot_confusion_matrices,
    plot_precision_recall,
    plot_reliability,
    plot_roc_curves,
)
from peft_mrpc.formatting import format_count, format_mean_std, shorten
from peft_mrpc.report.comparison import Comparison
from peft_mrpc.runs.run import Run

MAX_NAME_LENGTH = 34
CAPTIONS = {
    "accuracies": "Accuracy of each Run with its 95% interval; ticks below a dot are its seeds",
    "confusion_matrices": "Confusion matrices: counts, and shares of each true label",
    "roc_curves": "ROC curves with the area under each",
    "precision_recall": "Precision-recall curves with average precision",
    "reliability": "Accuracy against predicted probability in ten bins of equal mass, with 95% "
    "intervals",
    "costs": "Accuracy against trained parameters, training time and inference time",
    "learning_curves": "Training loss by epoch of the first seed; dotted: loss on the validation "
    "split carved from train",
}


@dataclass(frozen=True)
class RunPoint:
    """One Run in the plots of accuracies and costs.

    Attributes:
        name: Its name.
        method: Determines the colour.
        accuracy: Its accuracy, the mean over seeds.
        deviation: Standard deviation over seeds; None for one seed.
        trained: Number of trained parameters; 0 without training.
        train_seconds: Training time; None without training.
        score_seconds: Inference time of 1,000 examples; None if unknown.
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
    interval: tuple[float, float] = (0.0, 1.0)
    seeds: tuple[float, ...] = ()


class LossCurves(NamedTuple):
    """Epochs and losses of a training, on the training examples and on the validation split."""

    train: Sequence[tuple[float, float]]
    validation: Sequence[tuple[float, float]]


def build_plots(comparison: Comparison, analysis: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the plots of a report; plots without data are omitted.

    Returns:
        Figures by file name, in the order of the report.
    """
    names, where = _short_names(comparison), comparison.description
    styles = method_styles([run.record["method"] for run in comparison.runs])
    points = _points(comparison, analysis, names)
    majority = comparison.metrics[0]["majority_accuracy"]
    scored = {
        name: (rows.references, rows.probabilities)
        for name, rows in zip(names, comparison.predictions, strict=True)
    }
    labels = range(len(comparison.label_names))
    matrices = {
        name: confusion_matrix(rows.references, rows.predictions, labels=labels)
        for name, rows in zip(names, comparison.predictions, strict=True)
    }
    figures = {
        "accuracies": plot_accuracies(points, majority, where),
        "confusion_matrices": plot_confusion_matrices(matrices, comparison.label_names),
        "roc_curves": plot_roc_curves(scored, styles, where),
        "precision_recall": plot_precision_recall(scored, styles, where),
        "reliability": plot_reliability(scored, styles, where),
        "costs": plot_costs(points, where),
    }
    curves = {name: _losses(run) for name, run in zip(names, comparison.runs, strict=True)}
    if any(losses.train for losses in curves.values()):
        figures["learning_curves"] = plot_learning_curves(curves, styles, "training")
    return {name: figures[name] for name in CAPTIONS if name in figures}


def _short_names(comparison: Comparison) -> list[str]:
    """Names that fit in a legend."""
    short = [shorten(name, MAX_NAME_LENGTH) for name in comparison.names]
    return short if len(set(short)) == len(short) else comparison.names


def _points(
    comparison: Comparison, analysis: Mapping[str, Any], names: Sequence[str]
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
            interval=tuple(interval["accuracy"]),
            seeds=tuple(seed.metrics[comparison.split]["accuracy"] for seed in run.seed_runs),
        )
        for name, row, interval, run in zip(
            names,
            comparison.rows()[1:],
            analysis["intervals"],
            comparison.runs,
            strict=True,
        )
    ]


def _losses(run: Run) -> LossCurves:
    log = run.model_run.record.get("log_history") or []
    return LossCurves(
        [(row["epoch"], row["loss"]) for row in log if "loss" in row],
        [(row["epoch"], row["eval_loss"]) for row in log if "eval_loss" in row],
    )


@plot_settings()
def plot_accuracies(points: Sequence[RunPoint], majority: float, title: str) -> Figure:
    """Plot accuracies with their intervals, the best on top, and the majority baseline."""
    figure = Figure(figsize=(6, 1.1 + 0.48 * len(points)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(majority, color=MUTED, linestyle=":", linewidth=1.2)
    points = sorted(points, key=lambda point: point.accuracy)
    styles = method_styles([point.method for point in points])
    for place, (point, (color, _)) in enumerate(zip(points, styles, strict=True)):
        low, high = point.interval
        axis.hlines(place, low, high, color=color, linewidth=2.4, alpha=0.55)
        axis.plot(point.accuracy, place, "o", color=color, markersize=7, markeredgecolor=BACKGROUND)
        if len(point.seeds) > 1:
            axis.plot(
                point.seeds, [place - 0.26] * len(point.seeds), "|", color=color, markersize=6
            )
        # The name is above its line: beside it, a phone would have no room for the line.
        axis.annotate(
            f"{point.name}  {format_mean_std(point.accuracy, point.deviation)}",
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
        color=MUTED,
    )
    axis.margins(x=0.04)
    axis.set(yticks=[], ylim=(-0.65, len(points) - 0.35), title=title)
    axis.set_xlabel("accuracy with 95% interval")
    axis.grid(axis="x")
    axis.spines["left"].set_visible(False)
    return figure


@plot_settings()
def plot_costs(points: Sequence[RunPoint], title: str) -> Figure:
    """Plot accuracy against trained parameters, training time and inference time, if known."""
    points = sorted(points, key=lambda point: -point.accuracy)  # the legend lists the best first
    every: dict[str, list[float | None]] = {
        "trained parameters": [point.trained for point in points],
        "training, seconds": [point.train_seconds for point in points],
        "inference of 1,000 examples, seconds": [point.score_seconds for point in points],
    }
    costs = {name: values for name, values in every.items() if any(values)}
    figure = Figure(figsize=(2 + 2.8 * len(costs), 4.6), layout="constrained")
    axes = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axis, (name, values) in zip(axes, costs.items(), strict=True):
        _draw_costs(axis, points, values)
        axis.set_xlabel(name)
    axes[0].set_ylabel("accuracy")
    figure.suptitle(title, fontsize=10)
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=min(len(costs), len(points)))
    return figure


def _draw_costs(axis: Axes, points: Sequence[RunPoint], costs: Sequence[float | None]) -> None:
    """Draw points on a logarithmic axis; costs of zero have a mark of their own at the left."""
    positive = [cost for cost in costs if cost]
    lowest, highest = min(positive), max(positive)
    zero_mark = lowest / 8
    axis.set_xscale("log")
    styles = method_styles([point.method for point in points])
    for number, (point, cost, (color, _)) in enumerate(zip(points, costs, styles, strict=True)):
        axis.plot(
            cost or zero_mark,
            point.accuracy,
            MARKERS[number % len(MARKERS)],
            color=color,
            markersize=8,
            markeredgecolor=BACKGROUND,
            label=f"{point.name}  {format_mean_std(point.accuracy, point.deviation)}",
        )
    if len(positive) < len(costs):
        lowest = zero_mark
        axis.axvline(zero_mark, color=MUTED, linewidth=0.8, linestyle=":")
        axis.annotate(
            "none",
            (zero_mark, 0),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=MUTED,
        )
    if lowest == highest:
        axis.set_xlim(lowest / 2, lowest * 2)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest / lowest < 30 else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: format_count(cost)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.12, y=0.1)
    axis.grid()


@plot_settings()
def plot_learning_curves(curves: Mapping[str, LossCurves], styles: Styles, title: str) -> Figure:
    """Plot losses by epoch.

    Args:
        curves: Losses of each Run.
        styles: Colour and line style of each Run; validation losses are thin and dotted.
        title: Title.
    """
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axis = figure.subplots()
    for (name, losses), (color, style) in zip(curves.items(), styles, strict=True):
        if losses.train:
            epochs, values = zip(*losses.train, strict=True)
            axis.plot(epochs, values, style, color=color, linewidth=1.6, label=name)
        if losses.validation:
            epochs, values = zip(*losses.validation, strict=True)
            label = f"{name}, validation"
            axis.plot(epochs, values, "o:", color=color, linewidth=1.2, markersize=3, label=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="epoch", ylabel="loss", ylim=(0, None), title=title)
    axis.grid()
    add_legend(figure, columns=2)
    return figure
