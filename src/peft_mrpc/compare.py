"""Compare Runs on the same rows: one table, pictures, and a report to look into."""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_mrpc.cli.app import run_cli
from peft_mrpc.cli.parser import parse_flags
from peft_mrpc.config import CompareConfig
from peft_mrpc.errors import QualityGateFailed, UserError
from peft_mrpc.evaluation.plot_style import on_page, save_picture
from peft_mrpc.report.analysis import describe_evidence
from peft_mrpc.report.comparison import Comparison, load_comparison
from peft_mrpc.report.examples import explorer_data
from peft_mrpc.report.html import write_html
from peft_mrpc.report.plots import build_pictures
from peft_mrpc.report.quality_gate import check_labels, find_baseline, missed_bars, parse_bars
from peft_mrpc.report.seed_groups import join_seeds
from peft_mrpc.report.sentences import find_sentences
from peft_mrpc.report.summary import build_verdict
from peft_mrpc.report.text import Report, write_texts
from peft_mrpc.runs.run import load_run
from peft_mrpc.runs.staging import check_output_dir, staged_directory

logger = logging.getLogger(__name__)

DESCRIPTION = "Compare Runs on the same rows: peft-mrpc compare RUN... --output_dir DIR"
REPORT_FILE = "report.html"
REPORT_CONTENTS = frozenset({REPORT_FILE, "report.md", "report.tex", "report.json", "plots"})
NO_SENTENCES = (
    "The sentences are not here: the Runs were written by an earlier version, and the data they "
    "were scored on is not where it was."
)


def main(argv: Sequence[str]) -> None:
    (config, names), _ = parse_flags(
        "compare",
        DESCRIPTION,
        (CompareConfig,),
        argv,
        positional={"dest": "runs", "nargs": "+", "metavar": "RUN", "help": "directories of Runs"},
    )
    bars, slack = parse_bars(config)
    if not 0 < config.equivalence_margin < 1:
        raise UserError(
            f"--equivalence_margin: got {config.equivalence_margin}; expected more than 0, under 1."
        )
    if config.max_examples < 0:
        raise UserError(f"--max_examples: got {config.max_examples}; expected 0 or more.")
    comparison = open_comparison(names.runs, config)
    check_labels(bars, slack, comparison.label_names)
    baseline = find_baseline(config, comparison)
    sys.stdout.write(f"{write_comparison(comparison, config)}\n")
    missed = missed_bars(comparison, bars, baseline, slack)
    if missed:
        raise QualityGateFailed(*missed)


def compare(
    paths: Sequence[str], output_dir: Path, split: str | None = None, overwrite: bool = False
) -> str:
    """Write the report of a comparison.

    Returns:
        The verdict, the table and the report's path, for the terminal.
    Raises:
        UserError: If the Runs were not scored on the same rows, or a report is there already.
    """
    config = CompareConfig(output_dir=str(output_dir), split=split, overwrite=overwrite)
    return write_comparison(open_comparison(paths, config), config)


def open_comparison(paths: Sequence[str], config: CompareConfig) -> Comparison:
    """Load Runs, and make sure that a report may be written."""
    check_output_dir(Path(config.output_dir), config.overwrite, REPORT_CONTENTS, "report")
    runs = [load_run(path) for path in paths]
    return load_comparison(runs, config.split, join_seeds if config.join_seeds else None)


def write_comparison(comparison: Comparison, config: CompareConfig) -> str:
    """Write the report; the verdict, its table and its path, for the terminal."""
    output_dir = Path(config.output_dir)
    evidence = describe_evidence(comparison, config.equivalence_margin)
    sentences = None
    if config.max_examples:
        sentences = find_sentences(comparison.runs, comparison.split)
        if sentences is None:
            logger.warning("compare: no examples in the report. %s", NO_SENTENCES)
    examples = explorer_data(comparison, sentences, config.max_examples) if sentences else None
    verdict = build_verdict(comparison, evidence)
    with staged_directory(output_dir) as staging:
        names = _draw(comparison, evidence, staging / "plots")
        report = Report(comparison, evidence, verdict, names)
        table = write_texts(staging, report)
        why = NO_SENTENCES if config.max_examples and not sentences else ""
        write_html(staging / REPORT_FILE, report, staging / "plots", examples, why)
    return f"{verdict}\n\n{table}\n\nReport: {output_dir / REPORT_FILE}"


def _draw(comparison: Comparison, evidence: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw every picture for either page; their names, in order."""
    folder.mkdir()
    names: list[str] = []
    for page, suffix in (("light", ""), ("dark", "_dark")):
        with on_page(page):
            figures = build_pictures(comparison, evidence)
            for name, figure in figures.items():
                save_picture(
                    figure, *(folder / f"{name}{suffix}.{kind}" for kind in ("svg", "png"))
                )
        names = list(figures)
    return names


if __name__ == "__main__":
    sys.exit(run_cli(main))
