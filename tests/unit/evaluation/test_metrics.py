import evaluate
import numpy as np
import pytest

from peft_mrpc.errors import UserError
from peft_mrpc.evaluation import evaluate_module
from peft_mrpc.evaluation.metrics import (
    LABEL_METRICS,
    METRICS,
    PROBABILITY_METRICS,
    REPORTED_METRICS,
    compute_metrics,
    confidence_bins,
    flatten_metrics,
)

NAMES = ["no", "yes"]
# Five examples: four correct, one false positive.
REFERENCES = np.array([1, 1, 1, 0, 0])
POSITIVE = np.array([0.9, 0.8, 0.6, 0.7, 0.1])
PROBABILITIES = np.stack([1 - POSITIVE, POSITIVE], axis=1)
PREDICTIONS = np.array([1, 1, 1, 1, 0])


def test_metrics_equal_values_worked_by_hand() -> None:
    values = compute_metrics(REFERENCES, PREDICTIONS, PROBABILITIES, NAMES)
    assert values["accuracy"] == pytest.approx(4 / 5)
    assert values["majority_accuracy"] == pytest.approx(3 / 5)
    assert values["confusion_matrix"] == [[1, 1], [0, 3]]
    assert values["f1"] == pytest.approx({"no": 2 / 3, "yes": 6 / 7})
    assert values["macro_f1"] == pytest.approx((2 / 3 + 6 / 7) / 2)
    # Of 3 x 2 pairs of a positive and a negative example, one is in the wrong order: .6 under .7.
    assert values["roc_auc"] == pytest.approx(5 / 6)
    # Precision at each positive example: 1/1, 2/2, 3/4.
    assert values["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert values["brier"] == pytest.approx((0.01 + 0.04 + 0.16 + 0.49 + 0.01) / 5)
    # One example per bin: |confidence - accuracy| of .9 .8 .6 .7 (incorrect) .9.
    assert values["ece"] == pytest.approx((0.1 + 0.2 + 0.4 + 0.7 + 0.1) / 5)
    assert values["mcc"] == pytest.approx((3 * 1 - 1 * 0) / np.sqrt(4 * 3 * 2 * 1))
    assert values["classification_report"]["no"]["support"] == 2
    assert values["num_examples"] == 5


def test_bins_have_equal_mass_and_share_equal_confidences() -> None:
    # 23 examples: three bins of 3 and seven of 2, by confidence.
    confidence = np.linspace(0.55, 0.99, 23)[np.random.default_rng(0).permutation(23)]
    bins = confidence_bins(np.ones(23, int), np.stack([1 - confidence, confidence], axis=1))
    assert [each.count for each in bins] == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    assert bins[0].confidence == pytest.approx(np.sort(confidence)[:3].mean())
    assert (np.diff([each.confidence for each in bins]) > 0).all()
    # Equal confidences: one bin, with error 0 if the accuracy equals the confidence.
    same = np.tile([0.25, 0.75], (8, 1))
    truth = np.array([0, 0, 1, 1, 1, 1, 1, 1])
    values = [
        compute_metrics(rows, same.argmax(1), same, NAMES)["ece"] for rows in (truth, truth[::-1])
    ]
    assert values == [0, 0]


def test_a_single_class_has_no_areas_but_all_other_metrics() -> None:
    values = compute_metrics(np.ones(5, int), PREDICTIONS, PROBABILITIES, NAMES)
    assert values["roc_auc"] is None and values["average_precision"] is None
    assert values["accuracy"] == pytest.approx(4 / 5)


def test_three_classes() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7]])
    references = np.array([0, 1, 2, 2])
    values = compute_metrics(references, probabilities.argmax(1), probabilities, ["a", "b", "c"])
    assert values["accuracy"] == pytest.approx(3 / 4)
    assert values["f1"] == pytest.approx({"a": 1, "b": 2 / 3, "c": 2 / 3})
    assert values["roc_auc"] == pytest.approx(1.0)


def test_the_evaluate_module_computes_every_metric_offline() -> None:
    values = evaluate.load(evaluate_module.__file__).compute(
        predictions=PREDICTIONS,
        references=REFERENCES,
        prediction_scores=PROBABILITIES,
        label_names=NAMES,
    )
    every = compute_metrics(REFERENCES, PREDICTIONS, PROBABILITIES, NAMES)
    assert set(every) - set(values) == {"num_examples", "majority_accuracy"}
    assert values == {key: every[key] for key in values}


@pytest.mark.parametrize("name", [*LABEL_METRICS, *PROBABILITY_METRICS])
def test_the_evaluate_module_computes_one_metric(name: str) -> None:
    inputs = (
        {"predictions": PREDICTIONS}
        if name in LABEL_METRICS
        else {"prediction_scores": PROBABILITIES}
    )
    metric = evaluate.load(evaluate_module.__file__, name)
    # Without names, the labels are named by their indices.
    every = compute_metrics(REFERENCES, PREDICTIONS, PROBABILITIES, ["0", "1"])
    assert metric.compute(references=REFERENCES, **inputs) == {name: every[name]}


def test_metrics_of_labels_and_of_probabilities_combine() -> None:
    names = ("accuracy", "f1", "roc_auc", "brier")
    combined = evaluate.combine([evaluate.load(evaluate_module.__file__, name) for name in names])
    values = combined.compute(
        predictions=PREDICTIONS,
        references=REFERENCES,
        prediction_scores=PROBABILITIES,
        label_names=NAMES,
    )
    every = compute_metrics(REFERENCES, PREDICTIONS, PROBABILITIES, NAMES)
    assert values == {name: every[name] for name in names}


def test_an_unknown_metric_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="got 'bier'.*Did you mean 'brier'"):
        evaluate.load(evaluate_module.__file__, "bier")


def test_the_registry_names_every_metric_of_a_run() -> None:
    values = compute_metrics(REFERENCES, PREDICTIONS, PROBABILITIES, NAMES)
    tables = {"confusion_matrix", "classification_report", "num_examples", "majority_accuracy"}
    assert {metric.name for metric in REPORTED_METRICS} == set(values) - tables
    assert {name for name in METRICS if not METRICS[name].higher_is_better} == {
        "brier",
        "ece",
        "loss",
    }
    flat = flatten_metrics(values)
    assert flat["f1.yes"] == pytest.approx(6 / 7) and flat["ece"] == values["ece"]


def test_metrics_without_the_flag_need_no_probabilities() -> None:
    certain = np.eye(2)[PREDICTIONS]
    values, others = (
        flatten_metrics(compute_metrics(REFERENCES, PREDICTIONS, scores, NAMES))
        for scores in (PROBABILITIES, certain)
    )
    same = {name for name in values if values[name] == others[name]}
    of_labels = {name for name in values if not METRICS[name.split(".")[0]].needs_probabilities}
    assert same == of_labels
