"""The look of plots: colours of methods, a light and a dark theme, and saving of figures.

A plot function has a keyword argument `theme` and the decorator `themed`, which sets matplotlib's
defaults while the function runs.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ParamSpec

import matplotlib
from matplotlib import colors
from matplotlib.figure import Figure

BLUE, ORANGE = "#0072B2", "#D55E00"
# The colour of each method in every plot: the colour-blind safe palette of Okabe and Ito for common
# methods, Paul Tol's muted palette for the others.
METHOD_COLORS = {
    "layer_freeze": BLUE,
    "prompt_tuning": ORANGE,
    "hard_prompt": "#009E73",
    "full": "#CC79A7",
    "lora": "#E69F00",
    "linear_probe": "#56B4E9",
    "prefix_tuning": "#000000",
    "p_tuning": "#AA4499",
    "dora": "#882255",
    "oft": "#CC6677",
    "vera": "#DDCC77",
    "ia3": "#117733",
    "ln_tuning": "#999933",
    "bitfit": "#332288",
}
OTHER_COLORS = ("#8C6D1F", "#7F7F7F")
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = "os^vDPX<>phd8*"
DPI = 150
# Minimum contrast of lines and markers with the background (WCAG 2.2, 1.4.11).
MIN_CONTRAST = 3.0

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
    """

    name: str
    ink: str
    muted: str
    grid: str
    background: str

    def readable(self, color: str) -> str:
        """A colour of the same hue with enough contrast to the background."""
        goal = colors.to_rgb("white" if luminance(self.background) < 0.5 else "black")
        for share in range(0, 100, 5):
            red, green, blue = (
                a + (b - a) * share / 100 for a, b in zip(colors.to_rgb(color), goal, strict=True)
            )
            mixed = str(colors.to_hex((red, green, blue)))
            if contrast(mixed, self.background) >= MIN_CONTRAST:
                return mixed
        return str(colors.to_hex(goal))

    def method_color(self, method: str, unknown: Sequence[str] = ()) -> str:
        """The colour of a method, lightened or darkened until it is readable.

        Args:
            method: A method.
            unknown: Methods without a colour of their own, which get different spare colours.
        """
        position = unknown.index(method) if method in unknown else 0
        color = METHOD_COLORS.get(method) or OTHER_COLORS[position % len(OTHER_COLORS)]
        return self.readable(color)

    def method_styles(self, methods: Sequence[str]) -> list[tuple[str, str]]:
        """Colour and line style of each Run: Runs of one method differ by their line style."""
        styles: list[tuple[str, str]] = []
        unknown = sorted({method for method in methods if method not in METHOD_COLORS})
        for position, method in enumerate(methods):
            repetition = methods[:position].count(method)
            line_style = LINE_STYLES[repetition % len(LINE_STYLES)]
            styles.append((self.method_color(method, unknown), line_style))
        return styles

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


LIGHT = Theme("light", ink="#1a1f26", muted="#5a6472", grid="#d8dde4", background="#ffffff")
DARK = Theme("dark", ink="#e8ebef", muted="#a3adba", grid="#3a424d", background="#171c22")
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


def luminance(color: str) -> float:
    """Relative luminance of a colour (WCAG 2.2)."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in colors.to_rgb(color)
    )
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


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
