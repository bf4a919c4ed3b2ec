"""The plot of a search: the objective over the trials, and against each option."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from peft_mrpc.evaluation.plot_style import BLUE, LIGHT, ORANGE, Theme, themed

MAX_COLUMNS = 4


@themed
def plot_search(
    trials: Sequence[Mapping[str, Any]],
    objective: str,
    is_higher_better: bool,
    log_scaled: Sequence[str],
    choices: Mapping[str, Sequence[Any]],
    importances: Mapping[str, float],
    title: str,
    *,
    theme: Theme = LIGHT,
) -> Figure:
    """Plot the objective over the trials, and against each option of the search space.

    Args:
        trials: `number`, `state` (complete, pruned or failed), `value` (of a pruned trial the last
            one) and `values` (of the options) of each trial.
        objective: Name of the objective.
        is_higher_better: Whether a higher value is better.
        log_scaled: Options with a logarithmic axis.
        choices: The choices of each option that has no range, in the order of the axis.
        importances: Share of each option in the variance of the objective; empty if unknown.
        title: Title of the plot.
        theme: Colours of the page.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial["values"]))
    names.sort(key=lambda name: -importances.get(name, 0))
    rows = -(-len(names) // MAX_COLUMNS)
    columns = -(-len(names) // rows)  # five options are 3 + 2, not 4 + 1
    figure = Figure(figsize=(max(7.0, 2.7 * columns), 3.2 + 2.7 * rows), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.25, *[1] * rows])
    history = figure.add_subplot(grid[0, :])
    _plot_history(history, trials, is_higher_better, theme)
    history.set(title=title, xlabel="trial", ylabel=objective)
    best = _best_trial(trials, is_higher_better)
    for position, name in enumerate(names):
        row, column = divmod(position, columns)
        axis = figure.add_subplot(grid[1 + row, column], sharey=history)
        _plot_option(axis, trials, name, choices.get(name), best, theme)
        if name in log_scaled:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.tick_params(axis="x", labelrotation=30)
        share = f"  {importances[name]:.0%}" if name in importances else ""
        axis.set_title(f"{name}{share}", fontsize=9)
        if column == 0:
            axis.set_ylabel(objective)
        else:
            axis.tick_params(labelleft=False)
    if importances:
        label = "percent: share of the option in the variance of the objective"
        figure.supxlabel(label, fontsize=8)
    return figure


def _markers(theme: Theme) -> dict[str, dict[str, Any]]:
    """Return the style of the points of each state."""
    pruned = {"facecolors": "none", "edgecolors": theme.muted, "label": "pruned, last value"}
    return {"pruned": pruned, "complete": {"color": BLUE, "alpha": 0.8, "label": "complete"}}


def _best_trial(
    trials: Sequence[Mapping[str, Any]], is_higher_better: bool
) -> Mapping[str, Any] | None:
    complete = [trial for trial in trials if trial["state"] == "complete"]
    sign = 1 if is_higher_better else -1
    return max(complete, key=lambda trial: sign * trial["value"], default=None)


def _plot_history(
    axis: Axes, trials: Sequence[Mapping[str, Any]], is_higher_better: bool, theme: Theme
) -> None:
    for state, style in _markers(theme).items():
        points = [(t["number"], t["value"]) for t in trials if t["state"] == state]
        if points:
            x, y = zip(*points, strict=True)
            axis.scatter(x, y, s=24, zorder=3, **style)
    complete = [trial for trial in trials if trial["state"] == "complete"]
    if complete:
        better = np.maximum if is_higher_better else np.minimum
        best = better.accumulate([trial["value"] for trial in complete])
        numbers = [trial["number"] for trial in complete]
        last = max(trial["number"] for trial in trials)
        axis.step([*numbers, last], [*best, best[-1]], where="post", color=ORANGE, label="best")
    if failed := [trial["number"] for trial in trials if trial["state"] == "failed"]:
        # They have no value, so they are drawn at the lower edge of the axes.
        axis.scatter(
            failed,
            [0.03] * len(failed),
            marker="x",
            color=theme.ink,
            s=22,
            label="failed",
            clip_on=False,
            transform=axis.get_xaxis_transform(),
        )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(visible=True)
    axis.legend(loc="best")


def _plot_option(
    axis: Axes,
    trials: Sequence[Mapping[str, Any]],
    name: str,
    choices: Sequence[Any] | None,
    best: Mapping[str, Any] | None,
    theme: Theme,
) -> None:
    def position(trial: Mapping[str, Any]) -> Any:
        value = trial["values"][name]
        return choices.index(value) if choices else value

    if choices:
        axis.set_xticks(range(len(choices)), [str(choice) for choice in choices])
        axis.set_xlim(-0.5, len(choices) - 0.5)
    shown = [t for t in trials if name in t["values"] and t["value"] is not None]
    for state, style in _markers(theme).items():
        x, y = (
            [position(t) for t in shown if t["state"] == state],
            [t["value"] for t in shown if t["state"] == state],
        )
        axis.scatter(x, y, s=20, **style)
    if best is not None and name in best["values"]:
        axis.scatter(
            *([position(best)], [best["value"]]), s=90, facecolors="none", edgecolors=ORANGE, lw=2
        )
    axis.grid(visible=True)
