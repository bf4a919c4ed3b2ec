"""The look of plots: colours of methods, a light and a dark theme, and saving of figures.

A plot function has a keyword argument `theme` and the decorator `themed`, which sets matplotlib's
defaults while the function runs.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import IO, Any, ParamSpec

import matplotlib
from matplotlib.figure import Figure

BLUE, ORANGE = "#0072B2", "#D55E00"
# The colour of each method in every plot: the colour-blind safe palettes of Okabe and Ito, and of
# Paul Tol (muted), yellow and light blue darkened to a contrast of 3 with a white page (WCAG 2.2,
# 1.4.11). Optional for a new method, which gets a spare colour.
METHOD_COLORS = {
    "layer_freeze": BLUE,
    "prompt_tuning": ORANGE,
    "hard_prompt": "#009E73",
    "full": "#CC79A7",
    "lora": "#C48700",
    "linear_probe": "#4999C6",
    "prefix_tuning": "#000000",
    "p_tuning": "#AA4499",
    "dora": "#882255",
    "oft": "#CC6677",
    "vera": "#9B8F53",
    "ia3": "#117733",
    "ln_tuning": "#999933",
    "bitfit": "#332288",
}
# The same on a dark page: those that would be too dark are lighter.
DARK_METHOD_COLORS = METHOD_COLORS | {
    "lora": "#E69F00",
    "linear_probe": "#56B4E9",
    "prefix_tuning": "#C9CED6",
    "dora": "#A04E77",
    "vera": "#DDCC77",
    "bitfit": "#7064AC",
}
OTHER_COLORS = ("#8C6D1F", "#7F7F7F")
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = "os^vDPX<>phd8*"
DPI = 150

Parameters = ParamSpec("Parameters")


@dataclass(frozen=True)
class Theme:
    """Colours of a page; the style sheet of the report uses the same.

    Attributes:
        name: `light` or `dark`.
        ink: Text.
        muted: Axes, reference lines and secondary text.
        grid: Grid lines.
        background: The page.
        shade: The darkest shade of a table's cells, on which the ink is readable.
        colors: The colour of each method.
    """

    name: str
    ink: str
    muted: str
    grid: str
    background: str
    shade: str
    colors: Mapping[str, str]

    def method_styles(self, methods: Sequence[str]) -> list[tuple[str, str]]:
        """Colour and line style of each Run: Runs of one method differ by their line style."""
        unknown = sorted(set(methods) - set(self.colors))
        colors = {**self.colors, **dict(zip(unknown, cycle(OTHER_COLORS), strict=False))}
        return [
            (colors[method], LINE_STYLES[methods[:position].count(method) % len(LINE_STYLES)])
            for position, method in enumerate(methods)
        ]

    def settings(self) -> Any:
        """Settings of matplotlib."""
        return {
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), self.ink),
            **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), self.muted),
            **dict.fromkeys(("figure.facecolor", "axes.facecolor"), self.background),
            "text.parse_math": False,  # names may contain dollar signs
            "grid.color": self.grid,
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "axes.labelsize": 9.5,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 8.5,
            "legend.title_fontsize": 8.5,
            "legend.frameon": False,
        }


LIGHT = Theme(
    "light",
    ink="#1a1f26",
    muted="#5a6472",
    grid="#d8dde4",
    background="#ffffff",
    shade="#56B4E9",
    colors=METHOD_COLORS,
)
DARK = Theme(
    "dark",
    ink="#e8ebef",
    muted="#a3adba",
    grid="#3a424d",
    background="#171c22",
    shade="#00659E",
    colors=DARK_METHOD_COLORS,
)
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}


def themed(plot: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Run a plot function with matplotlib's settings of its keyword argument `theme`."""

    @functools.wraps(plot)
    def plot_with_theme(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        theme = kwargs.get("theme", LIGHT)
        assert isinstance(theme, Theme)
        with matplotlib.rc_context(theme.settings()):
            return plot(*args, **kwargs)

    return plot_with_theme


def add_legend(figure: Figure, title: str | None = None, columns: int = 1) -> None:
    """Add a legend below the axes of a figure with constrained layout."""
    figure.legend(loc="outside lower center", ncols=columns, title=title)


def save_figure(figure: Figure, file: Path | IO[bytes], file_format: str | None = None) -> None:
    """Save a figure so that equal figures give equal bytes.

    Args:
        figure: The figure.
        file: A path, or a binary file.
        file_format: `png` or `svg`; by default the suffix of the path.
    """
    if file_format is None:
        assert isinstance(file, Path), "a binary file has no suffix"
        file_format = file.suffix.removeprefix(".")
    metadata = {"Date": None} if file_format == "svg" else {"Software": None}
    # SVG element ids are hashes with this salt, not random.
    with matplotlib.rc_context({"svg.hashsalt": "peft-mrpc"}):
        figure.savefig(file, dpi=DPI, metadata=metadata, format=file_format)
    # The layout is final: computing it again for a second file takes as long as drawing.
    figure.set_layout_engine("none")
