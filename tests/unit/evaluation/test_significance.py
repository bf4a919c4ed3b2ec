import numpy as np
import pytest
from scipy import stats

from peft_mrpc.evaluation.significance import (
    equivalence_test,
    holm_adjustment,
    mcnemar_test,
    permutation_test,
    wilson_interval,
)


def test_wilson_interval_equals_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20.
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        interval = wilson_interval(right, count)
        assert (interval.low, interval.high) == (
            pytest.approx(low, abs=1e-4),
            pytest.approx(high, abs=1e-4),
        )
    assert wilson_interval(0, 20).high == pytest.approx(0.1611, abs=1e-4)


def test_mcnemar_is_exact_and_1_for_identical_predictions() -> None:
    first = np.array([True] * 12 + [False] * 4 + [True] * 20)
    second = np.array([False] * 12 + [True] * 4 + [True] * 20)
    # 4 or fewer of 16 by a fair coin: 1 + 16 + 120 + 560 + 1820 of 65,536, doubled.
    assert mcnemar_test(first, second) == pytest.approx(2 * 2517 / 65536)
    assert mcnemar_test(first, first) == 1.0
    # Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91 (2013): of 21 children 7
    # had airway hyper-responsiveness after the treatment alone and 1 before it alone: p = 0.0703.
    first = np.array([True] * 7 + [False] * 1 + [True] * 13)
    second = np.array([False] * 7 + [True] * 1 + [True] * 13)
    assert mcnemar_test(first, second) == pytest.approx(0.0703, abs=5e-5)


def test_holm_adjustment_equals_values_worked_by_hand() -> None:
    # Four tests, worked by hand: 4 x .005, then 3 x .01, then the largest so far, 2 x .03.
    assert holm_adjustment([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjustment([]) == [] and holm_adjustment([0.9, 0.8]) == [1.0, 1.0]


def test_equivalence_depends_on_examples_and_margin() -> None:
    draw = np.random.default_rng(0)
    first = draw.random(4000) < 0.8
    flipped = draw.random(4000) < 0.02
    second = first ^ flipped
    differences = first.astype(float) - second
    assert equivalence_test(differences, 0.03) < 0.01
    assert equivalence_test(differences, 0.001) > 0.05
    assert equivalence_test(first[:40].astype(float) - (second[:40] ^ True), 0.03) > 0.5
    assert equivalence_test(np.zeros(40), 0.01) == 0.0


def test_equivalence_means_a_90_percent_interval_within_the_margin() -> None:
    # The two one-sided tests at 5 % are that interval (Schuirmann, 1987), here by scipy's t.
    draw = np.random.default_rng(1)
    differences = draw.choice([-1.0, 0.0, 1.0], 500, p=[0.06, 0.86, 0.08])
    low, high = stats.t.interval(0.9, 499, differences.mean(), stats.sem(differences))
    assert equivalence_test(differences, max(-low, high)) == pytest.approx(0.05)
    assert equivalence_test(differences, max(-low, high) + 0.005) < 0.05
    assert equivalence_test(-differences, 0.02) == pytest.approx(
        equivalence_test(differences, 0.02)
    )


def test_the_permutation_test_approximates_mcnemars_test_for_one_seed() -> None:
    # 15 examples that only one predicts correctly against 5: binomial, exactly 0.0414.
    differences = np.concatenate([np.ones(15), -np.ones(5), np.zeros(80)])
    assert mcnemar_test(differences > 0, differences < 0) == pytest.approx(0.04139, abs=1e-5)
    assert permutation_test(differences) == pytest.approx(0.0414, abs=0.006)
    assert permutation_test(-differences) == permutation_test(differences)
    assert permutation_test(np.zeros(9)) == 1.0


def test_the_permutation_test_is_exact_for_few_differences() -> None:
    # Thirds, as of three seeds: of the 8 signs of (1, 2/3, 1/3) two sums are 2 or more in size.
    assert permutation_test(np.array([1, 2 / 3, 1 / 3])) == pytest.approx(2 / 8)
