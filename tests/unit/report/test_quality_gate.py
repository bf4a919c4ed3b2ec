from pathlib import Path

import pytest
from example_runs import SCORES, build_run

from peft_mrpc.errors import UserError
from peft_mrpc.report.comparison import Comparison, build_comparison
from peft_mrpc.report.quality_gate import parse_quality_gate

# Truth 1 1 1 0 0. "a" has one false positive; "c" is constant and has high confidence.
CONSTANT = [0.99, 0.98, 0.97, 0.96, 0.95]


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    runs = [build_run(tmp_path / n, s, n) for n, s in (("a", SCORES["a"]), ("c", CONSTANT))]
    return build_comparison(runs)


def failures(comparison: Comparison, **options: str) -> list[str]:
    return parse_quality_gate(**options).failures(comparison)


def test_each_metric_below_its_minimum_is_one_line(comparison: Comparison) -> None:
    # Three of the five "equivalent" of c are correct: accuracy .6, F1 0 and 2 x .6 / 1.6.
    assert failures(comparison, fail_under="accuracy=0.7, macro_f1=0.5") == [
        "c · model-x: accuracy 0.6000 is under 0.7",
        "c · model-x: macro_f1 0.3750 is under 0.5",
    ]
    assert failures(comparison, fail_under="f1=0.7") == [
        "a · model-x: F1 of 'not_equivalent' 0.6667 is under 0.7",
        "c · model-x: F1 of 'not_equivalent' 0.0000 is under 0.7",
    ]
    assert failures(comparison, fail_under="f1.equivalent=0.75") == []


def test_several_metrics_are_compared_with_the_baseline(comparison: Comparison) -> None:
    best = str(comparison.runs[0].path)
    wanted = "f1=0.3,roc_auc=0.5,brier=0.01,accuracy=0.2"
    assert failures(comparison, baseline=best, no_worse_than=wanted) == [
        "c · model-x: F1 of 'not_equivalent' 0.0000 is more than 0.3 below a · model-x's 0.6667",
        "c · model-x: brier 0.3651 is more than 0.01 above a · model-x's 0.1420",
    ]
    # A number, or nothing, applies to accuracy: .6 is .2 below .8.
    for tolerance, count in (("0.2", 0), ("0.19", 1), (None, 1)):
        options = {"baseline": best} | ({"no_worse_than": tolerance} if tolerance else {})
        assert len(failures(comparison, **options)) == count
    assert failures(comparison, baseline=str(comparison.runs[1].path), no_worse_than="f1=0") == []


def test_an_undefined_metric_is_an_error_of_a_minimum_but_not_of_a_baseline(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / n, SCORES[n], n, truth=[1] * 5) for n in ("a", "b")]
    comparison = build_comparison(runs)
    with pytest.raises(UserError) as raised:
        failures(comparison, fail_under="roc_auc=0.5")
    assert raised.value.lines() == [
        "fail_under: a · model-x has no roc_auc, because a label has no examples in 'test'. "
        "Remove roc_auc, or compare another split."
    ]
    assert not failures(comparison, baseline=str(runs[0].path), no_worse_than="roc_auc=0,ece=1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fail_under": "f1.same=0.5"}, "fail_under: got 'f1.same'; expected one of f1.equivale"),
        ({"fail_under": "ece=0.05"}, "Lower values of it are better: compare it with a baseline."),
        ({"fail_under": "accuracy=80"}, "fail_under: got 'accuracy=80'; expected METRIC=NUMBER"),
        ({"fail_under": "accuracy=nan"}, "got 'accuracy=nan'; expected METRIC=NUMBER, 0 to 1."),
        ({"fail_under": "0.8"}, "fail_under: got '0.8'; expected METRIC=NUMBER, 0 to 1."),
        ({"fail_under": ""}, "fail_under: got ''; expected METRIC=NUMBER"),
        ({"fail_under": "mcc=0.1,mcc=0.2"}, "fail_under: got mcc twice; name each metric once."),
        ({"no_worse_than": "f1=0.02"}, "no_worse_than: needs a baseline"),
        ({"baseline": "x", "no_worse_than": "2"}, "got '2'; expected METRIC=NUMBER or a number"),
        ({"baseline": "x", "no_worse_than": "f2=0.1"}, "no_worse_than: got 'f2'; expected one"),
        ({"baseline": "x"}, "baseline: got 'x'; expected one of the compared Runs: "),
    ],
)
def test_invalid_options_are_refused(
    comparison: Comparison, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        failures(comparison, **options)
    (line,) = raised.value.lines()
    assert message in line
