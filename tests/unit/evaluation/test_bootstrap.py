import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    matthews_corrcoef,
    roc_auc_score,
)

from peft_mrpc.evaluation.bootstrap import (
    WeightedRankMetrics,
    bootstrap,
    percentile_interval,
)
from peft_mrpc.evaluation.significance import wilson_interval


def draw_predictions(
    count: int, seed: int = 0
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    references = draw.integers(2, size=count)
    scores = [np.round(draw.normal(size=count) + gap * references, 1) for gap in (2.0, 1.0)]
    return references, [(score > 0.5).astype(np.int64) for score in scores], scores


def to_probabilities(scores: list[np.ndarray]) -> list[np.ndarray]:
    positive = [1 / (1 + np.exp(-score)) for score in scores]
    return [np.stack([1 - p, p], axis=1) for p in positive]


def test_each_resample_gives_the_metrics_of_sklearn() -> None:
    references, predictions, scores = draw_predictions(40)
    values = bootstrap(
        references, predictions, to_probabilities(scores), 2, num_resamples=30, seed=5
    )
    draw = np.random.default_rng(5)
    rows = draw.integers(40, size=(30, 40))
    for number, drawn in enumerate(rows):
        for run in range(2):
            true, predicted = references[drawn], predictions[run][drawn]
            assert values["accuracy"][run, number] == pytest.approx(accuracy_score(true, predicted))
            f1 = f1_score(true, predicted, average=None, labels=[0, 1], zero_division=0)
            assert values["f1_0"][run, number] == pytest.approx(f1[0])
            assert values["macro_f1"][run, number] == pytest.approx(f1.mean())
            mcc = matthews_corrcoef(true, predicted)
            assert values["mcc"][run, number] == pytest.approx(mcc)
            area = roc_auc_score(true, scores[run][drawn])
            assert values["roc_auc"][run, number] == pytest.approx(area)
            precision = average_precision_score(true, scores[run][drawn])
            assert values["average_precision"][run, number] == pytest.approx(precision)
            positive = to_probabilities(scores)[run][:, 1]
            brier = brier_score_loss(true, positive[drawn])
            assert values["brier"][run, number] == pytest.approx(brier)


def test_paired_intervals_are_narrower_than_independent_ones() -> None:
    references, predictions, scores = draw_predictions(200)
    values = bootstrap(references, predictions, to_probabilities(scores), 2, num_resamples=2500)
    assert values["accuracy"].shape == (2, 2500)
    interval = percentile_interval(values["accuracy"][0])
    accuracy = (predictions[0] == references).mean()
    close = wilson_interval(int(accuracy * 200), 200)
    assert abs(interval.low - close.low) < 0.02 and abs(interval.high - close.high) < 0.02
    gaps = percentile_interval(values["accuracy"][0] - values["accuracy"][1])
    alone = percentile_interval(values["accuracy"][1])
    assert gaps.high - gaps.low < (interval.high - interval.low) + (alone.high - alone.low)


def test_a_resample_without_a_label_has_no_areas() -> None:
    weights = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # [N, D]
    ranking = WeightedRankMetrics.build(np.array([True, False, False]), np.array([0.5, 0.5, 0.1]))
    area, precision = ranking.areas(weights)
    assert area[0] == precision[0] == 0.5 and np.isnan([area[1], precision[1]]).all()


def test_areas_of_three_labels_are_one_vs_rest_means() -> None:
    draw = np.random.default_rng(2)
    references = draw.integers(3, size=60)
    probabilities = draw.dirichlet(np.ones(3), 60) / 2 + np.eye(3)[references] / 2
    values = bootstrap(
        references, [probabilities.argmax(1)], [probabilities], 3, num_resamples=4, seed=1
    )
    rows = np.random.default_rng(1).integers(60, size=(4, 60))
    for number, drawn in enumerate(rows):
        true, scores = references[drawn], probabilities[drawn]
        area = roc_auc_score(true, scores, multi_class="ovr")
        assert values["roc_auc"][0, number] == pytest.approx(area)
        precision = average_precision_score(np.eye(3)[true], scores)
        assert values["average_precision"][0, number] == pytest.approx(precision)


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_has_its_nominal_coverage(seed: int) -> None:
    draw = np.random.default_rng(seed)
    covered = 0
    for _ in range(60):
        references = draw.integers(2, size=120)
        is_correct = draw.random(120) < 0.8
        predicted = np.where(is_correct, references, 1 - references)
        certain = np.eye(2)[predicted]
        values = bootstrap(references, [predicted], [certain], 2, num_resamples=400, seed=seed)
        interval = percentile_interval(values["accuracy"][0])
        covered += interval.low <= 0.8 <= interval.high
    assert covered >= 50  # of 60; the expectation is 57
