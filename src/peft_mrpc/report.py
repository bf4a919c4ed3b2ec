"""A comparison as Markdown, JSON and one HTML file that needs nothing but itself."""

import base64
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment

from peft_mrpc.cards import figure_texts
from peft_mrpc.evidence import (
    describe_evidence,
    difference_cells,
    difference_header,
    is_sure,
    p_text,
)
from peft_mrpc.runs import write_json

if TYPE_CHECKING:
    from peft_mrpc.compare import Comparison

CAPTIONS = {
    "confusion_matrices": "Confusion matrices: counts, and shares of each true label",
    "roc_curves": "ROC curves, with the area under each",
}
HOW_SURE = (
    "Differences in accuracy on the same pairs, in points, with 95 % intervals by paired bootstrap "
    "(10,000 draws). McNemar's exact test asks whether one of the two has more pairs right that "
    "the other has wrong than chance would give; Holm's adjustment allows for the number of "
    "differences in the table. Over seeds: almost stochastic order, 0 where the better wins by "
    "every quantile, 0.5 where neither does. Of Runs over seeds the first seed's answers are "
    "compared pair by pair."
)


def format_row(row: dict[str, Any], label_names: list[str]) -> list[str]:
    """The cells of one table row, as text."""
    seconds = row.get("train_seconds")
    trained = row.get("trained_parameters")
    return [
        row["name"],
        *figure_texts(row, label_names),
        "-" if not trained else f"{trained:,} ({row['trained_share']:.2%})",
        "-" if seconds is None else f"{seconds:,.0f} s",
        f"{row['score_pairs_per_second']:,.0f}" if "score_pairs_per_second" in row else "-",
        f"{row['peak_memory_bytes'] / 1e9:.2f} GB" if "peak_memory_bytes" in row else "-",
    ]


def table_header(label_names: list[str]) -> list[str]:
    """Names of the table's columns."""
    return [
        "method",
        "accuracy",
        *(f"F1 {name.replace('_', ' ')}" for name in label_names),
        "ROC-AUC",
        "trained",
        "training",
        "pairs/s",
        "peak memory",
    ]


def markdown_table(header: list[str], cells: list[list[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too."""
    # A pipe in a name would open a new column.
    rows = [[cell.replace("|", "\\|") for cell in row] for row in [header, *cells]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def headline(comparison: "Comparison", evidence: Mapping[str, Any]) -> str:
    """What was found, in a sentence or two, claimed no further than it was measured."""
    rows = comparison.rows()
    baseline, runs = rows[0], sorted(rows[1:], key=lambda row: -row["accuracy"])
    best = runs[0]
    size = len(comparison.predictions[0].idx)
    gain = 100 * (best["accuracy"] - baseline["accuracy"])
    text = (
        f"Of {len(runs)} strategies, {best['name']} has the highest accuracy on these {size} "
        f"pairs: {best['accuracy']:.1%}, {abs(gain):.1f} points {'above' if gain > 0 else 'below'} "
        f"always answering {baseline['name'].removeprefix('always ')}."
    )
    if len(runs) == 1:
        text = text.replace("Of 1 strategies, ", "").replace(
            " has the highest accuracy on", " reaches on"
        )
    elif len(runs) > 1:
        lead = 100 * (best["accuracy"] - runs[1]["accuracy"])
        text += f" It leads {runs[1]['name']} by {lead:.1f} points"
        text += f", {_sureness(best['name'], runs[1]['name'], evidence)}."
    low, high = next(
        one["accuracy"] for one in evidence["intervals"] if one["name"] == best["name"]
    )
    return (
        f"{text} One accuracy on {size} pairs is known to about ±{50 * (high - low):.1f} points "
        "(95 %); differences on the same pairs are known better, and stand in the table below."
        + _seeds_sentence(runs)
    )


def _sureness(best: str, next_best: str, evidence: Mapping[str, Any]) -> str:
    """Whether the lead would be there on other rows, in words."""
    difference = next(
        one for one in evidence["differences"] if {one["first"], one["second"]} == {best, next_best}
    )
    said = f"McNemar p {p_text(difference['holm'])} after Holm"
    if is_sure(difference):
        return f"more than chance would give ({said})"
    return (
        f"which may be chance ({said}; these pairs would show "
        f"{100 * difference['detectable']:.1f} points)"
    )


def _seeds_sentence(runs: list[dict[str, Any]]) -> str:
    if not any("std" in row for row in runs):
        return ""
    return (
        " Where a figure has a ±, it is the mean and standard deviation over training seeds; the "
        "pictures show the first seed."
    )


def write_report(folder: Path, comparison: "Comparison", figures: list[str]) -> str:
    """Write `report.md`, `report.json` and `report.html`.

    Returns:
        The table as Markdown.
    """
    label_names = comparison.label_names
    header = table_header(label_names)
    rows = comparison.rows()
    cells = [format_row(row, label_names) for row in rows]
    table = markdown_table(header, cells)
    data = comparison.runs[0].record["data"]
    evidence = describe_evidence(comparison)
    differences = difference_cells(evidence["differences"])
    facts = {
        "title": f"{data['name']}: {comparison.split} split",
        "headline": headline(comparison, evidence),
        "split": comparison.split,
        "num_examples": len(comparison.predictions[0].idx),
        "fingerprint": data["splits"][comparison.split]["fingerprint"],
    }
    pictures = "\n\n".join(f"![{CAPTIONS[name]}](plots/{name}.png)" for name in figures)
    parts = [f"# {facts['title']}", facts["headline"], table]
    if differences:
        parts += ["## Differences", markdown_table(difference_header(), differences), HOW_SURE]
    text = "\n\n".join([*parts, pictures])
    (folder / "report.md").write_text(f"{text}\n", encoding="utf-8")
    content = {"format_version": 1, "data": data, **facts, "rows": rows, "evidence": evidence}
    write_json(folder / "report.json", content)
    images = {
        name: base64.b64encode((folder / "plots" / f"{name}.png").read_bytes()).decode()
        for name in figures
    }
    template = (resources.files("peft_mrpc") / "assets" / "report.html.jinja").read_text("utf-8")
    best = max((row["accuracy"] for row in rows[1:]), default=None)
    html = (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            facts=facts,
            header=header,
            body=list(zip(rows, cells, strict=True)),
            best=best,
            difference_header=difference_header(),
            differences=differences,
            how_sure=HOW_SURE,
            images=images,
            captions=CAPTIONS,
            runs=[
                _provenance(name, run)
                for name, run in zip(comparison.names, comparison.runs, strict=True)
            ],
        )
    )
    (folder / "report.html").write_text(html, encoding="utf-8")
    return table


def _provenance(name: str, run: Any) -> dict[str, Any]:
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
