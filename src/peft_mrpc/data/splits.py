"""Carve a validation split out of the training examples."""

import random
from collections import defaultdict
from collections.abc import Sequence

from peft_mrpc.data.examples import Example


def stratified_split(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Carve a validation split out of train at random, with the same fraction of each label.

    Each label has at least one example in either split.

    Args:
        examples: N labelled examples, at least two of each label.
        fraction: Fraction of the validation split, between 0 and 1.
        seed: Random seed.
    Returns:
        The train and the validation split, each in the order of the input.
    """
    rows_by_label: defaultdict[int, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        rows_by_label[example.label].append(row)
    generator = random.Random(seed)
    validation: set[int] = set()
    for _, rows in sorted(rows_by_label.items()):
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        validation.update(generator.sample(rows, count))
    train = tuple(example for row, example in enumerate(examples) if row not in validation)
    return train, tuple(examples[row] for row in sorted(validation))
