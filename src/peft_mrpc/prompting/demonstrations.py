"""Labelled pairs that are shown to a language model before the question."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from peft_mrpc.data.examples import UNKNOWN_LABEL, Example
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import UserError
from peft_mrpc.models.batched_inference import run_batched
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.models.loading import load_encoder, load_tokenizer
from peft_mrpc.prompting.prompt_encoder import Show, show_nothing
from peft_mrpc.prompting.templates import Demonstration, as_demonstration

CHOICES = ("balanced", "first", "nearest")
RETRIEVER = "builtin:minilm"
RETRIEVER_LENGTH = 128


def choose_demonstrations(
    pool: Sequence[Example], label_names: Sequence[str], count: int, how: str, seed: int
) -> list[Demonstration]:
    """The demonstrations that every pair is shown.

    Args:
        pool: Labelled pairs.
        label_names: Names of the C labels.
        count: How many.
        how: `first` for the first of the pool; `balanced` for as many of each label as can be,
            drawn by the seed and shuffled.
        seed: Fixes the draw and the order.
    Raises:
        UserError: If the pool has too few.
    """
    labelled = [pair for pair in pool if pair.label != UNKNOWN_LABEL]
    if how == "first":
        chosen = labelled[:count]
    else:
        draw = np.random.default_rng(seed)
        chosen = []
        for label, wanted in enumerate(_shares(count, len(label_names), draw)):
            own = [pair for pair in labelled if pair.label == label]
            picked = draw.permutation(len(own))[:wanted]
            chosen += [own[row] for row in picked]
        chosen = [chosen[row] for row in draw.permutation(len(chosen))]
    if len(chosen) < count:
        raise UserError(
            f"--num_demonstrations: got {count}, but train has {len(chosen)} to show so; lower it."
        )
    return [as_demonstration(pair, label_names) for pair in chosen]


def _shares(count: int, labels: int, draw: np.random.Generator) -> list[int]:
    """So many of each label; what does not divide goes to labels drawn by the seed."""
    shares = np.full(labels, count // labels)
    shares[draw.permutation(labels)[: count % labels]] += 1
    return [int(share) for share in shares]


class NearestDemonstrations:
    """Shows each pair its nearest labelled pairs, as many of each label, the nearest last.

    Of a number that the labels do not divide, the rest are the nearest of any label.

    A pair is its sentences' embeddings, one after the other. A pair that is in the pool itself is
    not shown to itself, in either order.

    Args:
        pool: Labelled demonstrations.
        label_names: Names of the C labels.
        count: How many to show.
        retriever: The embedding model.
    """

    def __init__(
        self,
        pool: Sequence[Demonstration],
        label_names: Sequence[str],
        count: int,
        retriever: str = RETRIEVER,
    ) -> None:
        self.pool = list(pool)
        self.label_names = list(label_names)
        self.count = count
        self.retriever = retriever
        fewest = min(sum(one.label == label for one in self.pool) for label in label_names)
        if fewest * len(label_names) < count:
            raise UserError(
                f"--num_demonstrations: got {count}, but train has {fewest} pairs of one label; "
                "lower it."
            )
        labels = np.array([one.label for one in self.pool])
        self._rows = [np.flatnonzero(labels == label) for label in label_names]
        alike = Counter(frozenset((one.sentence1, one.sentence2)) for one in self.pool)
        self._most_alike = max(alike.values(), default=0)
        self._embedded: NDArray[np.float64] | None = None
        self._found: dict[tuple[Example, ...], list[list[Demonstration]]] = {}

    def __call__(self, pairs: Sequence[Example]) -> list[list[Demonstration]]:
        key = tuple(pairs)
        if key not in self._found:
            self._found[key] = self._find(pairs)
        return self._found[key]

    def _find(self, pairs: Sequence[Example]) -> list[list[Demonstration]]:
        if self._embedded is None:
            shown = [Example(n, one.sentence1, one.sentence2) for n, one in enumerate(self.pool)]
            self._embedded = embed_pairs(shown, self.retriever)
        embedded = embed_pairs(pairs, self.retriever)
        # A pair at a time: of all with all would be gigabytes.
        return [
            self._nearest(pair, self._embedded @ one)
            for pair, one in zip(pairs, embedded, strict=True)
        ]

    def _nearest(self, pair: Example, likeness: NDArray[np.float64]) -> list[Demonstration]:
        own = {pair.sentence1, pair.sentence2}
        ranked = [
            row
            for row in self._candidates(likeness)
            if {self.pool[row].sentence1, self.pool[row].sentence2} != own
        ]
        each = self.count // len(self.label_names)
        chosen = [
            row
            for label in self.label_names
            for row in [row for row in ranked if self.pool[row].label == label][:each]
        ]
        # What does not divide goes to the nearest of any label.
        others = [row for row in ranked if row not in chosen]
        chosen += others[: self.count - len(chosen)]
        return [self.pool[row] for row in sorted(chosen, key=lambda row: likeness[row])]

    def _candidates(self, likeness: NDArray[np.float64]) -> list[int]:
        """The nearest rows of each label, as many as can come to be shown, the nearest first."""
        found: list[int] = []
        for rows in self._rows:
            # Beside those shown some that are the pair itself.
            wanted = min(self.count + self._most_alike, len(rows))
            nearest = np.argpartition(-likeness[rows], wanted - 1)[:wanted]
            found += rows[nearest].tolist()
        return sorted(found, key=lambda row: (-likeness[row], row))


@functools.cache
def _load_retriever(name: str) -> tuple[Any, Any]:
    """Tokenizer and model, once: the pool and every split are embedded by them."""
    source = resolve_model(name)
    return load_tokenizer(source), load_encoder(source).to(process_state().device)


def embed_pairs(pairs: Sequence[Example], retriever: str) -> NDArray[np.float64]:
    """Unit vectors of pairs: their sentences' mean token states one after the other, [N, 2 H]."""
    tokenizer, model = _load_retriever(retriever)
    texts = [text for pair in pairs for text in (pair.sentence1, pair.sentence2)]
    encoded = tokenizer(texts, truncation=True, max_length=RETRIEVER_LENGTH)["input_ids"]

    @torch.inference_mode()
    def embed(rows: list[int]) -> NDArray[np.float64]:
        batch = tokenizer.pad({"input_ids": [encoded[r] for r in rows]}, return_tensors="pt")
        states: Any = model(**batch.to(model.device)).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(1) / mask.sum(1)
        unit: NDArray[np.float64] = torch.nn.functional.normalize(means).double().cpu().numpy()
        return unit

    vectors = run_batched([len(ids) for ids in encoded], 64, embed, "embedding")
    joined: NDArray[np.float64] = vectors.reshape(len(pairs), -1) / np.sqrt(2)
    return joined


def build_show(
    how: str, count: int, shown: Sequence[Demonstration], label_names: Sequence[str]
) -> Show:
    """What shows each pair its demonstrations.

    Args:
        how: `nearest`, or any other for the same to every pair.
        count: How many.
        shown: These, or the pool of the nearest.
        label_names: Names of the C labels.
    """
    if not count:
        return show_nothing
    return NearestDemonstrations(shown, label_names, count) if how == "nearest" else fixed(shown)


def fixed(demonstrations: Sequence[Demonstration]) -> Show:
    """The same demonstrations for every pair."""
    return lambda pairs: [list(demonstrations) for _ in pairs]
