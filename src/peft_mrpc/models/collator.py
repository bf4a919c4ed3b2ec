"""Pads encoded examples to a batch for the classifier.

Shapes: B batch, T tokens.
"""

import math
from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding, PretrainedConfig, PreTrainedTokenizerBase

from peft_mrpc.data.encoding import LENGTH_COLUMN
from peft_mrpc.models.modeling_sentence_pair import SentencePairConfig, mark_sentences


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
