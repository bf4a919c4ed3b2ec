"""Private and undocumented parts of transformers that the package uses, in one place."""

import copy
from typing import Any

from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def has_only_keys_and_values(cache: DynamicCache) -> bool:
    """Whether all layers of a cache grow by appending, so that later tokens change nothing in it.

    Uses `DynamicCache.layers`. A recurrent state, in contrast, is changed in place.
    """
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def expand_cache(cache: DynamicCache, count: int) -> DynamicCache:
    """A cache of one sequence for `count` sequences; appending to it leaves the original unchanged.

    Uses `DynamicCache.layers`, and the `keys` and `values` of a layer. Full-attention layers are
    expanded as views; the model copies them when it appends.
    """
    expanded = copy.copy(cache)
    expanded.layers = [copy.copy(layer) for layer in cache.layers]
    layers: list[Any] = list(expanded.layers)
    for layer in layers:
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            layer.keys = layer.keys.expand(count, -1, -1, -1)
            layer.values = layer.values.expand(count, -1, -1, -1)
        else:
            layer.batch_repeat_interleave(count)
    return expanded


def hub_revision(config: PretrainedConfig) -> str | None:
    """The commit on the Hub that a model was loaded from; None for a local directory.

    Uses `PretrainedConfig._commit_hash`.
    """
    return getattr(config, "_commit_hash", None)


def attn_implementation(config: PretrainedConfig) -> str:
    """Name of the attention implementation in use: `PretrainedConfig._attn_implementation`."""
    return str(config._attn_implementation)
