"""A trained classifier, ready to score pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from peft_mrpc.data.encoding import encode_examples
from peft_mrpc.data.examples import Example, Inputs, as_examples
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import TrainingDiverged, logger
from peft_mrpc.evaluation.thresholds import label_names_of
from peft_mrpc.models.batched_inference import classifier_probabilities, score_rows
from peft_mrpc.models.collator import ClassificationCollator


@dataclass
class Classifier:
    """A sequence classifier with its tokenizer.

    Attributes:
        model: Takes `input_ids` and its kin, gives logits [B, C].
        tokenizer: Pads on the side the model needs.
        labels: The C label names.
        max_length: Most tokens of a pair; a longer one is cut, the longer sentence first.
        quantization: How the base model's weights are held.
        threshold: Probability above which the last of two labels is predicted.
        head_layer: How many of the encoder's first layers were loaded; None for all.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    max_length: int
    quantization: str = "none"
    threshold: float = 0.5
    head_layer: int | None = None

    def encode(self, pairs: Sequence[Example]) -> tuple[Dataset, int]:
        """The model inputs of each pair, and how many pairs had to be cut."""
        return encode_examples(self.tokenizer, pairs, self.max_length)

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
        pairs = as_examples(inputs)
        features, num_cut = self.encode(pairs)
        if num_cut:
            logger.warning(
                "%d of %d pairs are longer than %d tokens and were cut",
                *(num_cut, len(pairs), self.max_length),
            )
        model = self.model.to(process_state().device).eval()
        collate = ClassificationCollator(self.tokenizer, self.model.config)

        @torch.inference_mode()
        def score_batch(rows: list[int]) -> NDArray[np.float64]:
            batch = collate(features.__getitems__(rows))
            return classifier_probabilities(model(**batch.to(model.device)).logits)

        probabilities = score_rows(features["length"][:], batch_size, score_batch, "scoring")
        if not np.isfinite(probabilities).all():
            raise TrainingDiverged
        return probabilities

    def predict(self, inputs: Inputs, batch_size: int = 32) -> list[str]:
        """Predicted label names, [N], in the order of the inputs; see `predict_proba`."""
        return label_names_of(self.predict_proba(inputs, batch_size), self.labels, self.threshold)
