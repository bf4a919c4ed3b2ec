"""Add a PEFT adapter to a frozen model."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from peft import get_peft_model
from torch import nn
from transformers import PreTrainedModel

from peft_mrpc.errors import UserError, one_line, raise_faults
from peft_mrpc.interop.peft_internals import oft_layer_values
from peft_mrpc.methods.target_modules import set_default_targets, validate_module_names
from peft_mrpc.models.architecture import encoder_layers
from peft_mrpc.models.sources import ModelSource

logger = logging.getLogger(__name__)


def add_adapter(model: PreTrainedModel, options: Any) -> Any:
    """Freeze the model and add PEFT's trainable parameters; the head trains too.

    Args:
        model: The base model with its head.
        options: PEFT's config. It is copied, because PEFT changes it.

    Raises:
        UserError: For names of modules that the model does not have, and if PEFT rejects the
            options for this model.
    """
    raise_faults(validate_module_names(model, options))
    options = copy.deepcopy(options)
    is_ia3 = options.peft_type == "IA3"
    if targets_linear_in_some_layers(vars(options)) or (
        is_ia3 and options.target_modules == "all-linear"
    ):
        # PEFT wants names here: to select layers, and to compare with IA3's feedforward_modules.
        options.target_modules = _linear_names(encoder_layers(model))
    set_default_targets(model.config, options)
    if is_ia3:
        raise_faults(_feedforward_errors(options))
    if options.is_prompt_learning:
        _set_prompt_sizes(model, options)
    if hasattr(options, "modules_to_save"):
        options.modules_to_save = _modules_to_save(model, options.modules_to_save or [])
    try:
        adapted = get_peft_model(model, options)
    except Exception as error:  # PEFT raises errors of many types for unsuitable values
        raise UserError(f"{type(options).__name__}: {one_line(error)}") from error
    _warn_changed_block_sizes(adapted, options)
    return adapted


def init_from_shapes_only(options: Any) -> Any:
    """Return the options for a model without weights: no initialization reads the base weights."""
    options = copy.deepcopy(options)
    if isinstance(getattr(options, "init_lora_weights", None), str):
        options.init_lora_weights = True
    return options


def targets_linear_in_some_layers(options: Mapping[str, Any]) -> bool:
    """Return whether all linear modules of a subset of the layers are targets."""
    all_linear = options.get("target_modules") == "all-linear"
    return all_linear and options.get("layers_to_transform") is not None


def set_tokenizer(options: Any, source: ModelSource) -> None:
    """Let PEFT encode the initial text of a prompt with the tokenizer of the base model."""
    if getattr(options, "prompt_tuning_init", None) == "TEXT":
        options.tokenizer_name_or_path = source.location
        options.tokenizer_kwargs = {"trust_remote_code": source.trust.remote_code}


def _linear_names(layers: nn.Module) -> set[str]:
    return {
        name.rpartition(".")[2]
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear)
    }


def _modules_to_save(model: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """Return the user's names and those of all modules outside the encoder.

    PEFT knows the heads `classifier` and `score` only, not DeBERTa's pooler.
    """
    heads = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]
    return sorted({*names, *heads})


def _feedforward_errors(options: Any) -> list[str]:
    """Return errors for IA3 options with which PEFT could save an adapter but not load it."""
    targets, inputs = options.target_modules, options.feedforward_modules
    if isinstance(targets, str) or isinstance(inputs, str):  # regular expressions
        return []
    return [
        f"feedforward_modules: got {name!r}; expected modules that are in target_modules too "
        f"({', '.join(sorted(targets))})."
        for name in sorted(set(inputs) - set(targets))
    ]


def _warn_changed_block_sizes(adapted: nn.Module, options: Any) -> None:
    """Warn where OFT uses another block size or number than requested, to fit the layer's size."""
    for name in ("oft_block_size", "r"):
        requested = getattr(options, name, 0)
        changed = sorted(oft_layer_values(adapted, name) - {requested}) if requested else []
        if changed:
            logger.warning(
                "%s: %d does not divide the size of every layer; PEFT uses %s there",
                *(name, requested, ", ".join(map(str, changed))),
            )


def _set_prompt_sizes(model: PreTrainedModel, options: Any) -> None:
    """Set the width and depth of virtual tokens, which PEFT reads wrongly from some configs.

    ELECTRA's token embeddings are narrower than its layers, DistilBERT has other names, and a
    decoder may have fewer key-value heads than query heads.
    """
    config: Any = model.base_model.config
    heads = config.num_attention_heads
    if options.peft_type == "PREFIX_TUNING":
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        heads = getattr(config, "num_key_value_heads", None) or heads
        width = heads * head_dim
    else:
        embeddings: Any = model.get_input_embeddings()
        width = embeddings.embedding_dim
    options.token_dim = options.token_dim or width
    options.num_attention_heads = options.num_attention_heads or heads
    options.num_layers = options.num_layers or config.num_hidden_layers
