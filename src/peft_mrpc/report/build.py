"""Build a report from Runs, and write its files."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from peft_mrpc.config import CompareConfig
from peft_mrpc.errors import UserError, raise_faults
from peft_mrpc.evaluation.plot_style import save_figure
from peft_mrpc.report.analysis import analyze
from peft_mrpc.report.comparison import Comparison, build_comparison
from peft_mrpc.report.html import report_html
from peft_mrpc.report.plots import CAPTIONS, build_plots
from peft_mrpc.report.summary import (
    Summary,
    build_summary,
    difference_notes,
    method_descriptions,
    seeds_note,
)
from peft_mrpc.report.tables import ReportTables, build_tables, escape_markdown
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.runs.staging import DirectoryKind, check_output_dir, staged_directory
from peft_mrpc.serialization import encode_text, read_json, write_json

REPORT_FORMAT = 4
REPORT_FILE = "report.html"
DATA_FILE = "report.json"


def _read_report(folder: Path) -> None:
    """Raise UserError if a directory holds no report."""
    content = read_json(folder / DATA_FILE)
    if not isinstance(content, dict) or not {"format_version", "headline"} <= content.keys():
        raise UserError(f"{folder / DATA_FILE}: expected the content of a report.")


REPORT_DIRECTORY = DirectoryKind(
    "report", frozenset({REPORT_FILE, "report.md", DATA_FILE, "plots"}), _read_report
)


@dataclass(frozen=True)
class Report:
    """The comparison of Runs.

    Attributes:
        comparison: The Runs, aligned.
        analysis: Intervals and significance tests, the part `analysis` of `report.json`.
        max_examples: Maximum number of examples in the HTML page; 0 for none.
    """

    comparison: Comparison
    analysis: Mapping[str, Any]
    max_examples: int = CompareConfig.max_examples

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """The metrics of each Run for the compared split, by the Run's name."""
        return dict(zip(self.comparison.names, self.comparison.metrics, strict=True))

    @cached_property
    def summary(self) -> Summary:
        """The summary; `str(report.summary)` is its text."""
        return build_summary(self.comparison, self.analysis)

    @cached_property
    def tables(self) -> ReportTables:
        """The tables."""
        return build_tables(self.comparison, self.analysis)

    def to_markdown(self) -> str:
        """Summary and tables as Markdown."""
        methods = method_descriptions(self.comparison)
        parts = [
            f"# {escape_markdown(self.comparison.title)}",
            escape_markdown(str(self.summary)),
            self.tables.results.to_markdown(),
            seeds_note(self.comparison),
            "  \n".join(f"`{name}`: {text}." for name, text in methods.items()),
            "## All metrics with 95% intervals",
            self.tables.metrics.to_markdown(),
        ]
        if self.tables.differences.rows:
            notes = difference_notes(self.analysis)
            parts += [
                "## Significance of the differences",
                self.tables.differences.to_markdown(),
                "\n".join(f"- {name}: {text}" for name, text in notes.items()),
                "## Differences in other metrics, in points",
                self.tables.metric_differences.to_markdown(),
            ]
        return "\n\n".join(filter(None, parts)) + "\n"

    def to_text(self) -> str:
        """Summary and table of results for a terminal."""
        return f"{self.summary}\n\n{self.tables.results.to_text()}"

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`; its schema is `assets/report.schema.json`."""
        return {
            "format_version": REPORT_FORMAT,
            "title": self.comparison.title,
            "headline": str(self.summary),
            "data": self.comparison.data,
            "split": self.comparison.split,
            "num_examples": len(self.comparison.references),
            "fingerprint": self.comparison.fingerprint,
            "rows": self.comparison.rows(),
            "analysis": self.analysis,
        }

    def write_html(self, path: str | Path) -> None:
        """Write the report as one HTML file."""
        Path(path).write_bytes(encode_text(self._html()))

    def write(self, output_dir: str | Path, overwrite: bool = False) -> None:
        """Write the report as HTML, Markdown and JSON, and the plots as PNG and SVG.

        Args:
            output_dir: The directory.
            overwrite: Whether an existing report may be replaced.
        Raises:
            UserError: If the directory holds a report or other files, or is not writable.
        """
        with staged_directory(Path(output_dir), overwrite, REPORT_DIRECTORY) as staging:
            plots = staging / "plots"
            plots.mkdir()
            for name, figure in self._figures.items():
                (plots / f"{name}.svg").write_bytes(self._svgs[name])
                save_figure(figure, plots / f"{name}.png")
            images = [f"\n![{CAPTIONS[name]}](plots/{name}.png)\n" for name in self._svgs]
            text = self.to_markdown() + "".join(images)
            (staging / "report.md").write_bytes(encode_text(text))
            write_json(staging / DATA_FILE, self.to_json())
            self.write_html(staging / REPORT_FILE)

    @cached_property
    def _figures(self) -> dict[str, Figure]:
        """Figures by name."""
        return build_plots(self.comparison, self.analysis)

    @cached_property
    def _svgs(self) -> dict[str, bytes]:
        """SVG files by name."""
        files = {}
        for name, figure in self._figures.items():
            buffer = io.BytesIO()
            save_figure(figure, buffer, "svg")
            files[name] = buffer.getvalue()
        return files

    def _html(self) -> str:
        return report_html(
            self.comparison,
            self.analysis,
            self.summary,
            self.tables,
            self._svgs,
            self.max_examples,
        )


def check_report_dir(output_dir: Path, overwrite: bool) -> None:
    """Refuse a directory where the report cannot be written.

    Raises:
        UserError: If it holds a report and `overwrite` is off, holds other files, or is read-only.
    """
    check_output_dir(output_dir, overwrite, REPORT_DIRECTORY)


def build_report(runs: Sequence[Run | str | Path], config: CompareConfig | None = None) -> Report:
    """Compare Runs on the same examples.

    Args:
        runs: Runs or their directories.
        config: What to compare; its output directory and quality gate are not used here.
    Raises:
        UserError: If an option is invalid, a Run is missing or damaged, or was scored on other
            examples.
    """
    config = config or CompareConfig()
    faults = []
    if not 0 < config.equivalence_margin < 1:
        faults.append(
            f"equivalence_margin: got {config.equivalence_margin}; expected a number from 0 to 1."
        )
    if config.max_examples < 0:
        faults.append(f"max_examples: got {config.max_examples}; expected 0 or more.")
    raise_faults(faults)
    loaded = [run if isinstance(run, Run) else load_run(run) for run in runs]
    comparison = build_comparison(loaded, config.split, config.aggregate_seeds)
    analysis = analyze(comparison, config.equivalence_margin)
    return Report(comparison, analysis, config.max_examples)
