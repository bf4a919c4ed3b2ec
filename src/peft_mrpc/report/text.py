"""A comparison as Markdown, LaTeX and JSON."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peft_mrpc.formatting import METHOD_WORDS, duration, rate_text, share_text, short_count
from peft_mrpc.report.analysis import difference_cells, difference_header
from peft_mrpc.report.comparison import Comparison
from peft_mrpc.report.plots import CAPTIONS
from peft_mrpc.report.summary import Verdict
from peft_mrpc.report.tables import figure_cells, figure_header, gap_cells, gap_header
from peft_mrpc.runs.model_card import figure_texts
from peft_mrpc.serialization import write_json

REPORT_FORMAT = 2
LATEX_ESCAPES = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "·": r"$\cdot$",
        "“": "``",
        "”": "''",
        "<": r"$<$",
        ">": r"$>$",
        "ε": r"$\varepsilon$",
        # After the end of a row it would begin a length.
        "[": "{[}",
        "|": r"\textbar{}",
    }
)


@dataclass(frozen=True)
class Report:
    """All that the files of a report are written from.

    Attributes:
        comparison: The Runs.
        evidence: How sure their differences are.
        verdict: What was found, in words.
        pictures: Names of the pictures, in order.
    """

    comparison: Comparison
    evidence: Mapping[str, Any]
    verdict: Verdict
    pictures: Sequence[str]

    @property
    def title(self) -> str:
        """What was scored."""
        data = self.comparison.runs[0].record["data"]
        return f"{data['name']}: {self.comparison.split} split"

    @property
    def how_sure(self) -> str:
        """How to read the table of differences."""
        points = f"{100 * self.evidence['margin']:g} points"
        return (
            "Differences in accuracy on the same pairs, in points, with 95% intervals by paired "
            f"bootstrap ({self.evidence['draws']:,} draws). p: were the two as good as each other, "
            "the probability of pairs that the one has right and the other wrong lying so "
            "unevenly (McNemar's exact test; over seeds its general form, a permutation test of "
            "the shares of seeds that are right). Holm's adjustment allows for the number of "
            "differences in the table. ROC-AUC: its difference, with an interval by the same "
            "draws. Right alone: pairs that the better alone has right, and those that the other "
            f"alone has (first seeds). Same within {points}: two one-sided tests (TOST) show the "
            "two accuracies to lie less than that apart. Over seeds: almost stochastic order, 0 "
            "where the better wins by every quantile, 0.5 where neither does."
        )

    @property
    def seeds_note(self) -> str:
        """What a ± is, where there is one."""
        if not any("std" in row for row in self.comparison.rows()):
            return ""
        return (
            "Where a figure has a ±, it is the mean and standard deviation over training seeds; "
            "confusion matrices, curves and examples show the first seed."
        )

    @property
    def strategies(self) -> dict[str, str]:
        """What each method does, by its name, where it is one of ours."""
        methods = (run.record["method"] for run in self.comparison.runs)
        return {name: METHOD_WORDS[name] for name in methods if name in METHOD_WORDS}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The table of results: what guessing reaches, then the Runs, the most accurate first."""
        guess, *rows = self.comparison.rows()
        return [guess, *sorted(rows, key=lambda row: -row["accuracy"])]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of the table of results."""
        names = self.comparison.label_names
        return table_header(names), [format_row(row, names) for row in self.rows]

    def figures(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of the table of every figure with its interval."""
        names = self.comparison.label_names
        intervals = {one["name"]: one for one in self.evidence["intervals"]}
        cells = [figure_cells(row, intervals[row["name"]], names) for row in self.rows[1:]]
        return figure_header(names), cells

    def gaps(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of the table of the differences in every other figure."""
        names = self.comparison.label_names
        return gap_header(names), [gap_cells(d, names) for d in self.evidence["differences"]]

    def differences(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of the table of differences."""
        found = self.evidence["differences"]
        return difference_header(self.evidence["margin"]), difference_cells(found)


def format_row(row: Mapping[str, Any], label_names: Sequence[str]) -> list[str]:
    """The cells of one table row, as text."""
    seconds = row.get("train_seconds")
    trained = row.get("trained_parameters")
    return [
        row["name"],
        *figure_texts(row, label_names),
        "-" if not trained else f"{short_count(trained)} ({share_text(row['trained_share'])})",
        "-" if seconds is None else duration(seconds),
        rate_text(row["score_pairs_per_second"]) if "score_pairs_per_second" in row else "-",
        f"{row['peak_memory_bytes'] / 1e9:.2f} GB" if "peak_memory_bytes" in row else "-",
    ]


def table_header(label_names: Sequence[str]) -> list[str]:
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


def write_texts(folder: Path, report: Report) -> str:
    """Write `report.md`, `report.tex` and `report.json`.

    Returns:
        The table as Markdown.
    """
    words = [f"`{name}`: {said}." for name, said in report.strategies.items()]
    parts = [
        *(f"# {markdown_text(report.title)}", markdown_text(str(report.verdict))),
        *(_escaped_table(*report.table()), report.seeds_note, "  \n".join(words)),
        *("## Every figure, with its 95% interval", _escaped_table(*report.figures())),
    ]
    header, differences = report.differences()
    if differences:
        parts += ["## Differences", _escaped_table(header, differences), report.how_sure]
        parts += ["## Differences of the other figures, in points", _escaped_table(*report.gaps())]
    parts += [f"![{CAPTIONS[name]}](plots/{name}.png)" for name in report.pictures]
    (folder / "report.md").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    (folder / "report.tex").write_text(latex_table(report), encoding="utf-8")
    write_json(folder / "report.json", report_content(report))
    return markdown_table(*report.table())


def report_content(report: Report) -> dict[str, Any]:
    """What `report.json` holds; its schema is `assets/report.schema.json`."""
    comparison = report.comparison
    data = comparison.runs[0].record["data"]
    return {
        "format_version": REPORT_FORMAT,
        "title": report.title,
        "headline": str(report.verdict),
        "data": data,
        "split": comparison.split,
        "num_examples": len(comparison.predictions[0].idx),
        "fingerprint": data["splits"][comparison.split]["fingerprint"],
        "rows": comparison.rows(),
        "evidence": report.evidence,
    }


def markdown_text(text: str) -> str:
    """Text from the data that stays text in Markdown, where `<b>` and `*` would be markup."""
    escaped = re.sub(r"([\\`*\[\]|]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return " ".join(escaped.replace("&", "&amp;").replace("<", "&lt;").split())


def _escaped_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    names = [markdown_text(name) for name in header]
    return _lined_up([names, *([markdown_text(cell) for cell in row] for row in cells)])


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table for a terminal, as Markdown has it but for what would be markup there."""
    # A pipe in a name would open a new column.
    return _lined_up([[cell.replace("|", "\\|") for cell in row] for row in [header, *cells]])


def _lined_up(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def latex_table(report: Report) -> str:
    """The results as a table for a paper (needs the package booktabs)."""
    header, cells = report.table()
    shown = len(header) - 3  # without times and memory, which are this machine's
    best = report.rows[1]["accuracy"]
    lines = []
    for row, texts in zip(report.rows, cells, strict=True):
        escaped = [text.translate(LATEX_ESCAPES) for text in texts[:shown]]
        if row["accuracy"] == best:
            escaped[1] = rf"\textbf{{{escaped[1]}}}"
        lines.append(" & ".join(escaped) + r" \\")
    lines.insert(1, r"\midrule")
    names = " & ".join(name.translate(LATEX_ESCAPES) for name in header[:shown])
    caption = f"{report.comparison.where}.".translate(LATEX_ESCAPES)
    body = "\n".join(lines)
    return rf"""% \usepackage{{booktabs}}
\begin{{table}}
\centering
\caption{{{caption}}}
\begin{{tabular}}{{l{"r" * (shown - 1)}}}
\toprule
{names} \\
\midrule
{body}
\bottomrule
\end{{tabular}}
\end{{table}}
"""
