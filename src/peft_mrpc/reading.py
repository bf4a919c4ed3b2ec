"""What a head reads of the encoder: which tokens, and at which layer."""

import math
from dataclasses import replace
from typing import Any

from peft_mrpc.config import TrainConfig
from peft_mrpc.errors import UserError
from peft_mrpc.models import auto_pooling, load_config, load_tokenizer
from peft_mrpc.pair_model import ALIGNS
from peft_mrpc.requests import TrainRequest
from peft_mrpc.sources import ModelSource


def settle_reading(request: TrainRequest, source: ModelSource) -> tuple[ModelSource, Any]:
    """Settle what the head reads, and record it as what it came to.

    Returns:
        The model up to the layer that the head reads, and its tokenizer.
    Raises:
        UserError: If there is no such layer.
    """
    tokenizer, config = load_tokenizer(source), request.config
    if config.pooling == "auto":
        config.pooling = auto_pooling(tokenizer, request.method.compares)
    source = read_head_layer(source, config.head_layer, config.pooling)
    config.head_layer = "last" if source.head_layer is None else str(source.head_layer)
    return source, tokenizer


def read_head_layer(source: ModelSource, head_layer: str, pooling: str) -> ModelSource:
    """The model up to the layer that the head reads.

    The last layers of a pretrained encoder turn to what it was pretrained for; what compares
    tokens finds more in the layers below (arXiv:1904.09675, appendix B; arXiv:1905.05950).

    Args:
        source: The model.
        head_layer: Number of the layer, from 1; `last`; or `auto`: two thirds up where the head
            compares tokens (`aligned`, `weighted`), the last for any other.
        pooling: What the head reads.
    Raises:
        UserError: If there is no such layer, or the head is the architecture's own.
    """
    depth = int(load_config(source).num_hidden_layers)
    if head_layer == "auto":
        head_layer = str(math.ceil(depth * 2 / 3)) if pooling in ALIGNS else "last"
    if head_layer == "last":
        return source
    if not (head_layer.isdecimal() and 1 <= int(head_layer) <= depth):
        raise UserError(
            f"--head_layer: got {head_layer!r}; expected 1 to {depth} (the layers of "
            f"{source.name}), last or auto."
        )
    if pooling == "native" and int(head_layer) < depth:
        raise UserError(
            f"--head_layer: got {head_layer}, but the architecture's own head reads the last; "
            "expected last, or another --pooling."
        )
    return replace(source, head_layer=int(head_layer))


def describe_reading(config: TrainConfig) -> str:
    """What the head reads, in words."""
    if config.pooling == "native":
        return "the architecture's own head"
    layer = "the last layer" if config.head_layer == "last" else f"layer {config.head_layer}"
    return f"a head over {layer} ({config.pooling})"
