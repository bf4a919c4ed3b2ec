"""The metrics as a module of the `evaluate` library; loading it needs no network.

`evaluate.load(evaluate_module.__file__)` loads all metrics, and
`evaluate.load(evaluate_module.__file__, "brier")` a single one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from peft_mrpc.errors import unknown_name
from peft_mrpc.evaluation.metrics import LABEL_METRICS, PROBABILITY_METRICS


class ClassificationMetrics(evaluate.Metric):  # type: ignore[misc]
    """The metrics of `metrics.json`; the config name is one of them, by default all.

    `references` and `predictions` are label indices, [N]; `prediction_scores` are probabilities,
    [N, C]. Metrics of labels need `predictions`, metrics of probabilities `prediction_scores`.
    """

    def _info(self) -> evaluate.MetricInfo:
        names = {"default", *LABEL_METRICS, *PROBABILITY_METRICS}
        if self.config_name not in names:
            raise unknown_name("metric", self.config_name, names)
        features = {"references": datasets.Value("int64")}
        if self.config_name not in PROBABILITY_METRICS:
            features["predictions"] = datasets.Value("int64")
        if self.config_name not in LABEL_METRICS:
            features["prediction_scores"] = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation="",
            inputs_description="",
            features=datasets.Features(features),
        )

    def _compute(
        self,
        references: Any,
        predictions: Any = None,
        prediction_scores: Any = None,
        label_names: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Compute the metrics.

        Args:
            references: True label indices, [N].
            predictions: Predicted label indices, [N].
            prediction_scores: Probabilities, [N, C].
            label_names: Names of the C labels; by default their indices.
        """
        labels, values = np.asarray(references), {}
        if predictions is not None:
            predicted = np.asarray(predictions)
            names = label_names or [str(n) for n in range(1 + max(labels.max(), predicted.max()))]
            values = {name: f(labels, predicted, names) for name, f in self._of(LABEL_METRICS)}
        if prediction_scores is not None:
            scores = np.asarray(prediction_scores)
            values |= {name: f(labels, scores) for name, f in self._of(PROBABILITY_METRICS)}
        return values

    def _of(self, metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Names and functions of the metrics that the config selects."""
        return [item for item in metrics.items() if self.config_name in ("default", item[0])]
