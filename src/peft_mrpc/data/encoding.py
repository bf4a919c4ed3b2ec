"""Tokenize examples into a `datasets.Dataset`, which holds them in Arrow's compact columns."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import BatchEncoding, PreTrainedTokenizerBase

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
        too_long = [row for row, ids in enumerate(encoded["input_ids"]) if len(ids) > max_length]
        if tokenizer.is_fast:
            _truncate(encoded, too_long, max_length, tokenizer.truncation_side)
        elif too_long:
            encoded = tokenizer(*texts, truncation=True, max_length=max_length, **options)
        num_truncated += len(too_long)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        parts.append(Dataset.from_dict({**encoded, LENGTH_COLUMN: lengths}))
    if not parts:
        return Dataset.from_dict({"input_ids": [], LENGTH_COLUMN: []}), 0
    return concatenate_datasets(parts), num_truncated


def _truncate(encoded: BatchEncoding, rows: Sequence[int], max_length: int, side: str) -> None:
    """Truncate rows as the strategy `longest_first` does.

    The Rust tokenizers cut the rest of either sentence into pieces of the maximum length and pair
    each with each: memory is quadratic in the length of the sentences.

    Args:
        encoded: Lists of token ids and the like; changed in place.
        rows: The rows that are too long.
        max_length: Maximum number of tokens.
        side: The side of a sentence that loses tokens, left or right.
    """
    for row in rows:
        sequence_ids = encoded.sequence_ids(row)
        positions = {
            number: [at for at, sequence in enumerate(sequence_ids) if sequence == number]
            for number in (None, 0, 1)
        }
        room = max(0, max_length - len(positions[None]))
        lengths = longest_first_lengths(len(positions[0]), len(positions[1]), room)
        tokens = positions[None]
        for number, length in enumerate(lengths):
            start = len(positions[number]) - length if side == "left" else 0
            tokens += positions[number][start : start + length]
        tokens.sort()
        for values in encoded.values():
            values[row] = [values[row][at] for at in tokens]


def longest_first_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """The lengths of two sentences, truncated from the longer one, that fit into a room of tokens.

    The odd token goes to the longer sentence, or to the second one, as in `tokenizers`.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    longer = room - shorter
    return (longer, shorter) if first > second else (shorter, longer)


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
