"""What many prompts begin with: its keys and values, computed once and put before each of them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from peft_mrpc.models.batched_inference import out_of_memory

# Caches of keys and values, which grow and are not written over.
SHARED_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


def common_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all the sequences begin with."""
    if not sequences:
        return 0
    # Of sorted sequences, what the first and the last share all of them share.
    first, last = min(sequences), max(sequences)
    differ = (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(differ, min(len(first), len(last)))


@torch.inference_mode()
def run_prefix(model: PreTrainedModel, ids: Sequence[int]) -> DynamicCache | None:
    """Keys and values of these tokens; None where the model keeps something else of them.

    Raises:
        UserError: If they alone are too many for the device.
    """
    cache = DynamicCache(config=model.config)
    try:
        model(
            input_ids=torch.tensor([[*ids]], device=model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    except torch.OutOfMemoryError as error:
        raise out_of_memory(f"the {len(ids)} tokens that all prompts begin with") from error
    is_whole = cache.get_seq_length() == len(ids)  # some models leave what they are given empty
    # A recurrent state is changed in place by what comes after it.
    is_shared = all(type(layer) in SHARED_LAYERS for layer in cache.layers)
    return cache if is_whole and is_shared else None


def repeat_prefix(prefix: DynamicCache, count: int) -> DynamicCache:
    """The prefix before each of so many sequences; the model appends to it and leaves the first."""
    repeated = copy.copy(prefix)
    repeated.layers = [copy.copy(layer) for layer in prefix.layers]
    layers: list[Any] = list(repeated.layers)
    for layer in layers:
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            # A view: the model copies it as it appends.
            layer.keys = layer.keys.expand(count, -1, -1, -1)
            layer.values = layer.values.expand(count, -1, -1, -1)
        else:
            layer.batch_repeat_interleave(count)
    return repeated
