"""The look of plots: colours, matplotlib's settings, and saving of figures.

On a dark page the report inverts the lightness of the plots and keeps their hues.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import IO, Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

INK, BACKGROUND = "#1a1f26", "#ffffff"
MUTED = "#5a6472"  # axes, reference lines and secondary text
SHADE = "#56B4E9"  # the darkest shade of a confusion matrix, on which the ink is readable
# The colour of each method in every plot: the colour-blind safe palettes of Okabe and Ito, and of
# Paul Tol (muted), yellow and light blue darkened to a contrast of 3 with a white page (WCAG 2.2,
# 1.4.11). Optional for a new method, which gets a spare colour.
METHOD_COLORS = {
    "layer_freeze": "#0072B2",
    "prompt_tuning": "#D55E00",
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
OTHER_COLORS = ("#8C6D1F", "#7F7F7F")
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = "os^vDPX<>phd8*"
DPI = 150
# Matplotlib's own font, and fonts for Chinese, Japanese and Korean names if they are installed.
CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Microsoft YaHei",
    "PingFang SC",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
)
FONTS = ["DejaVu Sans", *(name for name in CJK_FONTS if name in font_manager.get_font_names())]
# Any: matplotlib types the keys as its own literals.
SETTINGS: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), MUTED),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), BACKGROUND),
    "font.family": FONTS,
    "text.parse_math": False,  # names may contain dollar signs
    "grid.color": "#d8dde4",
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


@contextmanager
def plot_settings() -> Iterator[None]:
    """Matplotlib's settings for a block, or as a decorator for a plot function."""
    with matplotlib.rc_context(SETTINGS):
        yield


def method_styles(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and line style of each Run: Runs of one method differ by their line style."""
    unknown = sorted(set(methods) - set(METHOD_COLORS))
    colors = {**METHOD_COLORS, **dict(zip(unknown, cycle(OTHER_COLORS), strict=False))}
    return [
        (colors[method], LINE_STYLES[methods[:position].count(method) % len(LINE_STYLES)])
        for position, method in enumerate(methods)
    ]


def add_legend(figure: Figure, title: str | None = None, columns: int = 1) -> None:
    """Add a legend below the axes of a figure with constrained layout."""
    figure.legend(loc="outside lower center", ncols=columns, title=title)


def drawable_text(text: str) -> str:
    """A text whose characters that no font has are written as escapes, not all as the same box."""
    if text.isascii():
        return text
    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in FONTS]
    return "".join(
        character
        if character.isspace() or any(font.get_char_index(ord(character)) for font in fonts)
        else ascii(character)[1:-1]
        for character in text
    )


def _escape_missing_glyphs(figure: Figure) -> None:
    for text in figure.findobj(Text):
        text.set_text(drawable_text(text.get_text()))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = axis.get_major_formatter()
            if isinstance(labels, FuncFormatter):  # tick labels that are names
                axis.set_major_formatter(partial(_format_tick, labels))


def _format_tick(labels: FuncFormatter, value: float, position: int | None = None) -> str:
    return drawable_text(labels(value, position))


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
    _escape_missing_glyphs(figure)
    metadata = {"Date": None} if file_format == "svg" else {"Software": None}
    # SVG element ids are hashes with this salt, not random.
    with matplotlib.rc_context({"svg.hashsalt": "peft-mrpc"}):
        figure.savefig(file, dpi=DPI, metadata=metadata, format=file_format)
    # The layout is final: computing it again for a second file takes as long as drawing.
    figure.set_layout_engine("none")
