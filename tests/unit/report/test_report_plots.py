from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from example_runs import SCORES, build_run, change_record
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from peft_mrpc.evaluation.plot_style import THEMES, Theme
from peft_mrpc.report.build import build_report
from peft_mrpc.report.plots import (
    RunPoint,
    build_plots,
    dodge,
    plot_accuracies,
    plot_accuracy_against_parameters,
    plot_costs,
    plot_disagreements,
    plot_learning_curves,
    plot_seed_spread,
)

POINTS = [
    RunPoint("small", "bitfit", 0.75, None, 100, 10.0, 2.0, interval=(0.7, 0.8), seeds=(0.75,)),
    RunPoint("large", "full", 0.8125, 0.01, 100_000, 100.0, 1.0, seeds=(0.8, 0.825)),
    RunPoint("prompt", "hard_prompt", 0.7, None, 0, None, 50.0, seeds=(0.7,)),
]
CURVES = {"one": {"train": [(0.5, 0.7), (1.0, 0.5)], "held out": [(1.0, 0.6)]}}


def test_the_legend_lists_the_most_accurate_first() -> None:
    (legend,) = plot_accuracy_against_parameters(POINTS, "title").legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["large  0.812 ± 0.010", "small  0.750", "prompt  0.700"]


def test_costs_of_zero_have_a_mark_of_their_own() -> None:
    figure = plot_costs(POINTS, "title")
    trained, _, inference = figure.axes
    assert [len(axis.containers) for axis in figure.axes] == [3, 3, 3]
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert texts == [["none"], ["none"], []]
    assert trained.get_xlim()[0] < 100 / 8 and inference.get_xlim()[0] > 0


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
@pytest.mark.parametrize(
    "plot",
    [
        lambda theme: plot_accuracies(POINTS, 0.6, "title", theme=theme),
        lambda theme: plot_costs(POINTS, "title", theme=theme),
        lambda theme: plot_disagreements(["a", "b"], np.eye(2, dtype=int), "title", theme=theme),
        lambda theme: plot_learning_curves(CURVES, [("#0072B2", "-")], "title", theme=theme),
        lambda theme: plot_seed_spread(POINTS, 0.6, "title", theme=theme),
    ],
    ids=["accuracies", "costs", "disagreements", "learning_curves", "seed_spread"],
)
def test_plots_have_the_colors_of_the_theme(plot: Callable[[Theme], Figure], theme: Theme) -> None:
    figure = plot(theme)
    assert to_hex(figure.get_facecolor()) == theme.background
    assert to_hex(figure.axes[0].xaxis.label.get_color()) == theme.ink


def test_the_first_row_of_the_disagreements_is_on_top() -> None:
    axis = plot_disagreements(["a", "b"], np.array([[0, 2], [3, 0]]), "title").axes[0]
    positions = {text.get_text(): text.get_position() for text in axis.texts}
    assert positions["2"] == (1, 0) and positions["3"] == (0, 1)
    bottom, top = axis.get_ylim()
    assert bottom > top


def test_points_of_equal_cost_are_moved_apart() -> None:
    costs = [1e5, 1e8, 100_100.0, 3e6, 1e5, 1.3e5]
    moved = np.log10(dodge(costs, 0.1))
    distance = 0.1 * 3
    assert np.diff(np.sort(moved)).min() == pytest.approx(distance)
    # Isolated points stay. Clusters keep their center and their order.
    assert moved[[1, 3]] == pytest.approx(np.log10([1e8, 3e6]))
    cluster = [0, 4, 2, 5]
    assert moved[cluster].mean() == pytest.approx(np.log10([costs[n] for n in cluster]).mean())
    assert (np.diff(moved[cluster]) > 0).all()
    assert dodge([7.0]) == pytest.approx([7])
    low, high = dodge([2.0, 2.0], 0.1)
    assert high / low == pytest.approx(np.exp(0.1)) and high * low == pytest.approx(4)


def test_long_names_are_shortened(tmp_path: Path) -> None:
    runs = [
        change_record(
            build_run(tmp_path / method, SCORES["a"], method),
            lambda record: record.update(model="owner/A-Name" + "-long" * 12),
        )
        for method in ("full", "lora")
    ]
    report = build_report(runs)
    axis = build_plots(report.comparison, report.analysis)["accuracies"].axes[0]
    name = axis.texts[0].get_text()
    assert name.startswith("full · A-Name") and "…" in name and len(name) < 45
