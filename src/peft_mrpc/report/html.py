"""A report as one HTML file without external resources."""

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from peft_mrpc.evaluation.plot_style import method_styles
from peft_mrpc.report.comparison import Comparison, as_text
from peft_mrpc.report.plots import CAPTIONS
from peft_mrpc.report.summary import Summary, difference_notes, method_descriptions, seeds_note
from peft_mrpc.report.tables import ReportTables
from peft_mrpc.runs.run import Run
from peft_mrpc.serialization import read_asset, read_json_lines

SECTIONS = {
    "errors": ("Errors", ("confusion_matrices",)),
    "probabilities": ("Probabilities", ("roc_curves", "precision_recall", "reliability")),
    "costs": ("Costs and training", ("costs", "learning_curves")),
}

# Longer texts of examples are cut.
MAX_CHARACTERS = 2000


def report_html(
    comparison: Comparison,
    analysis: Mapping[str, Any],
    summary: Summary,
    tables: ReportTables,
    plots: Mapping[str, bytes],
    max_examples: int,
) -> str:
    """Render the page.

    Args:
        comparison: The Runs.
        analysis: The significance analysis.
        summary: The summary.
        tables: The tables.
        plots: SVG files by plot.
        max_examples: Maximum number of examples; 0 omits them.
    """
    style, script = read_asset("assets/report.css"), read_asset("assets/report.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    return environment.from_string(read_asset("assets/report.html.jinja")).render(
        title=comparison.title,
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
        images={name: _image(content) for name, content in plots.items()},
        captions=CAPTIONS,
        examples=browser_data(comparison, max_examples) if max_examples else None,
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


def _image(content: bytes) -> dict[str, str]:
    """Data URL of a plot, and its size in CSS pixels."""
    size = re.search(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"', content)
    assert size, "matplotlib's SVG files have a viewBox, in points"
    width, height = (float(points) * 96 / 72 for points in size.groups())
    source = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    image = {"source": source, "width": f"{width:.0f}", "height": f"{height:.0f}"}
    if width > height:
        image["wide"] = "yes"  # scrolls sideways on a phone, to stay readable
    return image


def _provenance(name: str, run: Run) -> dict[str, str]:
    """Where and when a Run was made."""
    record = run.record
    values = {
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
    return {key: as_text(value) for key, value in values.items()}


def browser_data(comparison: Comparison, max_examples: int) -> dict[str, Any]:
    """Collect examples by column, in a compact form for the page.

    If there are more than `max_examples`, examples that a Run predicts incorrectly come first, and
    the others are drawn at random.

    Returns:
        `labels`, `runs` (name and colour), `total` examples, and for each included example `idx`,
        `truth`, `sentence1`, `sentence2`, and by Run `predictions` and `confidences` (in
        thousandths).
    """
    predictions = comparison.predictions
    styles = method_styles([run.record["method"] for run in comparison.runs])
    has_error = np.any([~rows.is_correct for rows in predictions], axis=0)
    order = np.lexsort((np.random.default_rng(0).random(len(has_error)), ~has_error))
    chosen = np.sort(order[:max_examples])
    idx = predictions[0].idx[chosen]
    rows = {
        row["idx"]: row
        for row in read_json_lines(comparison.runs[0].predictions_path(comparison.split))
    }
    return {
        "labels": comparison.label_texts,
        "runs": [
            {"name": name, "color": color}
            for name, (color, _) in zip(comparison.names, styles, strict=True)
        ],
        "total": len(has_error),
        "idx": idx.tolist(),
        "truth": predictions[0].references[chosen].tolist(),
        **{
            name: [_cut(rows[int(i)].get(name) or "") for i in idx]
            for name in ("sentence1", "sentence2")
        },
        "predictions": [rows.predictions[chosen].tolist() for rows in predictions],
        "confidences": [
            np.rint(1000 * rows.probabilities[chosen, rows.predictions[chosen]])
            .astype(int)
            .tolist()
            for rows in predictions
        ],
    }


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
