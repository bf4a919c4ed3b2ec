"""Bars of a comparison, for jobs that should fail."""

from pathlib import Path

import pytest
from example_runs import SCORES, build_run

from peft_mrpc.config import CompareConfig
from peft_mrpc.errors import UserError
from peft_mrpc.report.comparison import Comparison, load_comparison
from peft_mrpc.report.quality_gate import check_labels, find_baseline, missed_bars, parse_bars

# Truth 1 1 1 0 0. `a` has one false positive, `c` says always the same and is as sure as can be.
CONSTANT = [0.99, 0.98, 0.97, 0.96, 0.95]


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    runs = [build_run(tmp_path / n, s, n) for n, s in (("a", SCORES["a"]), ("c", CONSTANT))]
    return load_comparison(runs, None)


def missed(comparison: Comparison, **flags: str) -> list[str]:
    config = CompareConfig(**flags)
    bars, slack = parse_bars(config)
    check_labels(bars, slack, comparison.label_names)
    return missed_bars(comparison, bars, find_baseline(config, comparison), slack)


def test_each_figure_under_its_bar_is_one_line(comparison: Comparison) -> None:
    # Of c's five "equivalent" three are right: accuracy .6, F1 0 and 2 x .6 / 1.6.
    assert missed(comparison, fail_under="accuracy=0.7, macro_f1=0.5") == [
        "c · model-x: accuracy 0.6000 is under 0.7",
        "c · model-x: macro_f1 0.3750 is under 0.5",
    ]
    assert missed(comparison, fail_under="f1=0.7") == [
        "a · model-x: F1 of 'not_equivalent' 0.6667 is under 0.7",
        "c · model-x: F1 of 'not_equivalent' 0.0000 is under 0.7",
    ]
    assert missed(comparison, fail_under="f1.equivalent=0.75") == []


def test_several_figures_are_held_against_the_baseline(comparison: Comparison) -> None:
    best = str(comparison.runs[0].path)
    wanted = "f1=0.3,roc_auc=0.5,brier=0.01,accuracy=0.2"
    assert missed(comparison, baseline=best, no_worse_than=wanted) == [
        "c · model-x: F1 of 'not_equivalent' 0.0000 is more than 0.3 below a · model-x's 0.6667",
        "c · model-x: brier 0.3651 is more than 0.01 above a · model-x's 0.1420",
    ]
    # A number alone is accuracy's, and so is nothing at all: .6 is .2 below .8.
    for slack, count in (("0.2", 0), ("0.19", 1), (None, 1)):
        flags = {"baseline": best} | ({"no_worse_than": slack} if slack else {})
        assert len(missed(comparison, **flags)) == count
    # The other way round nothing is worse but what is said to be sure of itself.
    assert missed(comparison, baseline=str(comparison.runs[1].path), no_worse_than="f1=0") == []


def test_what_rows_of_one_label_leave_undefined_misses_a_bar(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / n, SCORES[n], n, truth=[1] * 5) for n in ("a", "b")]
    comparison = load_comparison(runs, None)
    said = "roc_auc (not defined: a label has no rows) is under 0.5"
    assert [line.split(": ", 1)[1] for line in missed(comparison, fail_under="roc_auc=0.5")] == [
        said,
        said,
    ]
    assert not missed(comparison, baseline=str(runs[0].path), no_worse_than="roc_auc=0,ece=1")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"fail_under": "f1.same=0.5"}, "--fail_under: got 'f1.same'; expected one of f1.equivale"),
        ({"fail_under": "ece=0.05"}, "Less is better of it: hold it against a --baseline."),
        ({"fail_under": "accuracy=80"}, "--fail_under: got 'accuracy=80'; expected METRIC=NUMBER"),
        ({"fail_under": "accuracy=nan"}, "got 'accuracy=nan'; expected METRIC=NUMBER, 0 to 1."),
        ({"fail_under": "0.8"}, "--fail_under: got '0.8'; expected METRIC=NUMBER, 0 to 1."),
        ({"fail_under": ""}, "--fail_under: got ''; expected METRIC=NUMBER"),
        ({"fail_under": "mcc=0.1,mcc=0.2"}, "--fail_under: got mcc twice; name each metric once."),
        ({"no_worse_than": "f1=0.02"}, "--no_worse_than: got no --baseline"),
        ({"baseline": "x", "no_worse_than": "2"}, "got '2'; expected METRIC=NUMBER or a number"),
        ({"baseline": "x", "no_worse_than": "f2=0.1"}, "--no_worse_than: got 'f2'; expected one"),
        ({"baseline": "x"}, "--baseline: got 'x'; expected one of the Runs compared: "),
    ],
)
def test_bars_that_say_nothing_are_refused(
    comparison: Comparison, flags: dict[str, str], said: str
) -> None:
    with pytest.raises(UserError) as raised:
        missed(comparison, **flags)
    (line,) = raised.value.lines()
    assert said in line
