"""Classify examples with a fine-tuned model.

Shapes: N examples, C classes.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import BatchEncoding, PretrainedConfig, PreTrainedTokenizerBase

from peft_mrpc.data.encoding import LENGTH_COLUMN, encode_examples
from peft_mrpc.data.examples import Example, Inputs, as_examples
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import TrainingDiverged
from peft_mrpc.evaluation.thresholds import label_names_of
from peft_mrpc.models.batched_inference import classifier_probabilities, run_batched
from peft_mrpc.models.modeling_sentence_pair import SentencePairConfig, mark_sentences

logger = logging.getLogger(__name__)


class ClassificationCollator:
    """Pads a batch, and marks the two sentences for heads that pool them separately.

    The marks are computed from the token ids here, because a soft prompt replaces the ids by
    embeddings before the model sees them.

    Args:
        tokenizer: Pads on the side that the model needs.
        config: The model's configuration.
        multiple_of: The padded length is a multiple of this number.
        max_length: Maximum tokens of an example, an upper limit of the padded length; None for no
            limit.
        added: Virtual tokens that the model adds to each example; they count for the multiple.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainedConfig,
        multiple_of: int = 1,
        max_length: int | None = None,
        added: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.added = added
        self.multiple_of = multiple_of
        self.max_length = max_length
        self.special_ids = config.special_ids if isinstance(config, SentencePairConfig) else None

    def __call__(self, features: Sequence[dict[str, Any]]) -> BatchEncoding:
        features = [
            {name: value for name, value in feature.items() if name != LENGTH_COLUMN}
            for feature in features
        ]
        longest = max(len(feature["input_ids"]) for feature in features)
        length = math.ceil((longest + self.added) / self.multiple_of) * self.multiple_of
        length -= self.added
        length = min(length, self.max_length or length)
        batch = self.tokenizer.pad(
            features, padding="max_length", max_length=length, return_tensors="pt"
        )
        if self.special_ids is not None:
            batch["sentence_ids"] = mark_sentences(batch["input_ids"], self.special_ids)
        return batch


class SentenceClassifier(Protocol):
    """The common interface of fine-tuned classifiers and prompt classifiers.

    Attributes:
        labels: The C label names.
        threshold: With two labels, probability above which the last one is predicted.
    """

    labels: list[str]
    threshold: float

    def predict_proba(self, inputs: Inputs, batch_size: int = 32) -> NDArray[np.float64]:
        """Label probabilities, [N, C], in the order of the inputs."""

    def predict(self, inputs: Inputs, batch_size: int = 32) -> list[str]:
        """Predicted label names, [N], in the order of the inputs."""


@dataclass
class Classifier:
    """A sequence classifier with its tokenizer.

    Attributes:
        model: A model with a classification head; may be wrapped by PEFT.
        tokenizer: Its tokenizer.
        labels: The C label names.
        max_length: Maximum tokens of an example; of longer ones, the longer sentence is truncated.
        quantization: Quantization of the base model's weights.
        threshold: With two labels, probability above which the last one is predicted.
        head_layer: Number of encoder layers that were loaded; None for all.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    max_length: int
    quantization: str = "none"
    threshold: float = 0.5
    head_layer: int | None = None

    def encode(self, examples: Sequence[Example]) -> tuple[Dataset, int]:
        """Tokenize examples.

        Returns:
            The model inputs of each example, and how many examples were truncated.
        """
        return encode_examples(self.tokenizer, examples, self.max_length)

    def predict_proba(self, inputs: Inputs, batch_size: int = 32) -> NDArray[np.float64]:
        """Label probabilities, [N, C], in the order of the inputs.

        Args:
            inputs: N examples, or tuples `(sentence1, sentence2)`, or a `datasets.Dataset` or
                pandas `DataFrame` with such columns.
            batch_size: Examples in one forward pass; halved when memory runs out.
        Raises:
            UserError: If an input is invalid.
            TrainingDiverged: If a logit is NaN or infinite.
        """
        examples = as_examples(inputs)
        if not examples:
            return np.zeros((0, len(self.labels)))
        features, num_truncated = self.encode(examples)
        if num_truncated:
            logger.warning(
                "%d of %d examples are longer than %d tokens and were truncated",
                *(num_truncated, len(examples), self.max_length),
            )
        model = self.model.to(process_state().device).eval()
        collate = ClassificationCollator(self.tokenizer, self.model.config)

        @torch.inference_mode()
        def score_batch(rows: list[int]) -> NDArray[np.float64]:
            batch = collate(features.__getitems__(rows))
            return classifier_probabilities(model(**batch.to(model.device)).logits)

        probabilities = run_batched(features["length"][:], batch_size, score_batch, "scoring")
        if not np.isfinite(probabilities).all():
            raise TrainingDiverged
        return probabilities

    def predict(self, inputs: Inputs, batch_size: int = 32) -> list[str]:
        """Predicted label names, [N], in the order of the inputs; see `predict_proba`."""
        return label_names_of(self.predict_proba(inputs, batch_size), self.labels, self.threshold)
