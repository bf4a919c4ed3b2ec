"""A trained classifier, ready to score pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    BatchEncoding,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from peft_mrpc.data.encoding import EncodedPairs, encode_pairs
from peft_mrpc.data.examples import Example
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import TrainingDiverged, logger
from peft_mrpc.models.batched_inference import classifier_probabilities, score_rows
from peft_mrpc.models.first_token import read_first_token
from peft_mrpc.models.modeling_sentence_pair import SentencePairConfig, find_sentences


class Predictor(Protocol):
    """Anything that gives pairs label probabilities."""

    label_names: list[str]
    threshold: float

    def score(self, pairs: Sequence[Example], batch_size: int) -> NDArray[np.float64]:
        """Probabilities of the labels, [N, C], in the order of the pairs."""


@dataclass
class Classifier:
    """A sequence classifier with its tokenizer.

    Attributes:
        model: Takes `input_ids` and its kin, gives logits [B, C].
        tokenizer: Pads on the side the model needs.
        label_names: Names of the C labels.
        max_length: Most tokens of a pair; a longer one is cut, the longer sentence first.
        quantization: How the base model's weights are held.
        threshold: Probability above which the last of two labels is predicted.
        head_layer: How many of the encoder's first layers were loaded; None for all.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    label_names: list[str]
    max_length: int
    quantization: str = "none"
    threshold: float = 0.5
    head_layer: int | None = None

    def __post_init__(self) -> None:
        read_first_token(self.model)

    def encode(self, pairs: Sequence[Example]) -> tuple[EncodedPairs, int]:
        """The model inputs of each pair, and how many pairs had to be cut."""
        return encode_pairs(self.tokenizer, pairs, self.max_length)

    def score(self, pairs: Sequence[Example], batch_size: int) -> NDArray[np.float64]:
        """Probabilities of the labels, [N, C], in the order of the pairs."""
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
            batch = collate([features[row] for row in rows])
            return classifier_probabilities(model(**batch.to(model.device)).logits)

        probabilities = score_rows(features.lengths, batch_size, score_batch, "scoring")
        if not np.isfinite(probabilities).all():
            raise TrainingDiverged
        return probabilities


class ClassificationCollator:
    """Pads a batch, and marks the sentences where the model's head reads them apart.

    Virtual tokens hide the token ids from the model, so the marks are made before.

    Args:
        tokenizer: Pads on the side the model needs.
        config: The model's.
        multiple_of: What the length of a batch is a multiple of, if it has to be.
        max_length: Most tokens of a row, which no padding goes beyond; None for no limit.
        added: Virtual tokens that the model puts to each row, and that count for the multiple.
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
        longest = max(len(feature["input_ids"]) for feature in features)
        length = math.ceil((longest + self.added) / self.multiple_of) * self.multiple_of
        length -= self.added
        length = min(length, self.max_length or length)
        batch = self.tokenizer.pad(
            [*features], padding="max_length", max_length=length, return_tensors="pt"
        )
        if self.special_ids is not None:
            batch["sentence_ids"] = find_sentences(batch["input_ids"], self.special_ids)
        return batch
