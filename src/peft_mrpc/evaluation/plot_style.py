"""How pictures look: one colour for each method, a light and a dark page, and files of both kinds.

Pictures are drawn within `on_page`, which sets matplotlib's own defaults; what is drawn takes greys
from there and method colours from `run_styles`, so no drawing function knows which page it is on.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# One colour for each method, the same in every picture: Okabe and Ito's colour-blind safe ones for
# the common methods, Paul Tol's muted ones for the others.
METHOD_COLORS = {
    "layer_freeze": "#0072B2",
    "prompt_tuning": "#D55E00",
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
# Ink, softer ink, lines and paper of a page; the report's style sheet has the same.
PAGES = {
    "light": {"ink": "#1a1f26", "soft": "#5a6472", "line": "#d8dde4", "paper": "#ffffff"},
    "dark": {"ink": "#e8ebef", "soft": "#a3adba", "line": "#3a424d", "paper": "#171c22"},
}
# A line or a dot has to stand out from the page by this much (WCAG 2.2, 1.4.11).
CONTRAST = 3.0


@contextlib.contextmanager
def on_page(page: str = "light") -> Iterator[None]:
    """Draw for a light or a dark page: figures built within take its colours and keep them."""
    own = PAGES[page]
    settings: Any = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), own["ink"]),
        **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), own["soft"]),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), own["paper"]),
        # A name may hold dollars.
        "text.parse_math": False,
        "grid.color": own["line"],
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
        # The same picture is the same file: names of an SVG's parts come from this, not by chance.
        "svg.hashsalt": "peft-mrpc",
    }
    with matplotlib.rc_context(settings):
        yield


def soft_ink() -> str:
    """The page's grey for what is beside the point."""
    return str(matplotlib.rcParams["axes.edgecolor"])


def paper() -> str:
    """The page's own colour."""
    return str(matplotlib.rcParams["figure.facecolor"])


def run_styles(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and line style of each Run: colour by method, style by its turn within the method."""
    styles: list[tuple[str, str]] = []
    unknown = sorted({m for m in methods if m not in METHOD_COLORS})
    for position, method in enumerate(methods):
        turn = methods[:position].count(method)
        styles.append((method_color(method, unknown), LINE_STYLES[turn % len(LINE_STYLES)]))
    return styles


def method_color(method: str, unknown: Sequence[str] = ()) -> str:
    """A method's colour, made lighter or darker where it would not stand out from the page."""
    place = unknown.index(method) if method in unknown else 0
    color = METHOD_COLORS.get(method) or OTHER_COLORS[place % len(OTHER_COLORS)]
    return readable(color)


def readable(color: str) -> str:
    """A colour of the same hue that stands out from the page."""
    page = paper()
    goal = colors.to_rgb("white" if luminance(page) < 0.5 else "black")
    own = colors.to_rgb(color)
    for share in range(0, 100, 5):
        red, green, blue = (a + (b - a) * share / 100 for a, b in zip(own, goal, strict=True))
        mixed = str(colors.to_hex((red, green, blue)))
        if contrast(mixed, page) >= CONTRAST:
            return mixed
    return str(colors.to_hex(goal))


def luminance(color: str) -> float:
    """Relative luminance of a colour (WCAG 2.2)."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in colors.to_rgb(color)
    )
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def add_legend(axis: Axes, title: str | None = None, columns: int = 1) -> None:
    """Name the lines below the axes, where they can hide none."""
    axis.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, title=title, borderpad=0
    )


def save_picture(figure: Figure, *paths: Path) -> None:
    """Write a figure by its files' endings; the same figure always as the same bytes."""
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=DPI, metadata=metadata)
        # Everything has its place now: a second file need not seek it again, which takes as long
        # as the drawing.
        figure.set_layout_engine("none")
