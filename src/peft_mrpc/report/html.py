"""A comparison as one HTML file that needs nothing but itself."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from peft_mrpc.report.plots import CAPTIONS
from peft_mrpc.report.tables import figure_values, gap_values
from peft_mrpc.report.text import Report
from peft_mrpc.runs.run import Run

SECTIONS = {
    "errors": ("Errors", ("confusion_matrices", "disagreements")),
    "probabilities": ("Probabilities", ("roc_curves", "precision_recall", "reliability")),
    "costs": ("Costs and training", ("costs", "seed_spread", "learning_curves")),
}


@dataclass(frozen=True)
class SortedRow:
    """What the page sorts a row by, and which of its cells are the best of their column.

    Attributes:
        sort: A number for each cell but the first, None where it has none.
        best: Positions of the best.
        fixed: Whether it is no Run's, but what Runs are held against.
    """

    sort: Sequence[float | None]
    best: frozenset[int] = frozenset()
    fixed: bool = False


def write_html(
    path: Path,
    report: Report,
    plots: Path,
    examples: Mapping[str, Any] | None,
    why_no_examples: str = "",
) -> None:
    """Write the page.

    Args:
        path: Of the file.
        report: What was found.
        plots: Where the pictures lie, `NAME.svg` and `NAME_dark.svg`.
        examples: The explorer's data, if there is any.
        why_no_examples: What is said in its place.
    """
    style, script = (_asset(f"report.{kind}") for kind in ("css", "js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    comparison = report.comparison
    page = environment.from_string(_asset("report.html.jinja")).render(
        report=report,
        results=report.table(),
        numbers=result_numbers(report),
        differences=report.differences(),
        difference_numbers=difference_numbers(report),
        figures=report.figures(),
        figure_numbers=figure_numbers(report),
        gaps=report.gaps(),
        gap_numbers=gap_numbers(report),
        sections=[
            (key, title, [name for name in inside if name in report.pictures])
            for key, (title, inside) in SECTIONS.items()
            if set(inside) & set(report.pictures)
        ],
        images={name: _image(plots, name) for name in report.pictures},
        captions=CAPTIONS,
        examples=examples,
        why_no_examples=why_no_examples,
        fingerprint=comparison.runs[0].record["data"]["splits"][comparison.split]["fingerprint"],
        runs=[
            provenance(name, run)
            for name, run in zip(comparison.names, comparison.runs, strict=True)
        ],
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    path.write_text(page, encoding="utf-8")


def _asset(name: str) -> str:
    return (resources.files("peft_mrpc") / "assets" / name).read_text("utf-8")


def _hash(text: str) -> str:
    """What a page says of an own style or script, so that its browser runs no other (CSP 3)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _image(plots: Path, name: str) -> dict[str, str]:
    """A picture as addresses that hold it, and its size in CSS pixels."""
    light, dark = (plots / f"{name}{suffix}.svg" for suffix in ("", "_dark"))
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', light.read_text("utf-8"))
    assert size, "matplotlib's SVGs have a viewBox, in points"
    width, height = (float(points) * 96 / 72 for points in size.groups())
    image = {"width": f"{width:.0f}", "height": f"{height:.0f}"}
    if width > height:
        image["wide"] = "yes"  # on a phone it is moved sideways, not made too small to read
    for page, path in (("light", light), ("dark", dark)):
        text = base64.b64encode(path.read_bytes()).decode()
        image[page] = f"data:image/svg+xml;base64,{text}"
    return image


def result_numbers(report: Report) -> list[SortedRow]:
    """What the rows of the table of results are sorted by."""
    names = report.comparison.label_names
    rows = report.rows
    values = [
        [
            row["accuracy"],
            *(row["f1"][name] for name in names),
            row["roc_auc"],
            row.get("trained_parameters"),
            row.get("train_seconds"),
            row.get("score_pairs_per_second"),
            row.get("peak_memory_bytes"),
        ]
        for row in rows
    ]
    best = [
        max((own[column] for own in values[1:] if own[column] is not None), default=None)
        for column in range(2 + len(names))
    ]
    return [
        SortedRow(
            own,
            frozenset(
                n for n, top in enumerate(best) if place and top is not None and own[n] == top
            ),
            fixed=place == 0,
        )
        for place, own in enumerate(values)
    ]


def difference_numbers(report: Report) -> list[SortedRow]:
    """What the rows of the table of differences are sorted by."""
    return [
        SortedRow(
            [
                None,
                one["accuracy"],
                one["interval"][0],
                None,
                one["holm"],
                one["p"],
                one["others"].get("roc_auc", {}).get("difference"),
                one["only_first_right"],
                one["equivalence"],
                one["dominance"],
            ]
        )
        for one in report.evidence["differences"]
    ]


def figure_numbers(report: Report) -> list[SortedRow]:
    """What the rows of the table of figures are sorted by."""
    names = report.comparison.label_names
    return [SortedRow(figure_values(row, names)) for row in report.rows[1:]]


def gap_numbers(report: Report) -> list[SortedRow]:
    """What the rows of the table of other differences are sorted by."""
    names = report.comparison.label_names
    rows = [gap_values(one, names) for one in report.evidence["differences"]]
    return [
        SortedRow([None, *(None if one is None else one["difference"] for one in row)])
        for row in rows
    ]


def provenance(name: str, run: Run) -> dict[str, str]:
    """Where a Run comes from, for the foot of the page."""
    record = run.record
    return {
        "name": name,
        "model": record["model"],
        "seed": ", ".join(map(str, record.get("seeds", [record["seed"]]))),
        "finished": record["finished"],
        "cpu": record["hardware"]["cpu"],
        "gpus": ", ".join(record["hardware"]["gpus"]) or "no GPU",
        "versions": ", ".join(
            f"{key} {record['versions'][key]}"
            for key in ("peft-mrpc", "torch", "transformers", "peft")
            if key in record["versions"]
        ),
    }
