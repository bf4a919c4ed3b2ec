"""Tokenize examples into a `datasets.Dataset`, which holds them in Arrow's compact columns."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from peft_mrpc.data.examples import Example

# Examples in one call of the tokenizer: its output takes many times the memory of the Arrow rows.
CHUNK = 1000
# Column with the number of tokens, as the Trainer's `length_column_name` expects it.
LENGTH_COLUMN = "length"


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int
) -> tuple[Dataset, int]:
    """Tokenize examples for a classifier.

    Args:
        tokenizer: Adds its own separators. A tokenizer without a separator (a decoder's) encodes
            the sentences as two labelled lines.
        examples: N examples.
        max_length: Maximum tokens of an example. A longer one loses the end of its longer sentence
            (without a separator, the end of the second one).
    Returns:
        The model inputs and the length of each example, and how many examples were truncated.
    """
    parts, num_truncated = [], 0
    for first in range(0, len(examples), CHUNK):
        texts = _texts(tokenizer, examples[first : first + CHUNK])
        # A separator in the text of a sentence is not a special token.
        options: dict[str, Any] = {"split_special_tokens": True}
        encoded = tokenizer(*texts, truncation=False, verbose=False, **options)
        if too_long := sum(len(ids) > max_length for ids in encoded["input_ids"]):
            encoded = tokenizer(*texts, truncation=True, max_length=max_length, **options)
        num_truncated += too_long
        lengths = [len(ids) for ids in encoded["input_ids"]]
        parts.append(Dataset.from_dict({**encoded, LENGTH_COLUMN: lengths}))
    if not parts:
        return Dataset.from_dict({"input_ids": [], LENGTH_COLUMN: []}), 0
    return concatenate_datasets(parts), num_truncated


def add_labels(encoded: Dataset, examples: Sequence[Example]) -> Dataset:
    """The encoded examples with their labels in the column `labels`."""
    return encoded.add_column("labels", [example.label for example in examples])


def _texts(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> tuple[list[str], ...]:
    """The texts of examples with one sentence, or of examples with two."""
    firsts = [example.sentence1 for example in examples]
    seconds = [example.sentence2 for example in examples if example.sentence2 is not None]
    if not seconds:
        return (firsts,)
    if tokenizer.sep_token is None:
        both = zip(firsts, seconds, strict=True)
        return ([f"Sentence 1: {first}\nSentence 2: {second}" for first, second in both],)
    return firsts, seconds
