import numpy as np
import pytest
from scipy import integrate, stats

from peft_mrpc.evaluation.significance import (
    almost_stochastic_order,
    detectable_difference,
    equivalence,
    holm,
    mcnemar,
    permutation,
    violation_ratio,
    wilson_interval,
)


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20.
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        found = wilson_interval(right, count)
        assert (found.low, found.high) == (
            pytest.approx(low, abs=1e-4),
            pytest.approx(high, abs=1e-4),
        )
    assert wilson_interval(0, 20).high == pytest.approx(0.1611, abs=1e-4)


def test_mcnemar_is_the_exact_test_and_survives_identical_answers() -> None:
    first = np.array([True] * 12 + [False] * 4 + [True] * 20)
    second = np.array([False] * 12 + [True] * 4 + [True] * 20)
    # 4 or fewer of 16 by a fair coin: 1 + 16 + 120 + 560 + 1820 of 65,536, doubled.
    assert mcnemar(first, second) == pytest.approx(2 * 2517 / 65536)
    assert mcnemar(first, first) == 1.0
    # Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91 (2013): of 21 children 7
    # had airway hyper-responsiveness after the treatment alone and 1 before it alone: p = 0.0703.
    first = np.array([True] * 7 + [False] * 1 + [True] * 13)
    second = np.array([False] * 7 + [True] * 1 + [True] * 13)
    assert mcnemar(first, second) == pytest.approx(0.0703, abs=5e-5)


def test_holms_adjustment_is_the_published_one() -> None:
    # Four tests, worked by hand: 4 x .005, then 3 x .01, then the largest so far, 2 x .03.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_equivalence_needs_rows_and_a_margin() -> None:
    draw = np.random.default_rng(0)
    first = draw.random(4000) < 0.8
    flipped = draw.random(4000) < 0.02
    second = first ^ flipped
    gaps = first.astype(float) - second
    assert equivalence(gaps, 0.03) < 0.01
    assert equivalence(gaps, 0.001) > 0.05
    assert equivalence(first[:40].astype(float) - (second[:40] ^ True), 0.03) > 0.5
    assert equivalence(np.zeros(40), 0.01) == 0.0


def test_equivalence_is_shown_where_the_90_percent_interval_lies_within_the_margin() -> None:
    # The two one-sided tests at 5 % are that interval (Schuirmann, 1987), here by scipy's t.
    draw = np.random.default_rng(1)
    gaps = draw.choice([-1.0, 0.0, 1.0], 500, p=[0.06, 0.86, 0.08])
    low, high = stats.t.interval(0.9, 499, gaps.mean(), stats.sem(gaps))
    assert equivalence(gaps, max(-low, high)) == pytest.approx(0.05)
    assert equivalence(gaps, max(-low, high) + 0.005) < 0.05
    assert equivalence(-gaps, 0.02) == pytest.approx(equivalence(gaps, 0.02))


def test_the_permutation_test_is_mcnemars_for_one_seed() -> None:
    # 15 rows that one alone has right against 5: binomial, exactly 0.0414.
    gaps = np.concatenate([np.ones(15), -np.ones(5), np.zeros(80)])
    assert mcnemar(gaps > 0, gaps < 0) == pytest.approx(0.04139, abs=1e-5)
    assert permutation(gaps, draws=40_000) == pytest.approx(0.0414, abs=0.004)
    assert permutation(-gaps, draws=1000) == permutation(gaps, draws=1000)
    assert permutation(np.zeros(9)) == 1.0


def test_the_permutation_test_counts_every_sign() -> None:
    # Thirds, as of three seeds: of the 8 signs of (1, 2/3, 1/3) two sums are 2 or more in size.
    found = permutation(np.array([1, 2 / 3, 1 / 3]), draws=40_000)
    assert found == pytest.approx(2 / 8, abs=0.01)


def test_more_rows_show_smaller_differences() -> None:
    # Connor's example form: a tenth of the rows differ, 408 of them: 4.4 points at 80 %.
    found = detectable_difference(408, 0.1)
    z = 1.959964, 0.841621
    assert found * 408**0.5 == pytest.approx(
        z[0] * 0.1**0.5 + z[1] * (0.1 - found**2) ** 0.5, abs=1e-4
    )
    assert detectable_difference(1725, 0.1) < found / 2
    assert detectable_difference(4, 0.1) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("only_first", "only_second", "count"), [(0.45, 0.05, 23), (0.30, 0.15, 155)]
)
def test_the_detectable_difference_is_that_of_published_sample_sizes(
    only_first: float, only_second: float, count: int
) -> None:
    # Pairs needed for a power of 80 % at 5 % by Connor's formula (Biometrics 43, 1987, p. 209):
    # powersamplesize.com's example for McNemar's test, and one of an odds ratio of 2.
    wanted, discordant = only_first - only_second, only_first + only_second
    assert detectable_difference(count, discordant) <= wanted
    assert detectable_difference(count - 1, discordant) > wanted


def test_a_detectable_difference_is_detected_four_times_in_five() -> None:
    # McNemar's test itself, over all splits of 408 rows: the binomial tails, not the formula.
    count, discordant = 408, 0.15
    least = detectable_difference(count, discordant)
    power = 0.0
    for moved in range(1, 130):
        splits = np.arange(moved + 1)
        z = np.abs(2 * splits - moved) / moved**0.5
        share = stats.binom.pmf(splits, moved, 0.5 + least / discordant / 2)[z > 1.959964].sum()
        power += stats.binom.pmf(moved, count, discordant) * share
    assert power == pytest.approx(0.8, abs=0.02)


def test_the_violation_ratio_is_worked_by_hand() -> None:
    # Quantile by quantile .01, .01 and -.02 ahead: of squares 1 + 1 + 4 the second leads 4.
    first, second = np.array([0.80, 0.84, 0.86]), np.array([0.79, 0.83, 0.88])
    assert violation_ratio(first, second) == pytest.approx(4 / 6)
    assert violation_ratio(second, first) == pytest.approx(2 / 6)
    # Of 2 and 3 values the quantiles step at 1/3, 1/2 and 2/3: leads 1, -1, 1 and 0 in parts of
    # 2, 1, 1 and 2 sixths.
    assert violation_ratio(np.array([2.0, 4.0]), np.array([1.0, 3.0, 4.0])) == pytest.approx(1 / 4)
    assert violation_ratio(first, first) == 0.5


def test_the_violation_ratio_of_normal_scores_is_the_integral() -> None:
    # del Barrio et al. (2018), section 1: the squared lead over the quantiles of N(.5, 1), N(0, 3).
    def lead(share: float) -> float:
        return float(stats.norm.ppf(share, 0, 3) - stats.norm.ppf(share, 0.5, 1))

    lost = integrate.quad(lambda share: max(0.0, lead(share)) ** 2, 0, 1)[0]
    total = integrate.quad(lambda share: lead(share) ** 2, 0, 1)[0]
    draw = np.random.default_rng(0)
    first, second = np.sort(draw.normal(0.5, 1, 4000)), np.sort(draw.normal(0, 3, 4000))
    assert violation_ratio(first, second) == pytest.approx(lost / total, abs=0.02)


def test_dominance_over_seeds() -> None:
    assert almost_stochastic_order([0.85, 0.86, 0.87], [0.75, 0.76, 0.77]) == 0
    assert almost_stochastic_order([0.75, 0.76, 0.77], [0.85, 0.86, 0.87]) == 1
    mixed = almost_stochastic_order([0.80, 0.84, 0.86], [0.79, 0.83, 0.88])
    assert 0.2 < mixed <= 1
    assert almost_stochastic_order([0.8, 0.8], [0.8, 0.8]) == pytest.approx(0.5)
