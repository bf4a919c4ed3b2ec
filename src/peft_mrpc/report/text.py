"""A report as Markdown and as JSON."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from peft_mrpc.report.comparison import Comparison
from peft_mrpc.report.plots import CAPTIONS
from peft_mrpc.report.summary import Summary, difference_notes, method_descriptions, seeds_note
from peft_mrpc.report.tables import ReportTables, Table

REPORT_FORMAT = 4


def report_title(comparison: Comparison) -> str:
    """Data set and split."""
    return f"{comparison.data['name']}: {comparison.split} split"


def report_markdown(
    comparison: Comparison,
    analysis: Mapping[str, Any],
    summary: Summary,
    tables: ReportTables,
    plots: Sequence[str] = (),
) -> str:
    """The report as Markdown.

    Args:
        comparison: The Runs.
        analysis: The significance analysis.
        summary: The summary.
        tables: The tables.
        plots: Names of plots to link, in the folder `plots`.
    """
    methods = [f"`{name}`: {text}." for name, text in method_descriptions(comparison).items()]
    parts = [
        f"# {escape_markdown(report_title(comparison))}",
        escape_markdown(str(summary)),
        _escaped_table(tables.results),
        seeds_note(comparison),
        "  \n".join(methods),
        "## All metrics with 95% intervals",
        _escaped_table(tables.metrics),
    ]
    if tables.differences.rows:
        notes = [f"- {name}: {text}" for name, text in difference_notes(analysis).items()]
        parts += [
            "## Significance of the differences",
            _escaped_table(tables.differences),
            "\n".join(notes),
            "## Differences in other metrics, in points",
            _escaped_table(tables.metric_differences),
        ]
    parts += [f"![{CAPTIONS[name]}](plots/{name}.png)" for name in plots]
    return "\n\n".join(filter(None, parts)) + "\n"


def report_json(
    comparison: Comparison, analysis: Mapping[str, Any], summary: Summary
) -> dict[str, Any]:
    """The content of `report.json`; its schema is `assets/report.schema.json`."""
    return {
        "format_version": REPORT_FORMAT,
        "title": report_title(comparison),
        "headline": str(summary),
        "data": comparison.data,
        "split": comparison.split,
        "num_examples": len(comparison.references),
        "fingerprint": comparison.fingerprint,
        "rows": comparison.rows(),
        "analysis": analysis,
    }


def plain_table(table: Table) -> str:
    """A table for a terminal: Markdown without escapes, except for pipes."""
    return _aligned([[cell.replace("|", "\\|") for cell in row] for row in table.texts])


def escape_markdown(text: str) -> str:
    """Escape text from the data, in which `<b>` and `*` would be markup."""
    escaped = re.sub(r"([\\`*\[\]|]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return " ".join(escaped.replace("&", "&amp;").replace("<", "&lt;").split())


def _escaped_table(table: Table) -> str:
    return _aligned([[escape_markdown(cell) for cell in row] for row in table.texts])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
