"""Which methods, architectures and options work together, decided before any weights are loaded.

`tests/unit/methods/test_compatibility.py` trains every combination that is allowed here, and shows
that every rejected combination fails or gives wrong results.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftConfig, PeftType
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    PretrainedConfig,
)

from peft_mrpc.methods.registry import find_method, load_default_recipe
from peft_mrpc.methods.target_modules import default_targets, encoder_type
from peft_mrpc.models.loading import has_custom_code
from peft_mrpc.models.modeling_sentence_pair import SentencePairConfig

# Values of init_lora_weights besides PEFT's default that read no base weights or quantized ones.
INITS_ON_QUANTIZED = ("gaussian", "olora")
# The columns of the compatibility matrix: architectures, then options on the first architecture
# that the method works with.
MATRIX_ARCHITECTURES = (
    *("bert", "roberta", "deberta-v2", "distilbert", "electra", "modernbert", "llama"),
)
MATRIX_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "4-bit": {"quantization": "nf4"},
    "int8": {"quantization": "int8"},
    "checkpointing": {"gradient_checkpointing": True},
}
MATRIX_LEGEND = "yes: with every pooling; ours: with every pooling but native; -: rejected"


def default_options(method: str, values: Mapping[str, Any] | None = None) -> Any:
    """Return the options of a method as its packaged recipe sets them.

    Args:
        method: Name of the method.
        values: Options with other values.
    """
    entry, recipe = find_method(method), load_default_recipe(method, values or {})
    options = {name: value for name, value in recipe.items() if name in entry.option_types()}
    return entry.build_options({**options, **(values or {})})


def format_matrix(options: Mapping[str, Any]) -> list[str]:
    """Return the compatibility matrix as lines of a table with a legend.

    With a single method, the reasons for what is rejected follow.

    Args:
        options: The options of each method to show.
    """
    configs = {name: AutoConfig.for_model(name) for name in MATRIX_ARCHITECTURES}
    rows = [["method", *MATRIX_ARCHITECTURES, *MATRIX_OPTIONS]]
    reasons: list[str] = []
    for method, method_options in options.items():
        row, supported = [method], []
        for config in configs.values():
            ours = validate_compatibility(config, method, method_options, pooling="last")
            native = validate_compatibility(config, method, method_options, pooling="native")
            supported += [] if ours else [config]
            row.append("-" if ours else "ours" if native else "yes")
            reasons += [*ours, *native]
        base = next(iter(supported), configs["bert"])
        for arguments in MATRIX_OPTIONS.values():
            errors = validate_compatibility(base, method, method_options, **arguments)
            row.append("-" if errors else "yes")
            reasons += errors
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if len(options) > 1:
        hint = "`peft-mrpc doctor --method NAME` shows the reasons."
        return [*table, "", MATRIX_LEGEND, hint]
    return [*table, "", MATRIX_LEGEND, *dict.fromkeys(reasons)]


def validate_compatibility(
    config: PretrainedConfig,
    method: str,
    options: Any,
    *,
    pooling: str = "segments",
    prompt_position: str = "before",
    quantization: str = "none",
    gradient_checkpointing: bool = False,
) -> list[str]:
    """Return one error for each combination that cannot work, with an alternative.

    Args:
        config: The model's configuration.
        method: Name of the method.
        options: The method's options (PEFT's config for its methods).
        pooling: What the head reads; `native` is the architecture's own head.
        prompt_position: Position of virtual tokens: `before` the first token or `after` it.
        quantization: How the base model's weights are stored.
        gradient_checkpointing: Whether activations are recomputed in the backward pass.
    """
    model_type = encoder_type(config)
    if isinstance(config, SentencePairConfig):
        config = config.encoder_config()
    errors = []
    if method == "bitfit" and not _has_biases(config):
        errors.append(f"method: got bitfit, but {model_type} here has no biases; use ln_tuning.")
    if isinstance(options, PeftConfig):
        errors += _peft_errors(config, model_type, options, pooling, gradient_checkpointing)
    if prompt_position == "after":
        errors += _prompt_position_errors(config, model_type, method, options, pooling)
    return errors + _quantization_errors(method, options, quantization)


def _peft_errors(
    config: PretrainedConfig,
    model_type: str,
    options: PeftConfig,
    pooling: str,
    gradient_checkpointing: bool,
) -> list[str]:
    errors = []
    if options.peft_type == PeftType.PREFIX_TUNING:
        if not _accepts_past_key_values(config, pooling):
            head = " with its native head" if pooling == "native" else ""
            errors.append(
                f"method: got prefix_tuning, but {model_type}{head} accepts no past keys and "
                "values; use lora, or prompt_tuning for virtual tokens."
            )
        if gradient_checkpointing:
            errors.append(
                "gradient_checkpointing: got true, but it drops the keys and values of "
                "prefix_tuning; expected false, or use lora."
            )
    elif options.is_prompt_learning and pooling == "native" and _is_decoder(config):
        errors.append(
            "pooling: got native, but a decoder's native head reads a padding token when virtual "
            "tokens precede the input; expected last or mean."
        )
    needs_targets = getattr(options, "target_modules", ()) is None
    if needs_targets and default_targets(options.peft_type, model_type) is None:
        errors.append(
            f"target_modules: got none, and {type(options).__name__} has no default for "
            f"{model_type}; expected the names of modules to adapt."
        )
    return errors


def _prompt_position_errors(
    config: PretrainedConfig, model_type: str, method: str, options: Any, pooling: str
) -> list[str]:
    got = "prompt_position: got after, but"
    if not getattr(options, "is_prompt_learning", False):
        return [f"{got} {method} has no virtual tokens; expected before, or use prompt_tuning."]
    if options.peft_type == PeftType.PREFIX_TUNING:
        return [
            f"{got} {method} adds keys and values, which precede all tokens; expected before, or "
            "use prompt_tuning."
        ]
    if _is_decoder(config):
        return [f"{got} {model_type} is a decoder and has no [CLS] token; expected before."]
    if pooling == "native":
        return [f"{got} this needs one of our heads; expected before, or use pooling auto."]
    return []


def _quantization_errors(method: str, options: Any, quantization: str) -> list[str]:
    if quantization == "none":
        return []
    if not isinstance(options, PeftConfig):
        return [
            f"quantization: got {quantization}, but {method} trains or saves the base model's "
            "own weights; expected none, or use lora."
        ]
    if quantization == "int8" and getattr(options, "use_dora", False):
        return [
            "quantization: got int8, which PEFT cannot dequantize for DoRA; expected nf4, or use "
            "lora."
        ]
    init = getattr(options, "init_lora_weights", None)
    if isinstance(init, str) and init not in INITS_ON_QUANTIZED:
        return [
            f"init_lora_weights: got {init}, which decomposes weights that are not quantized; "
            f"expected true, {' or '.join(INITS_ON_QUANTIZED)}, or use quantization none."
        ]
    return []


def _accepts_past_key_values(config: PretrainedConfig, pooling: str) -> bool:
    """Return whether the encoder's forward accepts a prefix; True for unknown encoders."""
    model_class = MODEL_MAPPING.get(type(config), None)
    if not inspect.isclass(model_class):
        return True
    parameters = inspect.signature(model_class.forward).parameters
    # transformers 5.24 renames the argument to `cache`, which our heads pass on and PEFT does not.
    return "past_key_values" in parameters or (pooling != "native" and "cache" in parameters)


def _is_decoder(config: PretrainedConfig) -> bool:
    """Return whether the architecture is causal only, and so classifies at its last token."""
    kind = type(config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def _has_biases(config: PretrainedConfig) -> bool:
    with torch.device("meta"):  # shapes only
        encoder = AutoModel.from_config(config, trust_remote_code=has_custom_code(config))
    return any(name.endswith("bias") for name, _ in encoder.named_parameters())
