"""Which methods, architectures and options stand together: known before any weights are loaded.

`tests/test_compatibility.py` forces every combination refused here and shows that it fails or gives
wrong results, and trains those that are not.
"""

import inspect
from typing import Any

import torch
from peft import PeftConfig, PeftType
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    PretrainedConfig,
)

from peft_mrpc.methods.target_modules import default_targets, encoder_type
from peft_mrpc.models.modeling_sentence_pair import SentencePairConfig

# LoRA's beginnings, besides PEFT's own, that need no weights or read quantized ones.
ON_QUANTIZED = ("gaussian", "olora")


def compatibility_faults(
    config: PretrainedConfig,
    method: str,
    options: Any,
    *,
    pooling: str = "segments",
    prompt_position: str = "before",
    quantization: str = "none",
    gradient_checkpointing: bool = False,
) -> list[str]:
    """What cannot work, one line for each with what to use instead; none if it all stands together.

    Args:
        config: The model's configuration.
        method: Name of the method.
        options: The method's options: PEFT's config, where it is one of PEFT's.
        pooling: What the head reads; `native` is the architecture's own head.
        prompt_position: Where virtual tokens stand: `before` the first token or `after` it.
        quantization: How the base model's weights are held.
        gradient_checkpointing: Whether activations are computed again in the backward pass.
    """
    model_type = encoder_type(config)
    if isinstance(config, SentencePairConfig):
        config = config.encoder_config()
    faults = []
    if method == "bitfit" and not _has_biases(config):
        faults.append(f"--method: got bitfit, but {model_type} here has no biases; use ln_tuning.")
    if isinstance(options, PeftConfig):
        faults += _peft_faults(config, model_type, options, pooling, gradient_checkpointing)
    if prompt_position == "after":
        faults += _position_faults(config, model_type, method, options, pooling)
    return faults + _quantization_faults(method, options, quantization)


def _peft_faults(
    config: PretrainedConfig,
    model_type: str,
    options: PeftConfig,
    pooling: str,
    gradient_checkpointing: bool,
) -> list[str]:
    faults = []
    if options.peft_type == PeftType.PREFIX_TUNING:
        if not _takes_keys_and_values(config, pooling):
            head = " under its own head (--pooling native)" if pooling == "native" else ""
            faults.append(
                f"--method: got prefix_tuning, but {model_type} takes no keys and values from "
                f"outside{head}; use lora, or prompt_tuning for virtual tokens."
            )
        if gradient_checkpointing:
            faults.append(
                "--gradient_checkpointing: got true, but it drops the keys and values of "
                "prefix_tuning; drop it, or use lora."
            )
    elif options.is_prompt_learning and pooling == "native" and _is_decoder(config):
        faults.append(
            "--pooling: got native, but a decoder's own head reads a pad once virtual tokens stand "
            "before the pair; expected last or mean."
        )
    if getattr(options, "target_modules", ()) is None:
        targets = default_targets(options.peft_type, model_type)
        if targets is None:
            faults.append(
                f"--target_modules: got none, and {type(options).__name__} has no default for "
                f"{model_type}; name the modules to change."
            )
    return faults


def _position_faults(
    config: PretrainedConfig, model_type: str, method: str, options: Any, pooling: str
) -> list[str]:
    """Why virtual tokens cannot stand after the first token, if so."""
    got = "--prompt_position: got after, but"
    if not getattr(options, "is_prompt_learning", False):
        return [f"{got} {method} has no virtual tokens; drop it, or use prompt_tuning."]
    if options.peft_type == PeftType.PREFIX_TUNING:
        return [
            f"{got} {method} gives keys and values, which stand before all tokens; drop it, or use "
            "prompt_tuning."
        ]
    if _is_decoder(config):
        return [f"{got} {model_type} reads left to right, without a [CLS]; expected before."]
    if pooling == "native":
        return [
            f"{got} the architecture's own head takes them as PEFT gives them; use --pooling auto."
        ]
    return []


def _quantization_faults(method: str, options: Any, quantization: str) -> list[str]:
    if quantization == "none":
        return []
    if not isinstance(options, PeftConfig):
        return [
            f"--quantization: got {quantization}, but {method} trains or saves the base model's "
            "own weights; use none, or lora."
        ]
    if quantization == "int8" and getattr(options, "use_dora", False):
        return ["--quantization: got int8, which PEFT's DoRA cannot read back; use nf4, or lora."]
    init = getattr(options, "init_lora_weights", None)
    if isinstance(init, str) and init not in ON_QUANTIZED:
        return [
            f"--init_lora_weights: got {init}, which takes weights apart that are not quantized; "
            f"expected true, {' or '.join(ON_QUANTIZED)}, or --quantization none."
        ]
    return []


def _takes_keys_and_values(config: PretrainedConfig, pooling: str) -> bool:
    """Whether the encoder's forward has a place for a prefix; an unknown encoder may have."""
    model_class = MODEL_MAPPING.get(type(config), None)
    if not inspect.isclass(model_class):
        return True
    taken = inspect.signature(model_class.forward).parameters
    # `cache` from transformers 5.24 on, which PEFT does not look for in a model of transformers.
    return "past_key_values" in taken or (pooling != "native" and "cache" in taken)


def _is_decoder(config: PretrainedConfig) -> bool:
    """Whether the architecture reads left to right only, and so classifies at its last token."""
    kind = type(config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def _has_biases(config: PretrainedConfig) -> bool:
    with torch.device("meta"):  # shapes only: no weights, no memory
        encoder = AutoModel.from_config(config)
    return any(name.endswith("bias") for name, _ in encoder.named_parameters())
