"""Undocumented parts of PEFT that this package uses, each behind one function."""

from typing import Any

from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftType
from peft.tuners.oft.layer import OFTLayer
from peft.utils import constants
from torch import nn


def default_target_modules(
    peft_type: PeftType | str | None, model_type: str
) -> list[str] | str | None:
    """Return the module names that PEFT adapts by default in an architecture, None if unknown.

    Uses the class attribute `target_module_mapping` of PEFT's tuners, and for IA3, which has no
    such attribute, `TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING`.
    """
    if peft_type == PeftType.IA3:
        mapping: dict[str, Any] = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    else:
        tuner = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(peft_type)]
        mapping = getattr(tuner, "target_module_mapping", {})
    return mapping.get(model_type)


def default_feedforward_modules(model_type: str) -> list[str] | None:
    """Return the modules whose input IA3 scales by default in an architecture, None if unknown.

    Uses `TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING`.
    """
    return constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(model_type)


def oft_layer_values(model: nn.Module, name: str) -> set[int]:
    """Return the values of `r` or `oft_block_size` over the OFT layers of a model.

    Uses the attributes `OFTLayer.r` and `OFTLayer.oft_block_size`, which map adapter names to the
    values that PEFT chose to fit the size of each layer.
    """
    layers = (module for module in model.modules() if isinstance(module, OFTLayer))
    return {value for layer in layers for value in getattr(layer, name).values()}
