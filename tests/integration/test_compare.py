"""The command `compare`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from example_runs import SCORES, build_run, change_json

from peft_mrpc.cli.app import run_cli
from peft_mrpc.compare import main
from peft_mrpc.runs.run import Run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Runs with accuracies 0.8 and 0.6."""
    return [
        build_run(tmp_path / "a", SCORES["a"], "layer_freeze"),
        build_run(tmp_path / "b", [0.9, 0.2, 0.6, 0.7, 0.1], "prompt_tuning"),
    ]


def test_the_command_writes_the_report_and_prints_its_table(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main([*(str(run.path) for run in runs), "--output_dir", str(out)])
    printed = capsys.readouterr().out
    assert printed.startswith("layer_freeze · model-x is the most accurate of 2 strategies: 80.0%")
    assert "| prompt_tuning · model-x" in printed and f"Report: {out / 'report.html'}" in printed
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert [row["accuracy"] for row in rows] == pytest.approx([0.6, 0.8, 0.6])


def test_an_existing_report_is_replaced_only_with_overwrite(
    runs: list[Run], tmp_path: Path, fails: Callable[..., str]
) -> None:
    run, out = str(runs[0].path), str(tmp_path / "out")
    flags = [run, "--output_dir", out, "--max_examples", "0"]
    main(flags)
    before = (Path(out) / "report.html").read_bytes()
    assert "--output_dir: got" in fails(main, *flags)
    assert (Path(out) / "report.html").read_bytes() == before
    main([*flags[:3], "--overwrite"])
    assert (Path(out) / "report.html").read_bytes() != before
    message = fails(main, run, "--output_dir", run, "--overwrite")
    assert "files that do not belong to a report" in message


def test_invalid_arguments_are_one_line_each(
    runs: list[Run], tmp_path: Path, fails: Callable[..., str]
) -> None:
    run, out = str(runs[0].path), ["--output_dir", str(tmp_path / "out")]
    assert "has no labelled split 'dev'" in fails(main, run, "--split", "dev", *out)
    assert "is not a directory" in fails(main, str(tmp_path / "missing"), *out)
    assert "got no RUN; expected directories of Runs" in fails(main, *out)
    assert "--max_examples: got -1" in fails(main, run, "--max_examples", "-1", *out)
    assert "--fail_under: got 'acuracy'" in fails(main, run, "--fail_under", "acuracy=1", *out)
    assert "--no_worse_than: needs a" in fails(main, run, "--no_worse_than", "0.1", *out)
    assert "--baseline: got 'other'; expected" in fails(main, run, "--baseline", "other", *out)
    (runs[0].path / "metrics.json").write_text('{"test": null}')
    assert fails(main, run, *out) == (
        f"peft-mrpc: {run}/metrics.json: damaged: test is null; expected object."
    )
    assert not (tmp_path / "out").exists()


def test_a_gate_on_a_metric_that_is_not_a_number_is_exit_code_2(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_json(runs[0].path / "metrics.json", lambda m: m["test"].update(accuracy=float("nan")))
    out = ["--output_dir", str(tmp_path / "out"), "--fail_under", "accuracy=0.1"]
    assert run_cli(main, [str(runs[0].path), *out]) == 2
    assert "accuracy is NaN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("gate", "failure"),
    [
        (["--fail_under", "accuracy=0.6", "--baseline", "b"], None),
        (["--baseline", "a"], "accuracy 0.6000 is more than 0 below layer_freeze · model-x's 0.8"),
    ],
)
def test_a_failed_quality_gate_is_exit_code_3_and_the_report_is_written(
    runs: list[Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gate: list[str],
    failure: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    code = run_cli(main, ["a", "b", "--output_dir", "out", *gate])
    assert code == (0 if failure is None else 3)
    assert failure is None or failure in capsys.readouterr().err
    assert (tmp_path / "out" / "report.html").is_file()
