import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    matthews_corrcoef,
    roc_auc_score,
    roc_curve,
)

from peft_mrpc.evaluation.bootstrap import (
    Sweep,
    bootstrap,
    percentile_interval,
    reflected_interval,
    roc_band,
)
from peft_mrpc.evaluation.reliability import bin_numbers
from peft_mrpc.evaluation.significance import wilson_interval


def answers(count: int, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    references = draw.integers(2, size=count)
    scores = [np.round(draw.normal(size=count) + gap * references, 1) for gap in (2.0, 1.0)]
    return references, [(own > 0.5).astype(np.int64) for own in scores], scores


def chances(scores: list[np.ndarray]) -> list[np.ndarray]:
    positive = [1 / (1 + np.exp(-own)) for own in scores]
    return [np.stack([1 - own, own], axis=1) for own in positive]


def error_in_bins(references: np.ndarray, probabilities: np.ndarray, drawn: np.ndarray) -> float:
    """ECE of drawn rows in the bins that all the rows have."""
    bins, gaps = bin_numbers(probabilities)[drawn], []
    sure, right = probabilities.max(1)[drawn], (probabilities.argmax(1) == references)[drawn]
    for number in set(bins):
        inside = bins == number
        gaps.append(inside.mean() * abs(sure[inside].mean() - right[inside].mean()))
    return float(sum(gaps))


def test_each_draw_measures_what_sklearn_does_on_the_drawn_rows() -> None:
    references, predictions, scores = answers(40)
    found = bootstrap(references, predictions, chances(scores), 2, draws=30, seed=5)
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
            precision = average_precision_score(true, scores[run][drawn])
            assert found["average_precision"][run, number] == pytest.approx(precision)
            positive = chances(scores)[run][:, 1]
            brier = brier_score_loss(true, positive[drawn])
            assert found["brier"][run, number] == pytest.approx(brier)
            assert found["ece"][run, number] == pytest.approx(
                error_in_bins(references, chances(scores)[run], drawn)
            )


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
    weights = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # [N, D]
    sweep = Sweep.of(np.array([True, False, False]), np.array([0.5, 0.5, 0.1]))
    area, precision = sweep.areas(weights)
    assert area[0] == precision[0] == 0.5 and np.isnan([area[1], precision[1]]).all()


def test_of_three_labels_areas_are_means_of_each_against_the_rest() -> None:
    draw = np.random.default_rng(2)
    references = draw.integers(3, size=60)
    probabilities = draw.dirichlet(np.ones(3), 60) / 2 + np.eye(3)[references] / 2
    found = bootstrap(references, [probabilities.argmax(1)], [probabilities], 3, draws=4, seed=1)
    rows = np.random.default_rng(1).integers(60, size=(4, 60))
    for number, drawn in enumerate(rows):
        true, said = references[drawn], probabilities[drawn]
        area = roc_auc_score(true, said, multi_class="ovr")
        assert found["roc_auc"][0, number] == pytest.approx(area)
        precision = average_precision_score(np.eye(3)[true], said)
        assert found["average_precision"][0, number] == pytest.approx(precision)


def test_the_interval_of_a_calibration_error_is_not_pushed_up_by_the_drawing() -> None:
    # Answers as sure as right: the error of the rows is the noise of the bins, and each draw has
    # that twice.
    draw = np.random.default_rng(4)
    positive = draw.random(400)
    references = (draw.random(400) < positive).astype(np.int64)
    probabilities = np.stack([1 - positive, positive], axis=1)
    drawn = bootstrap(references, [probabilities.argmax(1)], [probabilities], 2, draws=1000)["ece"]
    found = error_in_bins(references, probabilities, np.arange(400))
    assert np.median(drawn[0]) > found
    plain, mirrored = percentile_interval(drawn[0]), reflected_interval(drawn[0], found)
    assert mirrored.low < plain.low and mirrored.high < plain.high


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
