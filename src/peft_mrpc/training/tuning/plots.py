"""Pictures of a search: arrays in, a matplotlib Figure out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8c8c8c"
DOTS: dict[str, dict[str, Any]] = {
    "pruned": {"facecolors": "none", "edgecolors": GREY, "label": "pruned, at its last epoch"},
    "complete": {"color": BLUE, "alpha": 0.8, "label": "complete"},
}
PER_ROW = 4


def plot_search(
    trials: Sequence[Mapping[str, Any]],
    objective: str,
    is_better_high: bool,
    log_scaled: Sequence[str],
    choices: Mapping[str, Sequence[Any]],
    importances: Mapping[str, float],
    title: str,
) -> Figure:
    """The objective over the trials, and against each parameter.

    Args:
        trials: `number`, `state` (complete, pruned, failed), `value` (of a pruned trial its last)
            and `params` of each.
        objective: What was measured.
        is_better_high: Whether a higher value is better.
        log_scaled: Parameters to draw on a logarithmic axis.
        choices: The values of each parameter that is no range, in the order to draw them in.
        importances: Share of each parameter in the objective's variance; empty if unknown.
        title: What was searched.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial["params"]))
    names.sort(key=lambda name: -importances.get(name, 0))
    rows = -(-len(names) // PER_ROW)
    columns = -(-len(names) // rows)  # five are 3 + 2, not 4 + 1
    figure = Figure(figsize=(max(7.0, 2.7 * columns), 3.2 + 2.7 * rows), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.25, *[1] * rows])
    history = figure.add_subplot(grid[0, :])
    _draw_history(history, trials, objective, is_better_high)
    history.set_title(title, fontsize=10)
    best = _best(trials, is_better_high)
    for place, name in enumerate(names):
        axis = figure.add_subplot(grid[1 + place // columns, place % columns], sharey=history)
        _draw_slice(axis, trials, name, choices.get(name), best)
        if name in log_scaled:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.tick_params(axis="x", labelrotation=30)
        share = f"  {importances[name]:.0%}" if name in importances else ""
        axis.set_title(f"{name}{share}", fontsize=9)
        if place % columns == 0:
            axis.set_ylabel(objective)
        else:
            axis.tick_params(labelleft=False)
    if importances:
        figure.supxlabel("percent: a parameter's share in what moved the objective", fontsize=8)
    return figure


def _best(trials: Sequence[Mapping[str, Any]], is_better_high: bool) -> Mapping[str, Any] | None:
    complete = [trial for trial in trials if trial["state"] == "complete"]
    sign = 1 if is_better_high else -1
    return max(complete, key=lambda trial: sign * trial["value"], default=None)


def _draw_history(
    axis: Axes, trials: Sequence[Mapping[str, Any]], objective: str, is_better_high: bool
) -> None:
    for state, style in DOTS.items():
        found = [trial for trial in trials if trial["state"] == state]
        if found:
            x, y = [t["number"] for t in found], [t["value"] for t in found]
            axis.scatter(x, y, s=24, zorder=3, **style)
    failed = [trial["number"] for trial in trials if trial["state"] == "failed"]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    if complete:
        better = np.maximum if is_better_high else np.minimum
        best = better.accumulate([trial["value"] for trial in complete])
        numbers = [trial["number"] for trial in complete]
        last = max(trial["number"] for trial in trials)
        axis.step([*numbers, last], [*best, best[-1]], where="post", color=ORANGE, label="best")
    if failed:
        # At the lower edge, whatever the scale: they have no value.
        edge = axis.get_xaxis_transform()
        axis.scatter(
            failed, [0.03] * len(failed), marker="x", color="#000000", s=22, transform=edge,
            label="failed", clip_on=False,
        )  # fmt: skip
    axis.set(xlabel="trial", ylabel=objective)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, fontsize=8, loc="best")
    _tidy(axis)


def _draw_slice(
    axis: Axes,
    trials: Sequence[Mapping[str, Any]],
    name: str,
    choices: Sequence[Any] | None,
    best: Mapping[str, Any] | None,
) -> None:
    having = [t for t in trials if name in t["params"] and t["value"] is not None]
    spots = [trial["params"][name] for trial in having]
    if choices:
        spots = [choices.index(value) for value in spots]
        axis.set_xticks(range(len(choices)), [str(choice) for choice in choices])
        axis.set_xlim(-0.5, len(choices) - 0.5)
    for state, style in DOTS.items():
        chosen = [i for i, trial in enumerate(having) if trial["state"] == state]
        x, y = [spots[i] for i in chosen], [having[i]["value"] for i in chosen]
        axis.scatter(x, y, s=20, **style)
    if best is not None and best in having:
        spot = spots[having.index(best)]
        axis.scatter([spot], [best["value"]], s=90, facecolors="none", edgecolors=ORANGE, lw=2)
    _tidy(axis)


def _tidy(axis: Axes) -> None:
    axis.grid(color="#d9d9d9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
