"""What a head reads of the encoder: which tokens, and at which layer."""

import copy
import math
from dataclasses import replace

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from peft_mrpc.errors import UserError
from peft_mrpc.models.hub import ModelSource
from peft_mrpc.models.loading import auto_pooling, load_config, load_tokenizer
from peft_mrpc.models.modeling_sentence_pair import ALIGNED_POOLINGS
from peft_mrpc.training.request import TrainJob


def settle_reading(
    request: TrainJob, source: ModelSource
) -> tuple[ModelSource, PreTrainedTokenizerBase]:
    """Settle what the head reads, and record it as what it came to.

    Returns:
        The model up to the layer that the head reads, and its tokenizer.
    Raises:
        UserError: If there is no such layer.
    """
    tokenizer, config = load_tokenizer(source), request.config
    if config.pooling == "auto":
        config.pooling = auto_pooling(tokenizer, request.method.default_pooling)
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
    if head_layer == "last" or (head_layer == "auto" and pooling not in ALIGNED_POOLINGS):
        return source
    config = load_config(source)
    if not _can_be_cut(config):
        if head_layer == "auto":
            return source
        raise UserError(
            f"--head_layer: got {head_layer}, but a {config.model_type} is no plain stack of "
            "layers; expected last."
        )
    depth = int(config.num_hidden_layers)
    if head_layer == "auto":
        head_layer = str(math.ceil(depth * 2 / 3))
    if not (head_layer.isdecimal() and 1 <= int(head_layer) <= depth):
        raise UserError(
            f"--head_layer: got {head_layer!r}; expected 1 to {depth} (the layers of "
            f"{source.name}), last or auto."
        )
    if int(head_layer) == depth:
        return source
    if pooling == "native":
        raise UserError(
            f"--head_layer: got {head_layer}, but the architecture's own head reads the last; "
            "expected last, or another --pooling."
        )
    return replace(source, head_layer=int(head_layer))


def _can_be_cut(config: PretrainedConfig) -> bool:
    """Whether a model of fewer layers is one stack that ends earlier."""
    if getattr(config, "is_encoder_decoder", False):
        return False  # its decoder would stand over the layers that are left
    try:
        depth = config.num_hidden_layers
        copy.deepcopy(config).num_hidden_layers = depth
    except (AttributeError, NotImplementedError):  # nested; Funnel's blocks
        return False
    return isinstance(depth, int)


def describe_reading(pooling: str, head_layer: int | str | None) -> str:
    """What the head reads, in words."""
    if pooling == "native":
        return "the architecture's own head"
    layer = "the last layer" if head_layer in (None, "last") else f"layer {head_layer}"
    return f"a head over {layer} ({pooling})"
