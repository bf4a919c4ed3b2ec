"""A tiny model of every architecture, written to disk with a tokenizer that fits it."""

from pathlib import Path
from typing import Any

import torch
from conftest import build_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
    PretrainedConfig,
)

# Weights so large that a mistake in a mask or a position shows in the logits.
RANGE = {"initializer_range": 0.3}
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    **RANGE,
}
# What makes each architecture differ from BERT, kept as its real checkpoints have it.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {},
    # Positions are counted from the pad's id on.
    "roberta": {"max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 0},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "max_relative_positions": -1,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 16,
    },
    "distilbert": {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 32,
        "initializer_range": 0.3,
    },
    "electra": {"embedding_size": 8},
    "modernbert": {
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
    },
    "llama": {"num_key_value_heads": 1, "bos_token_id": 4, "eos_token_id": 5},
}
WIDTHS = {
    "hidden_size",
    "embedding_size",
    "intermediate_size",
    "dim",
    "hidden_dim",
    "pooler_hidden_size",
}
ENCODERS = [name for name in ARCHITECTURES if name != "llama"]
TOKEN_TYPES = ("bert", "electra", "deberta-v2")


def tiny_config(architecture: str, vocab_size: int = 64, scale: int = 1) -> PretrainedConfig:
    """The configuration of a model 16 wide, or `scale` times that."""
    sizes = {} if architecture == "distilbert" else SIZES
    options = {**sizes, "vocab_size": vocab_size, "max_position_embeddings": 64}
    options |= ARCHITECTURES[architecture]
    for name in WIDTHS & set(options):
        options[name] *= scale
    config: PretrainedConfig = AutoConfig.for_model(architecture, **options)
    return config


def write_tiny_model(architecture: str, folder: Path, scale: int = 1) -> str:
    """Save a model of random weights; the path it lies at."""
    tokenizer = build_tokenizer(is_chat=architecture == "llama")
    if architecture in ENCODERS and architecture not in TOKEN_TYPES:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    torch.manual_seed(0)
    config = tiny_config(architecture, len(tokenizer), scale)
    model = (
        LlamaForCausalLM(config)
        if architecture == "llama"
        else AutoModelForSequenceClassification.from_config(config)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
