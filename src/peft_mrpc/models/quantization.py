"""Weights in fewer bits. The only file that knows bitsandbytes."""

from typing import Any

import torch

from peft_mrpc.distributed import process_state
from peft_mrpc.models.architecture import HEAD_NAMES
from peft_mrpc.precision import compute_dtype

QUANTIZATIONS = ("none", "nf4", "fp4", "int8")
# What PEFT and the Trainer ask a whole model for.
QUANTIZED_MARKS = (
    *("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized"),
    *("quantization_method", "hf_quantizer"),
)


def weight_options(quantization: str, plain_dtype: torch.dtype) -> dict[str, Any]:
    """How weights are loaded: `plain_dtype` where they are not quantized."""
    if quantization == "none":
        return {"dtype": plain_dtype}
    device = process_state().device
    dtype = compute_dtype(device)
    # One replica a rank: "auto" would spread each rank's copy over all GPUs.
    return {
        "dtype": dtype,
        "device_map": {"": device},
        "quantization_config": _quantization_config(quantization, dtype),
    }


def _quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    # BERT's own list names `classifier.bias`, and its classifier would be quantized. `lm_head` is
    # what transformers leaves alone where no list is given.
    skipped = [*HEAD_NAMES, "pooler", "lm_head"]
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        llm_int8_skip_modules=skipped,
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def prepare_quantized(model: Any) -> None:
    """Freeze a quantized base, with norms, embeddings and head in fp32, fit to be trained over."""
    from peft import prepare_model_for_kbit_training

    # Checkpointing, where it is asked for, is the Trainer's to switch on.
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    for module in model.modules():
        # On a CPU with bf16, the first pass in eval mode repacks 4-bit weights for a kernel
        # without gradients: BERT then fails to train, LLaMA's adapters silently get none.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
