from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from peft_mrpc.evaluation.plot_style import (
    CONTRAST,
    METHOD_COLORS,
    PAGES,
    contrast,
    on_page,
    paper,
    run_styles,
    save_picture,
)
from peft_mrpc.evaluation.plots import (
    plot_confusion_matrices,
    plot_precision_recall,
    plot_reliability,
    plot_roc_curves,
)
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.report.cost_plots import (
    RunPoint,
    plot_accuracy_against_parameters,
    plot_costs,
    side_by_side,
)
from peft_mrpc.report.run_plots import (
    Whisker,
    plot_accuracies,
    plot_disagreements,
    plot_learning_curves,
    plot_seed_spread,
)

REFERENCES = np.array([1, 1, 1, 0, 0, 1, 0, 1])
POSITIVE = np.array([0.9, 0.8, 0.6, 0.7, 0.1, 0.4, 0.3, 0.95])
ANSWERS = {"one": (REFERENCES, np.stack([1 - POSITIVE, POSITIVE], axis=1))}
STYLES = [("#0072B2", "-")]
POINTS = [
    RunPoint("small", "bitfit", 0.75, None, 100, 10.0, 2.0),
    RunPoint("large", "full", 0.8125, 0.01, 100_000, 100.0, 1.0),
    RunPoint("asked", "hard_prompt", 0.7, None, 0, None, 50.0),
]


def test_every_method_has_a_colour_of_its_own() -> None:
    assert {*METHODS, "hard_prompt"} == set(METHOD_COLORS)
    assert len(set(METHOD_COLORS.values())) == len(METHOD_COLORS)


def test_contrast_is_the_published_one() -> None:
    # WCAG 2.2: black on white 21, #777777 on white 4.48.
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("page", PAGES)
def test_methods_stand_out_from_either_page_and_from_each_other(page: str) -> None:
    methods = list(METHOD_COLORS)
    with on_page(page):
        colors = [color for color, _ in run_styles(methods)]
        assert all(contrast(color, paper()) >= CONTRAST for color in colors)
    assert len(set(colors)) == len(colors)


def test_methods_are_named_from_the_best_down_with_what_they_reached() -> None:
    (legend,) = plot_accuracy_against_parameters(POINTS, "three").legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["large  0.812 ± 0.010", "small  0.750", "asked  0.700"]


def test_what_costs_nothing_is_drawn_too() -> None:
    figure = plot_costs(POINTS, "three")
    trained, _, answers = figure.axes
    assert [len(axis.containers) for axis in figure.axes] == [3, 3, 3]
    shown = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert shown == [["none"], ["none"], []]
    assert trained.get_xlim()[0] < 100 / 8 and answers.get_xlim()[0] > 0


def draw_all() -> dict[str, Figure]:
    return {
        "accuracies": plot_accuracies([Whisker("one", "#0072B2", 0.8, 0.7, 0.9)], 0.6, "t"),
        "confusion": plot_confusion_matrices({"one": np.array([[3, 1], [0, 4]])}, ["no", "yes"]),
        "costs": plot_costs(POINTS, "t"),
        "disagreements": plot_disagreements(["a", "b"], np.array([[0, 2], [3, 0]]), "t"),
        "learning": plot_learning_curves(
            {"one": {"train": [(0.5, 0.7), (1.0, 0.5)], "held out": [(1.0, 0.6)]}}, STYLES, "t"
        ),
        "precision": plot_precision_recall(ANSWERS, STYLES, "t"),
        "reliability": plot_reliability(ANSWERS, STYLES, [0.1], "t"),
        "roc": plot_roc_curves(ANSWERS, STYLES, "t"),
        "seeds": plot_seed_spread({"one": [0.8, 0.9], "two": [0.7]}, STYLES * 2, 0.6, "t"),
    }


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_pictures_take_the_pages_colours_and_are_the_same_each_time(
    page: str, kind: str, tmp_path: Path
) -> None:
    files = []
    with on_page(page):
        for turn in ("first", "again"):
            figures = draw_all()
            for name, figure in figures.items():
                save_picture(figure, tmp_path / f"{turn}_{name}.{kind}")
            files.append([(tmp_path / f"{turn}_{name}.{kind}").read_bytes() for name in figures])
            assert {to_hex(one.get_facecolor()) for one in figures.values()} == {
                PAGES[page]["paper"]
            }
    assert files[0] == files[1]


def test_a_confusion_matrix_holds_counts_and_shares_of_the_true_label() -> None:
    figure = plot_confusion_matrices({"one": np.array([[3, 1], [0, 4]])}, ["no", "yes"])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["3\n75%", "1\n25%", "0\n0%", "4\n100%"]


def test_the_first_row_of_a_matrix_is_on_top() -> None:
    axis = plot_disagreements(["a", "b"], np.array([[0, 2], [3, 0]]), "t").axes[0]
    spots = {text.get_text(): text.get_position() for text in axis.texts}
    assert spots["2"] == (1, 0) and spots["3"] == (0, 1)
    bottom, top = axis.get_ylim()
    assert bottom > top


@pytest.mark.parametrize("plot", [plot_roc_curves, plot_precision_recall])
def test_rows_of_one_label_have_no_curve(plot: Callable[..., Figure]) -> None:
    answers = {"one": (np.ones(3, int), np.full((3, 2), 0.5))}
    axis = plot(answers, STYLES, "t").axes[0]
    assert len(axis.lines) == 1  # chance alone


def test_three_labels_are_drawn_too() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    answers = {"one": (np.arange(30) % 3, probabilities)}
    for plot in (plot_roc_curves, plot_precision_recall):
        assert len(plot(answers, STYLES, "t").axes[0].lines) == 2
    axis = plot_reliability(answers, STYLES, [0.1], "t").axes[0]
    assert axis.get_xlim()[0] == pytest.approx(1 / 3 - 0.02)


def test_points_on_one_another_are_drawn_side_by_side() -> None:
    costs = [1e5, 1e8, 100_100.0, 3e6, 1e5, 1.3e5]
    moved = np.log10(side_by_side(costs, 0.1))
    least = 0.1 * 3
    gaps = np.diff(np.sort(moved))
    assert gaps.min() == pytest.approx(least)
    # What stands alone stays; what does not keeps its middle and its order.
    assert moved[[1, 3]] == pytest.approx(np.log10([1e8, 3e6]))
    near = [0, 4, 2, 5]
    assert moved[near].mean() == pytest.approx(np.log10([costs[n] for n in near]).mean())
    assert (np.diff(moved[near]) > 0).all()
    assert side_by_side([7.0]) == pytest.approx([7])
    low, high = side_by_side([2.0, 2.0], 0.1)
    assert high / low == pytest.approx(np.exp(0.1)) and high * low == pytest.approx(4)
