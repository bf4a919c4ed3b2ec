"""The command `compare`: compare Runs on the same examples and write a report."""

import sys
from collections.abc import Sequence
from pathlib import Path

from peft_mrpc.cli.app import print_text, run_cli
from peft_mrpc.cli.parser import Positional, parse_command
from peft_mrpc.config import CompareConfig
from peft_mrpc.errors import QualityGateFailed

DESCRIPTION = "Compare Runs on the same examples: peft-mrpc compare RUN... --output_dir DIR"


def main(argv: Sequence[str]) -> None:
    """Parse the command line, write the report, print its summary, and apply the quality gate."""
    positional = Positional("RUN", "directories of Runs", is_list=True)
    (config,), names = parse_command("compare", DESCRIPTION, argv, (CompareConfig,), positional)

    from peft_mrpc.api import compare_runs
    from peft_mrpc.report.build import REPORT_FILE, check_report_dir
    from peft_mrpc.report.quality_gate import parse_quality_gate

    gate = parse_quality_gate(config.fail_under, config.baseline, config.no_worse_than)
    output_dir = Path(config.output_dir)
    check_report_dir(output_dir, config.overwrite)
    report = compare_runs(names, **vars(config))
    failures = gate.failures(report.comparison)
    report.write(output_dir, config.overwrite)
    print_text(f"{report.to_text()}\n\nReport: {output_dir / REPORT_FILE}")
    if failures:
        raise QualityGateFailed(*failures)


if __name__ == "__main__":
    sys.exit(run_cli(main))
