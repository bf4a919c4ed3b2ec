"""Which of a model's layers give the same throughout a training, and what that depends on."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from peft_mrpc.errors import UserError
from peft_mrpc.models.architecture import encoder_layers, modules_after_layers
from peft_mrpc.training.activation_cache.rows import raw_bytes

# What of a configuration changes no activation.
NOT_COMPUTED = {
    *("_name_or_path", "architectures", "dtype", "transformers_version"),
    *("id2label", "label2id", "problem_type"),
}
# Of the files; those of another are not found.
FORMAT = 2


def trunk_depth(model: PreTrainedModel) -> int:
    """How many of the first layers give the same for the same pair throughout the training.

    None, unless all that trains of the encoder stands in the layers above them, or after: what
    stands beside the layers (DeBERTa's relative embeddings) may feed every one of them.
    """
    try:
        layers = encoder_layers(model)
    except UserError:  # ALBERT's are one layer, run again and again
        return 0
    depth = 0
    while depth < len(layers) and not _trains(layers[depth]):
        depth += 1
    above = [*layers[depth:], *modules_after_layers(model)]
    inside = {id(parameter) for part in above for parameter in part.parameters()}
    others = (p for p in model.base_model.parameters() if id(p) not in inside)
    return 0 if any(parameter.requires_grad for parameter in others) else depth


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def describe_frozen(
    model: PreTrainedModel, depth: int, precision: str, computed: torch.dtype, kept: torch.dtype
) -> dict[str, Any]:
    """All that the activations depend on, but for the pairs.

    Args:
        model: The model, frozen, on its device.
        depth: How many of its first layers are meant.
        precision: Of the training.
        computed: What the layers give.
        kept: What that is kept in.
    """
    encoder = cast("PreTrainedModel", model.base_model)
    config = encoder.config.to_diff_dict()
    names = [key for key in sorted(set(config) - NOT_COMPUTED) if "drop" not in key]
    return {
        "format": FORMAT,
        "weights": _weights_digest(model, depth),
        "config": {key: str(config[key]) for key in names},
        "depth": depth,
        "computed_in": [
            *(precision, str(computed), model.device.type),
            *(_matmul_precision(), encoder.config._attn_implementation),
        ],
        "kept_in": str(kept),
        "versions": [torch.__version__, transformers.__version__],
    }


def _matmul_precision() -> str:
    """Whether fp32 products may be computed in tf32."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # of the two ways to set it the newer was taken
        return str(torch.backends.fp32_precision)  # type: ignore[attr-defined]


def _weights_digest(model: PreTrainedModel, depth: int) -> str:
    """Of every weight of the encoder but those above the trunk."""
    encoder = model.base_model
    parts = [*encoder_layers(model)[depth:], *modules_after_layers(model)]
    above = tuple(f"{name}." for name, part in encoder.named_modules() if part in parts)
    digest = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        if not name.startswith(above) and isinstance(tensor, torch.Tensor):
            digest.update(name.encode())
            digest.update(raw_bytes(tensor.detach().cpu().reshape(-1)))
    return digest.hexdigest()


def trunk_name(about: Mapping[str, Any]) -> str:
    """The directory of what was computed with these."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
