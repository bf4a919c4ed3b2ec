"""Encoded pairs, some two hundred bytes each: lists of Python numbers take ten times as much."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

from transformers import PreTrainedTokenizerBase

from peft_mrpc.data.examples import Example

# Pairs that are tokenized at once: a tokenizer's answer is many times as large as its numbers.
AT_ONCE = 1000
# Typecodes of arrays, from small numbers to large ones.
WIDTHS = "BHi"


class EncodedPairs(Sequence[dict[str, Any]]):
    """Model inputs of N pairs, each a mapping that is made when it is asked for.

    Attributes:
        lengths: Tokens of each, [N].
    """

    def __init__(self) -> None:
        self._values: dict[str, array[int]] = {}  # of all pairs, one after another
        self._ends = array("q", [0])
        self._labels: Sequence[int] | None = None

    def extend(self, encoded: Mapping[str, Iterable[Sequence[int]]]) -> None:
        """Take pairs as a tokenizer gives them: by name the numbers of each."""
        for name, rows in encoded.items():
            for row in rows:
                self._append(name, row)
        for row in encoded["input_ids"]:
            self._ends.append(self._ends[-1] + len(row))

    def _append(self, name: str, row: Sequence[int]) -> None:
        """Take numbers in as few bytes as hold all of their name."""
        values = self._values.setdefault(name, array(WIDTHS[0]))
        for width in WIDTHS[WIDTHS.index(values.typecode) :]:
            try:
                new = array(width, row)
                break
            except OverflowError:
                if width == WIDTHS[-1]:
                    raise
        if new.typecode != values.typecode:
            values = self._values[name] = array(new.typecode, values)
        values.extend(new)

    def labelled(self, labels: Iterable[int]) -> "EncodedPairs":
        """The same pairs with `labels`, [N]; the numbers are shared."""
        other = EncodedPairs()
        other._values, other._ends = self._values, self._ends
        other._labels = array("i", labels)
        assert len(other._labels) == len(self), "a label for each pair"
        return other

    @property
    def lengths(self) -> list[int]:
        return [last - first for first, last in zip(self._ends, self._ends[1:], strict=False)]

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, row: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, row: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, row: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(row, slice):
            return [self[number] for number in range(len(self))[row]]
        row = range(len(self))[row]
        first, last = self._ends[row], self._ends[row + 1]
        found: dict[str, Any] = {
            name: values[first:last].tolist() for name, values in self._values.items()
        }
        return found if self._labels is None else {**found, "labels": self._labels[row]}


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Example], max_length: int
) -> tuple[EncodedPairs, int]:
    """Tokenize pairs for a classifier.

    Args:
        tokenizer: Writes its own separators; one without a separator (a decoder's) gets the
            sentences as two labelled lines.
        pairs: N pairs.
        max_length: Most tokens of a pair; a longer one loses the longer sentence's end (without a
            separator the second's).
    Returns:
        The model inputs of each pair, and how many pairs had to be cut.
    """
    found, num_cut = EncodedPairs(), 0
    for first in range(0, len(pairs), AT_ONCE):
        arguments = _texts(tokenizer, pairs[first : first + AT_ONCE])
        # A separator that a sentence itself writes is text, and parts nothing.
        options: dict[str, Any] = {"split_special_tokens": True}
        encoded = tokenizer(*arguments, truncation=False, verbose=False, **options)
        if too_long := sum(len(ids) > max_length for ids in encoded["input_ids"]):
            encoded = tokenizer(*arguments, truncation=True, max_length=max_length, **options)
        num_cut += too_long
        found.extend(encoded)
    return found, num_cut


def _texts(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Example]) -> tuple[list[str], ...]:
    if tokenizer.sep_token is None:
        return ([f"Sentence 1: {p.sentence1}\nSentence 2: {p.sentence2}" for p in pairs],)
    return [p.sentence1 for p in pairs], [p.sentence2 for p in pairs]
