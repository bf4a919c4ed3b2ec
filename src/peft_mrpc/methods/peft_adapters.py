"""PEFT's trainable parts, put into a model that is frozen."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from peft import get_peft_model
from peft.tuners.oft.layer import OFTLayer
from torch import nn
from transformers import PreTrainedModel

from peft_mrpc.errors import UserError, logger, one_line, raise_faults
from peft_mrpc.methods.freezing import encoder_layers
from peft_mrpc.methods.module_names import module_name_faults
from peft_mrpc.methods.target_modules import name_targets


def add_adapter(model: PreTrainedModel, options: Any) -> Any:
    """Freeze the model and add PEFT's trainable parts to it; the head trains too.

    Raises:
        UserError: If a name is no module's, or PEFT cannot fit the method to the model.
    """
    raise_faults(module_name_faults(model, options))
    options = copy.deepcopy(options)  # PEFT and we write into them; another seed gets them anew
    is_ia3 = options.peft_type == "IA3"  # what it scales must be among the targets, by name
    if names_some_layers(vars(options)) or (is_ia3 and options.target_modules == "all-linear"):
        # PEFT takes layers with named modules alone.
        options.target_modules = _linear_names(encoder_layers(model))
    name_targets(model.config, options)
    if is_ia3:
        raise_faults(_feedforward_faults(options))
    if options.is_prompt_learning:
        _size_prompt(model, options)
    if hasattr(options, "modules_to_save"):
        options.modules_to_save = _saved_modules(model, options.modules_to_save or [])
    try:
        adapted = get_peft_model(model, options)
    except Exception as error:  # PEFT checks values by many kinds of error
        raise UserError(f"{type(options).__name__}: {one_line(error)}") from error
    _say_block_sizes(adapted, options)
    return adapted


def without_weights(options: Any) -> Any:
    """The options for a model of shapes alone: nothing begins as a decomposition of weights."""
    options = copy.deepcopy(options)
    if isinstance(getattr(options, "init_lora_weights", None), str):
        options.init_lora_weights = True
    return options


def names_some_layers(options: Mapping[str, Any]) -> bool:
    """Whether all projections are to be changed, but of some layers only."""
    all_linear = options.get("target_modules") == "all-linear"
    return all_linear and options.get("layers_to_transform") is not None


def _linear_names(layers: nn.Module) -> set[str]:
    """What the projections of a stack of layers are called."""
    return {
        name.rpartition(".")[2]
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear)
    }


def _saved_modules(model: PreTrainedModel, asked: Sequence[str]) -> list[str]:
    """The modules that train whole and are saved: what was asked for, and the head.

    All that stands beside the encoder is new and must be trained and saved: PEFT thinks of
    `classifier` and `score`, not of DeBERTa's pooler.
    """
    heads = [n for n, _ in model.named_children() if n != model.base_model_prefix]
    own = [n for n in heads if any(True for _ in getattr(model, n).parameters())]
    return sorted({*asked, *own})


def _feedforward_faults(options: Any) -> list[str]:
    """Why PEFT could not read IA3's options back, if so."""
    targets, inputs = options.target_modules, options.feedforward_modules
    if isinstance(targets, str) or isinstance(inputs, str):  # patterns
        return []
    lacking = sorted(set(inputs) - set(targets))
    there = ", ".join(sorted(targets))
    return [
        f"--feedforward_modules: got {name!r}, which is not among --target_modules ({there})."
        for name in lacking
    ]


def _say_block_sizes(adapted: Any, options: Any) -> None:
    """Say so where OFT's blocks had to be others than were asked for, to fill the rows."""
    for name, are in (("oft_block_size", "blocks there are of %s"), ("r", "there are %s blocks")):
        asked = getattr(options, name, 0)
        found = {
            value
            for module in adapted.modules()
            if isinstance(module, OFTLayer)
            for value in getattr(module, name).values()
        }
        if asked and found - {asked}:
            became = ", ".join(map(str, sorted(found - {asked})))
            logger.warning(
                f"--%s: got %d, which does not divide every row; {are}", name, asked, became
            )


def use_tokenizer(options: Any, location: str) -> None:
    """Have the text that a prompt begins as read by the model's own tokenizer."""
    if getattr(options, "prompt_tuning_init", None) == "TEXT":
        options.tokenizer_name_or_path = location


def _size_prompt(model: PreTrainedModel, options: Any) -> None:
    """Say how wide and deep virtual tokens are: PEFT reads names that not every config writes.

    ELECTRA's token embeddings are narrower than its layers; DistilBERT has names of its own; a
    decoder may have fewer heads of keys and values than of queries.
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
