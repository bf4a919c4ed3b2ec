import evaluate
import numpy as np
import pytest

from peft_mrpc.errors import UserError
from peft_mrpc.evaluation.metrics import (
    METRICS,
    Accuracy,
    LabelMetric,
    MatthewsCorrelation,
    compute_metrics,
    module_path,
)
from peft_mrpc.evaluation.reliability import bin_numbers

NAMES = ["no", "yes"]
# Five rows worked by hand: four right, one false positive.
REFERENCES = np.array([1, 1, 1, 0, 0])
POSITIVE = np.array([0.9, 0.8, 0.6, 0.7, 0.1])
PROBABILITIES = np.stack([1 - POSITIVE, POSITIVE], axis=1)
PREDICTIONS = np.array([1, 1, 1, 1, 0])


def test_metrics_equal_what_is_worked_by_hand() -> None:
    values = compute_metrics(REFERENCES, PREDICTIONS, PROBABILITIES, NAMES)
    assert values["accuracy"] == pytest.approx(4 / 5)
    assert values["majority_accuracy"] == pytest.approx(3 / 5)
    assert values["confusion_matrix"] == [[1, 1], [0, 3]]
    assert values["f1"] == pytest.approx({"no": 2 / 3, "yes": 6 / 7})
    assert values["macro_f1"] == pytest.approx((2 / 3 + 6 / 7) / 2)
    # Of 3 x 2 pairs of a positive and a negative one is in the wrong order: .6 under .7.
    assert values["roc_auc"] == pytest.approx(5 / 6)
    # Precision at each positive found: 1/1, 2/2, 3/4.
    assert values["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert values["brier"] == pytest.approx((0.01 + 0.04 + 0.16 + 0.49 + 0.01) / 5)
    # One row a bin: |confidence - right| of .9 .8 .6 .7(wrong) .9.
    assert values["ece"] == pytest.approx((0.1 + 0.2 + 0.4 + 0.7 + 0.1) / 5)
    assert values["mcc"] == pytest.approx((3 * 1 - 1 * 0) / np.sqrt(4 * 3 * 2 * 1))
    assert values["classification_report"]["no"]["support"] == 2
    assert values["num_examples"] == 5


def test_bins_have_equal_mass_and_keep_like_answers_together() -> None:
    # 23 answers: three bins of 3 and seven of 2, by confidence.
    sure = np.linspace(0.55, 0.99, 23)[np.random.default_rng(0).permutation(23)]
    numbers = bin_numbers(np.stack([1 - sure, sure], axis=1))
    assert np.bincount(numbers).tolist() == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    assert (np.diff(numbers[np.argsort(sure)]) >= 0).all()
    # All as sure as each other: one bin, and an error of 0 where they are right as often.
    same = np.tile([0.25, 0.75], (8, 1))
    truth = np.array([0, 0, 1, 1, 1, 1, 1, 1])
    values = [
        compute_metrics(rows, same.argmax(1), same, NAMES)["ece"] for rows in (truth, truth[::-1])
    ]
    assert values == [0, 0]


def test_one_class_only_has_no_ranking_but_everything_else() -> None:
    values = compute_metrics(np.ones(5, int), PREDICTIONS, PROBABILITIES, NAMES)
    assert values["roc_auc"] is None and values["average_precision"] is None
    assert values["accuracy"] == pytest.approx(4 / 5)


def test_three_classes_are_scored_too() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7]])
    references = np.array([0, 1, 2, 2])
    values = compute_metrics(references, probabilities.argmax(1), probabilities, ["a", "b", "c"])
    assert values["accuracy"] == pytest.approx(3 / 4)
    assert values["f1"] == pytest.approx({"a": 1, "b": 2 / 3, "c": 2 / 3})
    assert values["roc_auc"] == pytest.approx(1.0)


def test_metrics_work_inside_evaluate_combine() -> None:
    combined = evaluate.combine([Accuracy(), MatthewsCorrelation()])
    values = combined.compute(predictions=[1, 0, 1, 0], references=[1, 0, 0, 0])
    assert values == pytest.approx({"accuracy": 0.75, "mcc": 1 / np.sqrt(3)})


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_loads_by_its_path_without_a_network(name: str) -> None:
    metric = evaluate.load(module_path(name))
    assert type(metric).__name__ == METRICS[name].__name__
    inputs = (
        {"predictions": PREDICTIONS}
        if issubclass(METRICS[name], LabelMetric)
        else {"prediction_scores": PROBABILITIES}
    )
    found = metric.compute(references=REFERENCES, label_names=NAMES, **inputs)
    every = compute_metrics(REFERENCES, PREDICTIONS, PROBABILITIES, NAMES)
    assert found and found == {key: every[key] for key in found}


def test_metrics_of_labels_and_of_probabilities_combine() -> None:
    names = ("accuracy", "f1_per_class", "roc_auc", "brier", "expected_calibration_error")
    combined = evaluate.combine([evaluate.load(module_path(name)) for name in names])
    values = combined.compute(
        predictions=PREDICTIONS, references=REFERENCES, prediction_scores=PROBABILITIES
    )
    every = compute_metrics(REFERENCES, PREDICTIONS, PROBABILITIES, ["0", "1"])
    assert values == {key: every[key] for key in values}
    assert {"accuracy", "f1", "roc_auc", "brier", "ece"} <= set(values)


def test_an_unknown_metric_is_named_with_its_like() -> None:
    with pytest.raises(UserError, match="got 'f1_per_clas'.*Did you mean 'f1_per_class'"):
        module_path("f1_per_clas")
