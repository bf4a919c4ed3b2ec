"""The tables of a report: cells as text, with the numbers to sort by."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_mrpc.evaluation.metrics import SCALAR_METRICS, MetricInfo
from peft_mrpc.formatting import (
    format_bytes,
    format_count,
    format_duration,
    format_mean_std,
    format_p_value,
    format_rate,
    format_share,
)
from peft_mrpc.report.analysis import is_equivalent, is_significant
from peft_mrpc.report.comparison import Comparison
from peft_mrpc.runs.summary import format_metrics

# Metrics with one value, other than accuracy.
OTHER_METRICS = tuple(metric for metric in SCALAR_METRICS if metric.name != "accuracy")


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: Its text.
        value: The number to sort by; None sorts last.
        is_best: Whether it is the best of its column.
    """

    text: str
    value: float | None = None
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """A table whose first column has names.

    Attributes:
        header: Names of the columns.
        rows: The cells of each row.
        has_baseline: Whether the first row is the baseline and not a Run.
    """

    header: list[str]
    rows: list[list[Cell]]
    has_baseline: bool = False

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return self._aligned(escape_markdown)

    def to_text(self) -> str:
        """The table for a terminal: Markdown without escapes, except for pipes."""
        return self._aligned(lambda text: text.replace("|", "\\|"))

    def _aligned(self, escape: Callable[[str], str]) -> str:
        cells = [self.header, *([cell.text for cell in row] for row in self.rows)]
        rows = [[escape(text) for text in row] for row in cells]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
            for row in rows
        ]
        rule = "|".join("-" * (width + 2) for width in widths)
        return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


@dataclass(frozen=True)
class ReportTables:
    """All tables of a report.

    Attributes:
        results: The main metrics and costs of the baseline and of each Run, most accurate first.
        metrics: All metrics of each Run with their intervals.
        differences: Differences in accuracy of all pairs of Runs, with tests.
        metric_differences: Differences in the other metrics.
    """

    results: Table
    metrics: Table
    differences: Table
    metric_differences: Table


def escape_markdown(text: str) -> str:
    """Escape text from the data, in which `<b>` and `*` would be markup."""
    escaped = re.sub(r"([\\`*\[\]|]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return " ".join(escaped.replace("&", "&amp;").replace("<", "&lt;").split())


def build_tables(comparison: Comparison, analysis: Mapping[str, Any]) -> ReportTables:
    """Build the tables of a report."""
    names, differences = comparison.label_names, analysis["differences"]
    f1_header = [f"F1 {text}" for text in comparison.label_texts]
    baseline, *rows = comparison.rows()
    rows = sorted(rows, key=lambda row: -row["accuracy"])
    intervals = {entry["name"]: entry for entry in analysis["intervals"]}
    # The calibration error has no interval.
    compared = [metric for metric in OTHER_METRICS if metric.name in analysis["intervals"][0]]
    return ReportTables(
        results=_results(baseline, rows, names, f1_header),
        metrics=Table(
            ["method", "accuracy", *f1_header, *map(_header, OTHER_METRICS)],
            [_metric_cells(row, intervals[row["name"]], names) for row in rows],
        ),
        differences=Table(
            [
                "more accurate",
                "than",
                "accuracy, points",
                "95% interval",
                "significant",
                "p (Holm)",
                "p",
                "ROC-AUC, points",
                "correct alone",
                f"within {100 * analysis['margin']:g} points (p)",
            ],
            [_difference_cells(difference) for difference in differences],
        ),
        metric_differences=Table(
            ["more accurate", "than", *f1_header, *map(_header, compared)],
            [_metric_difference_cells(difference, names, compared) for difference in differences],
        ),
    )


def _header(metric: MetricInfo) -> str:
    return metric.label + ("" if metric.higher_is_better else " (lower is better)")


def _results(
    baseline: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    f1_header: Sequence[str],
) -> Table:
    metrics = ["accuracy", *f1_header, "ROC-AUC"]
    columns = [[_main_metrics(row, names)[n] for row in rows] for n in range(len(metrics))]
    best = [max((v for v in column if v is not None), default=None) for column in columns]
    return Table(
        ["method", *metrics, "trained", "training", "examples/s", "peak memory"],
        [
            _result_cells(row, names, best if row is not baseline else ())
            for row in (baseline, *rows)
        ],
        has_baseline=True,
    )


def _main_metrics(row: Mapping[str, Any], names: Sequence[str]) -> list[float | None]:
    return [row["accuracy"], *(row["f1"][name] for name in names), row["roc_auc"]]


def _result_cells(
    row: Mapping[str, Any], names: Sequence[str], best: Sequence[float | None]
) -> list[Cell]:
    """Cells of the results; metrics equal to `best` are marked."""
    values = _main_metrics(row, names)
    cells = [Cell(row["name"])]
    for position, (text, value) in enumerate(zip(format_metrics(row, names), values, strict=True)):
        is_best = bool(best) and value is not None and value == best[position]
        cells.append(Cell(text, value, is_best))
    trained, seconds = row.get("trained_parameters"), row.get("train_seconds")
    rate, memory = row.get("score_pairs_per_second"), row.get("peak_memory_bytes")
    share = f"{format_count(trained)} ({format_share(row['trained_share'])})" if trained else "-"
    return [
        *cells,
        Cell(share, trained),
        Cell("-" if seconds is None else format_duration(seconds), seconds),
        Cell("-" if rate is None else format_rate(rate), rate),
        Cell("-" if memory is None else format_bytes(memory), memory),
    ]


def _metric_cells(
    row: Mapping[str, Any], interval: Mapping[str, Any], names: Sequence[str]
) -> list[Cell]:
    entries = [
        (row["accuracy"], interval["accuracy"]),
        *((row["f1"][name], interval["f1"][name]) for name in names),
        *((row[metric.name], interval.get(metric.name)) for metric in OTHER_METRICS),
    ]
    return [
        Cell(row["name"]),
        *(
            Cell(
                format_mean_std(value) + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""),
                value,
            )
            for value, ends in entries
        ),
    ]


def _difference_cells(difference: Mapping[str, Any]) -> list[Cell]:
    low, high = difference["interval"]
    equivalent = "yes" if is_equivalent(difference) else "no"
    alone = difference["only_first_correct"], difference["only_second_correct"]
    return [
        Cell(difference["first"]),
        Cell(difference["second"]),
        Cell(_points(difference["accuracy"]), difference["accuracy"]),
        Cell(f"{_points(low)} to {_points(high)}", low),
        Cell("yes" if is_significant(difference) else "no"),
        Cell(format_p_value(difference["holm"]), difference["holm"]),
        Cell(format_p_value(difference["p"]), difference["p"]),
        _points_cell(difference["other_metrics"].get("roc_auc")),
        Cell(f"{alone[0]} : {alone[1]}", alone[0]),
        Cell(
            f"{equivalent} ({format_p_value(difference['equivalence'])})", difference["equivalence"]
        ),
    ]


def _metric_difference_cells(
    difference: Mapping[str, Any], names: Sequence[str], metrics: Sequence[MetricInfo]
) -> list[Cell]:
    others = difference["other_metrics"]
    return [
        Cell(difference["first"]),
        Cell(difference["second"]),
        *(_points_cell(others["f1"][name]) for name in names),
        *(_points_cell(others[metric.name]) for metric in metrics),
    ]


def _points_cell(entry: Mapping[str, Any] | None) -> Cell:
    """A difference in points with its interval."""
    if entry is None:
        return Cell("-")
    low, high = map(_points, entry["interval"])
    return Cell(f"{_points(entry['difference'])} ({low} to {high})", entry["difference"])


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"
