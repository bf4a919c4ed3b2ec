"""Private parts of transformers."""

from transformers import PretrainedConfig


def attn_implementation(config: PretrainedConfig) -> str:
    """Name of the attention implementation in use: `PretrainedConfig._attn_implementation`."""
    return str(config._attn_implementation)
