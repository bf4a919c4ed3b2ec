"""What is chosen on: a part of the training pairs, never a split that is reported."""

import random
from collections import defaultdict
from collections.abc import Sequence

from peft_mrpc.data import Pair


def hold_out(
    pairs: Sequence[Pair], fraction: float, seed: int
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Part the training pairs into those to train on and those to choose on.

    Each label gives its share, and at least one pair to each part.

    Args:
        pairs: Labelled training pairs.
        fraction: Share to choose on, between 0 and 1.
        seed: Fixes which pairs are held out.
    Returns:
        The pairs to train on and the pairs to choose on, each in the order they came in.
    """
    rows_of: defaultdict[int, list[int]] = defaultdict(list)
    for row, pair in enumerate(pairs):
        rows_of[pair.label].append(row)
    draw = random.Random(seed)
    held: set[int] = set()
    for _, rows in sorted(rows_of.items()):
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held.update(draw.sample(rows, count))
    kept = tuple(pair for row, pair in enumerate(pairs) if row not in held)
    return kept, tuple(pairs[row] for row in sorted(held))
