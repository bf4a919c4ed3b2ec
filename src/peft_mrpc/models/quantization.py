"""Load base models with 4-bit or 8-bit weights (bitsandbytes)."""

from typing import Any

import torch

from peft_mrpc.distributed import process_state
from peft_mrpc.interop.transformers_internals import keep_4bit_weights_trainable
from peft_mrpc.models.architecture import HEAD_NAMES
from peft_mrpc.precision import compute_dtype

QUANTIZATIONS = ("none", "nf4", "fp4", "int8")


def weight_options(quantization: str, plain_dtype: torch.dtype) -> dict[str, Any]:
    """Options of `from_pretrained` for a quantization.

    Args:
        quantization: One of QUANTIZATIONS.
        plain_dtype: Data type of the weights without quantization.
    """
    if quantization == "none":
        return {"dtype": plain_dtype}
    device = process_state().device
    dtype = compute_dtype(device)
    # One replica per process: "auto" would distribute each copy over all GPUs.
    return {
        "dtype": dtype,
        "device_map": {"": device},
        "quantization_config": _quantization_config(quantization, dtype),
    }


def _quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    # Without a list, transformers skips `lm_head` only. BERT's own list has `classifier.bias`, with
    # which its classifier would be quantized.
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
    """Freeze a quantized model for training with an adapter; norms, embeddings and head in fp32."""
    from peft import prepare_model_for_kbit_training

    # The Trainer enables gradient checkpointing, if it is requested.
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    keep_4bit_weights_trainable(model)
