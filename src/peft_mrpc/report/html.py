"""A report as one HTML file without external resources."""

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from peft_mrpc.report.comparison import Comparison
from peft_mrpc.report.plots import CAPTIONS
from peft_mrpc.report.summary import Summary, difference_notes, method_descriptions, seeds_note
from peft_mrpc.report.tables import ReportTables
from peft_mrpc.report.text import report_title
from peft_mrpc.runs.run import Run
from peft_mrpc.serialization import read_asset

SECTIONS = {
    "errors": ("Errors", ("confusion_matrices",)),
    "probabilities": ("Probabilities", ("roc_curves", "precision_recall", "reliability")),
    "costs": ("Costs and training", ("costs", "learning_curves")),
}


def report_html(
    comparison: Comparison,
    analysis: Mapping[str, Any],
    summary: Summary,
    tables: ReportTables,
    plots: Mapping[str, Mapping[str, bytes]],
    examples: Mapping[str, Any] | None,
) -> str:
    """Render the page.

    Args:
        comparison: The Runs.
        analysis: The significance analysis.
        summary: The summary.
        tables: The tables.
        plots: SVG files by plot and theme, `light` and `dark`.
        examples: Data of the example browser; None omits it.
    """
    style, script = read_asset("assets/report.css"), read_asset("assets/report.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    return environment.from_string(read_asset("assets/report.html.jinja")).render(
        title=report_title(comparison),
        description=comparison.description,
        fingerprint=comparison.fingerprint,
        summary=summary,
        tables=tables,
        methods=method_descriptions(comparison),
        seeds_note=seeds_note(comparison),
        difference_notes=difference_notes(analysis),
        sections=[
            (key, name, [plot for plot in members if plot in plots])
            for key, (name, members) in SECTIONS.items()
            if any(plot in plots for plot in members)
        ],
        images={name: _image(files) for name, files in plots.items()},
        captions=CAPTIONS,
        examples=examples,
        runs=[
            _provenance(name, run)
            for name, run in zip(comparison.names, comparison.runs, strict=True)
        ],
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _hash(text: str) -> str:
    """Hash of an inline style or script, for the page's Content Security Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _image(files: Mapping[str, bytes]) -> dict[str, str]:
    """Data URLs of a plot by theme, and its size in CSS pixels."""
    size = re.search(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"', files["light"])
    assert size, "matplotlib's SVG files have a viewBox, in points"
    width, height = (float(points) * 96 / 72 for points in size.groups())
    image = {"width": f"{width:.0f}", "height": f"{height:.0f}"}
    if width > height:
        image["wide"] = "yes"  # scrolls sideways on a phone, to stay readable
    for theme, content in files.items():
        image[theme] = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    return image


def _provenance(name: str, run: Run) -> dict[str, str]:
    """Where and when a Run was made."""
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
