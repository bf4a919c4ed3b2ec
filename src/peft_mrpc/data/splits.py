"""Carve a validation split out of the training examples."""

import random
from collections import defaultdict
from collections.abc import Sequence

from peft_mrpc.data.examples import Example


def stratified_holdout(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split examples at random, with the same fraction of each label.

    Each label has at least one example in either part.

    Args:
        examples: N labelled examples, at least two of each label.
        fraction: Fraction of the second part, between 0 and 1.
        seed: Random seed.
    Returns:
        The remaining examples and the held-out examples, each in the order of the input.
    """
    rows_by_label: defaultdict[int, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        rows_by_label[example.label].append(row)
    generator = random.Random(seed)
    held_out: set[int] = set()
    for _, rows in sorted(rows_by_label.items()):
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held_out.update(generator.sample(rows, count))
    remaining = tuple(example for row, example in enumerate(examples) if row not in held_out)
    return remaining, tuple(examples[row] for row in sorted(held_out))
