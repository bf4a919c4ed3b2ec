import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    matthews_corrcoef,
    roc_auc_score,
    roc_curve,
)

from peft_mrpc.statistics import (
    almost_stochastic_order,
    bootstrap,
    detectable_difference,
    equivalence,
    holm,
    mcnemar,
    percentile_interval,
    permutation,
    roc_band,
    weighted_auc,
    wilson_interval,
)


def answers(count: int, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    references = draw.integers(2, size=count)
    scores = [np.round(draw.normal(size=count) + gap * references, 1) for gap in (2.0, 1.0)]
    return references, [(own > 0.5).astype(np.int64) for own in scores], scores


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20.
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        found = wilson_interval(right, count)
        assert (found.low, found.high) == (
            pytest.approx(low, abs=1e-4),
            pytest.approx(high, abs=1e-4),
        )
    assert wilson_interval(0, 20).high == pytest.approx(0.1611, abs=1e-4)


def test_each_draw_measures_what_sklearn_does_on_the_drawn_rows() -> None:
    references, predictions, scores = answers(40)
    found = bootstrap(references, predictions, scores, 2, draws=30, seed=5)
    draw = np.random.default_rng(5)
    rows = draw.integers(40, size=(30, 40))
    for number, drawn in enumerate(rows):
        for run in range(2):
            true, said = references[drawn], predictions[run][drawn]
            assert found["accuracy"][run, number] == pytest.approx(accuracy_score(true, said))
            f1 = f1_score(true, said, average=None, labels=[0, 1], zero_division=0)
            assert found["f1_0"][run, number] == pytest.approx(f1[0])
            assert found["macro_f1"][run, number] == pytest.approx(f1.mean())
            mcc = matthews_corrcoef(true, said)
            assert found["mcc"][run, number] == pytest.approx(mcc)
            area = roc_auc_score(true, scores[run][drawn])
            assert found["roc_auc"][run, number] == pytest.approx(area)


def test_draws_are_enough_for_an_interval_and_the_same_in_parts() -> None:
    references, predictions, _ = answers(200)
    found = bootstrap(references, predictions, None, 2, draws=2500)
    assert found["accuracy"].shape == (2, 2500) and "roc_auc" not in found
    interval = percentile_interval(found["accuracy"][0])
    accuracy = (predictions[0] == references).mean()
    close = wilson_interval(int(accuracy * 200), 200)
    assert abs(interval.low - close.low) < 0.02 and abs(interval.high - close.high) < 0.02
    # Paired: the difference is known better than by two intervals on their own.
    gaps = percentile_interval(found["accuracy"][0] - found["accuracy"][1])
    alone = percentile_interval(found["accuracy"][1])
    assert gaps.high - gaps.low < (interval.high - interval.low) + (alone.high - alone.low)


def test_a_draw_of_one_label_has_no_area() -> None:
    weights = np.array([[1, 1, 0], [0, 0, 1]], dtype=np.float32)
    found = weighted_auc(weights, np.array([1, 0, 0]), np.array([0.5, 0.5, 0.1]))
    assert found[0] == 0.5 and np.isnan(found[1])


def test_mcnemar_is_the_exact_test_and_survives_identical_answers() -> None:
    first = np.array([True] * 12 + [False] * 4 + [True] * 20)
    second = np.array([False] * 12 + [True] * 4 + [True] * 20)
    # 4 or fewer of 16 by a fair coin: 1 + 16 + 120 + 560 + 1820 of 65,536, doubled.
    assert mcnemar(first, second) == pytest.approx(2 * 2517 / 65536)
    assert mcnemar(first, first) == 1.0


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


def test_the_band_holds_the_curve_and_narrows_with_rows() -> None:
    references, _, scores = answers(60)
    rates, low, high = roc_band(references, scores[0], draws=300)
    false, true, _ = roc_curve(references, scores[0])
    middle = np.interp(rates, false, true)
    inside = (low <= middle) & (middle <= high)
    assert inside[5:].mean() > 0.95
    more, _, many = answers(2000)
    _, low_many, high_many = roc_band(more, many[0], draws=300)
    assert (high_many - low_many).mean() < 0.4 * (high - low).mean()


def test_the_band_reads_each_draw_as_sklearn_does() -> None:
    references, _, scores = answers(30)
    draw = np.random.default_rng(3)
    order, curves = np.argsort(-scores[1], kind="stable"), []
    for _ in range(20):
        rows = order[draw.integers(30, size=30)]
        false, true, _ = roc_curve(references[rows], scores[1][rows], drop_intermediate=False)
        curves.append(np.interp(np.linspace(0, 1, 11), false, true))
    _, low, high = roc_band(references, scores[1], draws=20, points=11, seed=3)
    assert np.allclose([low, high], np.percentile(curves, [2.5, 97.5], axis=0))


def test_more_rows_show_smaller_differences() -> None:
    # Connor's example form: a tenth of the rows differ, 408 of them: 4.4 points at 80 %.
    found = detectable_difference(408, 0.1)
    z = 1.959964, 0.841621
    assert found * 408**0.5 == pytest.approx(
        z[0] * 0.1**0.5 + z[1] * (0.1 - found**2) ** 0.5, abs=1e-4
    )
    assert detectable_difference(1725, 0.1) < found / 2
    assert detectable_difference(4, 0.1) == pytest.approx(0.1)


def test_dominance_over_seeds() -> None:
    assert almost_stochastic_order([0.85, 0.86, 0.87], [0.75, 0.76, 0.77]) == 0
    assert almost_stochastic_order([0.75, 0.76, 0.77], [0.85, 0.86, 0.87]) == 1
    mixed = almost_stochastic_order([0.80, 0.84, 0.86], [0.79, 0.83, 0.88])
    assert 0.2 < mixed <= 1
    assert almost_stochastic_order([0.8, 0.8], [0.8, 0.8]) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_covers_what_it_should(seed: int) -> None:
    draw = np.random.default_rng(seed)
    covered = 0
    for _ in range(60):
        references = draw.integers(2, size=120)
        right = draw.random(120) < 0.8
        said = np.where(right, references, 1 - references)
        found = bootstrap(references, [said], None, 2, draws=400, seed=seed)
        interval = percentile_interval(found["accuracy"][0])
        covered += interval.low <= 0.8 <= interval.high
    assert covered >= 50  # of 60; 57 are expected
