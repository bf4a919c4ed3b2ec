"""Private and undocumented parts of transformers and bitsandbytes that the package uses."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_pt_utils import get_length_grouped_indices

# Attributes by which PEFT and the Trainer recognize a model with quantized weights.
QUANTIZATION_ATTRIBUTES = (
    *("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized"),
    *("quantization_method", "hf_quantizer"),
)

# Implementations that read a mask with a row for each query.
BERT_ATTENTIONS = ("eager", "sdpa")


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


def is_checkpointed(layer: Any) -> bool:
    """Whether the backward pass computes a layer again: `GradientCheckpointingLayer`'s flag.

    Since transformers 5.23 the `forward` of its class does so, and one of the instance does not.
    """
    return bool(getattr(layer, "gradient_checkpointing", False))


def bert_first_token_attention(
    module: Any, hidden: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """The self-attention of the first token to all tokens, before the output projection, [B, 1, H].

    Uses the parts of `BertSelfAttention` and the attention functions that it calls.

    Args:
        module: A `BertSelfAttention` or one of its copies, with an attention of BERT_ATTENTIONS.
        hidden: Input of the layer, [B, T, H].
        mask: Of the layer, [B, 1, T or 1, T]; None if there is no padding.
    """
    first = hidden[:, :1]

    def split_heads(projected: torch.Tensor) -> torch.Tensor:
        heads = projected.view(*projected.shape[:-1], -1, module.attention_head_size)
        return heads.transpose(1, 2)

    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attn_implementation(module.config), eager_attention_forward
    )
    attended, _ = attend(
        module,
        split_heads(module.query(first)),
        split_heads(module.key(hidden)),
        split_heads(module.value(hidden)),
        None if mask is None else mask[:, :, :1],
        dropout=module.dropout.p if module.training else 0.0,
        scaling=module.scaling,
    )
    return torch.as_tensor(attended).flatten(2)


def copy_quantization_state(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Mark a model whose encoder is quantized as quantized itself.

    Uses the attributes in QUANTIZATION_ATTRIBUTES, which `from_pretrained` sets.
    """
    for name in QUANTIZATION_ATTRIBUTES:
        setattr(target, name, getattr(source, name, False))


def mark_dequantized(model: PreTrainedModel) -> None:
    """Allow a model that was dequantized while loading, from GGUF, to be saved.

    `save_pretrained` refuses it as long as it has `hf_quantizer` and `config.quantization_config`.
    """
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]


def keep_4bit_weights_trainable(model: Any) -> None:
    """Disable bitsandbytes' CPU kernel for bfloat16, which computes no gradients.

    Uses `Linear4bit.support_avx512bf16_for_cpu`. The first forward pass in eval mode would repack
    the weights for this kernel: BERT then fails to train, and LLaMA's adapters get no gradients.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def early_stopping_patience(trainer_state: Mapping[str, Any]) -> int | None:
    """The early stopping patience that a checkpoint was trained with; None for none.

    Uses `stateful_callbacks` of the file `trainer_state.json`.
    """
    callbacks = trainer_state.get("stateful_callbacks", {})
    arguments = callbacks.get("EarlyStoppingCallback", {}).get("args", {})
    patience: int | None = arguments.get("early_stopping_patience")
    return patience


def training_has_ended(trainer_state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is the last one of its training: all steps, or early stopping.

    Uses `stateful_callbacks` of the file `trainer_state.json`.
    """
    control = trainer_state.get("stateful_callbacks", {}).get("TrainerControl", {})
    return bool(control.get("args", {}).get("should_training_stop", False))


def length_grouped_order(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[int]:
    """A random order of examples in which each batch has examples of similar length, [N].

    Uses `trainer_pt_utils.get_length_grouped_indices`, the order of `group_by_length`.
    """
    order: list[int] = get_length_grouped_indices(  # type: ignore[no-untyped-call]
        lengths, batch_size, generator=generator
    )
    return order


def builds_parameter_groups(optimizer_class: Any, options: Mapping[str, Any]) -> bool:
    """Whether an optimizer of the Trainer builds its parameter groups of the model itself.

    Uses `trainer_optimizer.is_optimizer_factory`, and the options `model` and `optimizer_dict` of
    `Trainer.get_optimizer_cls_and_kwargs`.
    """
    is_factory = bool(is_optimizer_factory(optimizer_class))
    return is_factory or bool({"model", "optimizer_dict"} & options.keys())


def use_one_gpu(training_args: Any) -> None:
    """Let a process that sees several GPUs train on the first, instead of by DataParallel.

    Sets `TrainingArguments._n_gpu`.
    """
    training_args._n_gpu = 1
