"""A pair of sentences, and the splits of a data set of them."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

SPLITS = ("train", "validation", "test")
UNKNOWN_LABEL = -1


@dataclass(frozen=True, slots=True)
class Example:
    """One row: two sentences and, where known, the index of their label."""

    idx: int
    sentence1: str
    sentence2: str
    label: int = UNKNOWN_LABEL


# A sequence of examples or of tuples, a `datasets.Dataset`, or a pandas `DataFrame`.
Inputs: TypeAlias = Any


@dataclass(frozen=True)
class DataSplits:
    """The splits of one data set, under one list of label names."""

    name: str
    label_names: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]

    def fingerprint(self, split: str) -> str:
        """SHA-256 over the rows of a split, label names included: equal only for equal rows."""
        digest = hashlib.sha256()
        for pair in self.splits[split]:
            name = self.label_names[pair.label] if pair.label != UNKNOWN_LABEL else None
            row = [pair.idx, pair.sentence1, pair.sentence2, name]
            digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()

    @cached_property
    def num_leaked(self) -> dict[str, int]:
        """Of each split to report, how many pairs train holds as well, in either order.

        What is held out of train to choose on counts as train. Case and white space make no pair
        another, nor does its label.
        """
        reported = {
            split: [_same(pair) for pair in pairs]
            for split, pairs in self.splits.items()
            if split in SPLITS[1:]
        }
        sought = {key for keys in reported.values() for key in keys}
        # Of train, which may be large, no more is held than what is sought.
        own = (pairs for split, pairs in self.splits.items() if split not in reported)
        trained = {key for pairs in own for key in map(_same, pairs) if key in sought}
        return {split: sum(key in trained for key in keys) for split, keys in reported.items()}


def as_examples(inputs: Inputs) -> list[Example]:
    """Convert examples or tuples `(sentence1, sentence2)` into examples."""
    return [
        row if isinstance(row, Example) else Example(number, row[0], row[1])
        for number, row in enumerate(inputs)
    ]


def folded(pair: Example) -> tuple[str, str]:
    """Its sentences, by case and white space no other than those of a pair that says the same."""
    first, second = (" ".join(text.lower().split()) for text in (pair.sentence1, pair.sentence2))
    return first, second


def _same(pair: Example) -> frozenset[str]:
    return frozenset(folded(pair))


def label_counts(pairs: Iterable[Example], label_names: Sequence[str]) -> dict[str, int]:
    """How many pairs carry each label."""
    counts = dict.fromkeys(label_names, 0)
    for pair in pairs:
        if pair.label != UNKNOWN_LABEL:
            counts[label_names[pair.label]] += 1
    return counts
