"""A classifier made of a language model, templates, demonstrations and a calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.data.examples import Example, Inputs, as_examples
from peft_mrpc.evaluation.thresholds import label_names_of
from peft_mrpc.models.batched_inference import ScoreCache
from peft_mrpc.prompting.calibration import (
    Calibration,
    TemplateScores,
    no_calibration,
    stack_label_scores,
)
from peft_mrpc.prompting.templates import Demonstration, Template


class Encoder(Protocol):
    """Encodes examples for an engine: as token ids, or as requests to a server."""

    def encode(
        self,
        template: Template,
        examples: Sequence[Example],
        demonstrations: Sequence[Demonstration],
    ) -> Any:
        """The encodings of N examples, each after the demonstrations."""


class Engine(Protocol):
    """Scores encoded prompts: a local model, or one behind an API."""

    def fingerprint(self) -> dict[str, Any]:
        """Everything except the prompts that a score depends on."""

    def score(self, batch: Any, batch_size: int, cache: ScoreCache | None = None) -> TemplateScores:
        """Label scores of the examples."""


@dataclass
class PromptClassifier:
    """Classifies examples with a prompted model, through one template or several.

    Attributes:
        encoder: Encodes examples for the engine.
        engine: The model.
        templates: T templates.
        labels: Names of the C labels.
        demonstrations: The demonstrations of every prompt.
        calibration: Turns label scores into probabilities; None for the raw scores.
        threshold: Probability above which the last of two labels is predicted.
    """

    encoder: Encoder
    engine: Engine
    templates: Sequence[Template]
    labels: list[str]
    demonstrations: Sequence[Demonstration] = ()
    calibration: Calibration | None = None
    threshold: float = 0.5

    def score(self, examples: Sequence[Example], batch_size: int = 16) -> list[TemplateScores]:
        """The uncalibrated scores of N examples by each template."""
        batches = [self.encoder.encode(t, examples, self.demonstrations) for t in self.templates]
        return [self.engine.score(batch, batch_size) for batch in batches]

    def predict_proba(self, inputs: Inputs, batch_size: int = 32) -> NDArray[np.float64]:
        """Probabilities of the labels, [N, C], columns in the order of `labels`."""
        examples = as_examples(inputs)
        if not examples:
            return np.zeros((0, len(self.labels)))
        scores = self.score(examples, batch_size)
        calibration = self.calibration or no_calibration(stack_label_scores(scores))
        return calibration.predict_proba(scores)

    def predict(self, inputs: Inputs, batch_size: int = 32) -> list[str]:
        """The predicted label name of each example."""
        probabilities = self.predict_proba(inputs, batch_size)
        return label_names_of(probabilities, self.labels, self.threshold)
