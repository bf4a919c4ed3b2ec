from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peft_mrpc.data.examples import DataSplits, Example
from peft_mrpc.evaluation.metrics import compute_metrics
from peft_mrpc.evaluation.thresholds import predict_labels
from peft_mrpc.runs.run import Run
from peft_mrpc.runs.summary import seed_line, summary
from peft_mrpc.runs.writer import describe_data, write_run

TWO = ["no", "yes"]
SPREAD, HIGH = [0.1, 0.2, 0.8, 0.9], [0.6, 0.7, 0.8, 0.9]


def write_metrics(
    folder: Path, yes: list[float], references: list[int], threshold: float, **record: Any
) -> Run:
    """Write the parts of a Run of two labels that the summary reads."""
    probabilities = np.stack([1 - np.array(yes), np.array(yes)], axis=1)
    predicted = predict_labels(probabilities, threshold)
    metrics = compute_metrics(np.array(references), predicted, probabilities, TWO)
    (folder / "predictions").mkdir()
    (folder / "predictions" / "validation.jsonl").touch()
    data = {"label_names": TWO, "splits": {"validation": {}}}
    timing = {"train_seconds": 1.0}
    return Run(
        folder,
        {"data": data, "timing": timing, "threshold": threshold, **record},
        {"validation": metrics},
    )


@pytest.mark.parametrize(
    ("yes", "threshold", "record", "advice"),
    [
        (HIGH, 0.5, {"strategy": "train"}, "threshold auto, more epochs, or another learning"),
        (SPREAD, 0.001, {"strategy": "train"}, "another threshold than 0.001, or auto"),
        (
            *(HIGH, 0.5, {"strategy": "hard_prompt", "config": {"calibration": "none"}}),
            "calibration batch",
        ),
        (
            *(HIGH, 0.5, {"strategy": "hard_prompt", "config": {"calibration": "affine"}}),
            "another template",
        ),
    ],
)
def test_a_constant_prediction_is_reported_with_advice(
    yes: list[float], threshold: float, record: dict[str, Any], advice: str, tmp_path: Path
) -> None:
    run = write_metrics(tmp_path, yes, [0, 0, 1, 1], threshold, **record)
    _, warning, _ = summary(run).splitlines()
    assert warning.startswith(
        f"validation: every labelled example is predicted 'yes'; try {advice}"
    )
    assert "accuracy 0.500 (every example is predicted 'yes')" in seed_line(run)


def test_three_labels_get_no_advice_about_a_threshold(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    data = DataSplits(
        "toy", names, {"validation": tuple(Example(i, "x", "y", i) for i in range(3))}
    )
    record = {
        **{"method": "full", "model": "m", "base_model_id": None, "seed": 1, "config": {}},
        **{"strategy": "train", "threshold": 0.5, "data": describe_data(data, ["validation"])},
        "timing": {"score_pairs_per_second": 1.0},
    }
    (tmp_path / "model").mkdir()
    run = write_run(tmp_path, record, data, {"validation": np.tile([0.8, 0.1, 0.1], (3, 1))})
    assert "try more epochs, or another learning_rate" in summary(run)


@pytest.mark.parametrize(("yes", "references"), [(SPREAD, [0, 0, 1, 1]), (HIGH, [1, 1, 1, 1])])
def test_other_predictions_get_no_warning(
    yes: list[float], references: list[int], tmp_path: Path
) -> None:
    run = write_metrics(tmp_path, yes, references, 0.5, strategy="train")
    assert len(summary(run).splitlines()) == 2
    assert "every" not in summary(run) + seed_line(run)
