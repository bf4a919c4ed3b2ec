from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from peft_mrpc.evaluation.plot_style import (
    BACKGROUND,
    INK,
    METHOD_COLORS,
    SHADE,
    method_styles,
    save_figure,
)
from peft_mrpc.evaluation.plots import (
    plot_confusion_matrices,
    plot_confusion_matrix,
    plot_precision_recall,
    plot_reliability,
    plot_roc_curves,
)
from peft_mrpc.methods.registry import METHODS

REFERENCES = np.array([1, 1, 1, 0, 0, 1, 0, 1])
POSITIVE = np.array([0.9, 0.8, 0.6, 0.7, 0.1, 0.4, 0.3, 0.95])
SCORED = {"one": (REFERENCES, np.stack([1 - POSITIVE, POSITIVE], axis=1))}
STYLES = [("#0072B2", "-")]
MATRIX = {"one": np.array([[3, 1], [0, 4]])}


@pytest.mark.filterwarnings("error")
def test_names_without_a_font_are_escaped(tmp_path: Path) -> None:
    unassigned = ("same \U000f0000", "other \U000f0001")
    save_figure(plot_confusion_matrix(MATRIX["one"], unassigned, "\U000f0002"), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text("utf-8")
    for escape in (r"same \U000f0000", r"other \U000f0001", r"\U000f0002"):
        assert escape in text
    save_figure(plot_confusion_matrix(MATRIX["one"], ("不同", "é"), "相同"), tmp_path / "b.png")


def test_no_two_methods_have_the_same_color() -> None:
    assert set(METHOD_COLORS) <= {*METHODS, "hard_prompt"}
    assert len(set(METHOD_COLORS.values())) == len(METHOD_COLORS)


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    luminances = []
    for color in (first, second):
        rgb = np.array(to_rgb(color))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        luminances.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    dark, light = sorted(luminances)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_equals_published_values() -> None:
    # WCAG 2.2: black on white 21, #777777 on white 4.48.
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_method_colors_are_readable_and_different() -> None:
    colors = [color for color, _ in method_styles([*METHOD_COLORS, "other"])]
    assert all(contrast(color, BACKGROUND) >= 3 for color in colors)
    assert len(set(colors)) == len(colors)
    assert min(contrast(INK, shade) for shade in (BACKGROUND, SHADE)) >= 4.5


def test_runs_of_one_method_differ_by_their_line_style() -> None:
    first, other, second = method_styles(["lora", "full", "lora"])
    assert first[0] == second[0] != other[0] and first[1] != second[1]


def test_plots_have_the_colors_of_the_package() -> None:
    figure = plot_roc_curves(SCORED, STYLES, "title")
    assert to_hex(figure.get_facecolor()) == BACKGROUND
    assert to_hex(figure.axes[0].xaxis.label.get_color()) == INK
    assert to_hex(matplotlib.rcParams["text.color"]) != INK


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_equal_figures_give_equal_files(suffix: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.{suffix}" for name in ("first", "second")]
    for file in files:
        save_figure(plot_reliability(SCORED, STYLES, "title"), file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_confusion_matrix_shows_counts_and_shares_of_the_true_label() -> None:
    axis = plot_confusion_matrices(MATRIX, ["no", "yes"]).axes[0]
    texts = {text.get_text(): text.get_position() for text in axis.texts}
    assert texts == {"3\n75%": (0, 0), "1\n25%": (1, 0), "0\n0%": (0, 1), "4\n100%": (1, 1)}
    bottom, top = axis.get_ylim()
    assert bottom > top  # the first row is on top


@pytest.mark.parametrize("plot", [plot_roc_curves, plot_precision_recall])
def test_a_single_label_has_no_curve(plot: Callable[..., Figure]) -> None:
    scored = {"one": (np.ones(3, int), np.full((3, 2), 0.5))}
    axis = plot(scored, STYLES, "title").axes[0]
    assert len(axis.lines) == 1  # chance


def test_three_labels() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    scored = {"one": (np.arange(30) % 3, probabilities)}
    for plot in (plot_roc_curves, plot_precision_recall):
        assert len(plot(scored, STYLES, "title").axes[0].lines) == 2
    axis = plot_reliability(scored, STYLES, "title").axes[0]
    assert axis.get_xlim()[0] == pytest.approx(1 / 3 - 0.02)
