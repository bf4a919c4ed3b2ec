"""A tiny model of every architecture, written to disk with a tokenizer that fits it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import build_from_flags, build_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
    PretrainedConfig,
)

from peft_mrpc.api import load_classifier
from peft_mrpc.methods.compatibility import default_options, validate_compatibility
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.models.architecture import head_parameter_ids, trainable_names
from peft_mrpc.models.artifact import save_classifier
from peft_mrpc.models.classifier import Classifier
from peft_mrpc.models.loading import load_config
from peft_mrpc.models.sources import resolve_model

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
        **RANGE,
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
LIKE = {"albert": "bert", "camembert": "roberta", "xlm-roberta": "roberta"}
ENCODERS = [name for name in ARCHITECTURES if name != "llama"]
TOKEN_TYPES = ("albert", "bert", "electra", "deberta-v2")


def tiny_config(architecture: str, vocab_size: int = 64) -> PretrainedConfig:
    sizes = {} if architecture == "distilbert" else SIZES
    options = {**sizes, "vocab_size": vocab_size, "max_position_embeddings": 64}
    options |= ARCHITECTURES[LIKE.get(architecture, architecture)]
    config: PretrainedConfig = AutoConfig.for_model(architecture, **options)
    return config


def write_tiny_model(architecture: str, folder: Path, **options: Any) -> str:
    """Save a model of random weights and these options of its kind; the path it lies at."""
    tokenizer = build_tokenizer(is_chat=architecture == "llama")
    if architecture != "llama" and architecture not in TOKEN_TYPES:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    torch.manual_seed(0)
    config = tiny_config(architecture, len(tokenizer))
    config.update(options)
    model = (
        LlamaForCausalLM(config)
        if architecture == "llama"
        else AutoModelForSequenceClassification.from_config(config)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# The options of each method that fit models so small.
# Options of each method that fit the tiny models.
TINY_OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "layer_freeze": {"num_unfrozen_layers": 1},
    "linear_probe": {},
    "bitfit": {},
    "ln_tuning": {},
    "ia3": {},
    "vera": {"r": 4},
    "lora": {"r": 4},
    "dora": {"r": 4},
    "oft": {"oft_block_size": 8},
    "prompt_tuning": {"num_virtual_tokens": 5},
    "p_tuning": {"num_virtual_tokens": 5, "encoder_hidden_size": 8},
    "prefix_tuning": {"num_virtual_tokens": 5},
}
FLAGS = {
    method: [text for name, value in options.items() for text in (f"--{name}", str(value))]
    for method, options in TINY_OPTIONS.items()
}


def poolings(architecture: str) -> tuple[str, str]:
    """The architecture's own head, and ours."""
    return ("native", "last" if architecture == "llama" else "aligned")


def train_two_steps(
    method: str,
    model: str,
    data_flags: list[str],
    folder: Path,
    *flags: str,
    score_first: bool = False,
) -> tuple[Classifier, Any]:
    """Train through the toolkit's own path; what classifies, and the pairs.

    What trains must change, some of it beside the head, and nothing else may.
    """
    tiny = build_from_flags(
        folder,
        ["--method", method, "--model", model, *data_flags, *FLAGS[method]]
        + ["--max_steps", "2", "--per_device_train_batch_size", "4", "--disable_tqdm", "true"]
        + ["--seed", "1", *flags],
    )
    classifier, trainer, data = tiny.classifier, tiny.trainer, tiny.data
    parameters = dict(classifier.model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    trainable = set(trainable_names(classifier.model))
    head = head_parameter_ids(classifier.model)
    if method != "linear_probe":
        assert any(id(parameters[name]) not in head for name in trainable), "only the head trains"
    if score_first:
        classifier.predict_proba(data.splits["validation"], 9)
    trainer.train()
    changed = {name for name, p in parameters.items() if not torch.equal(p, before[name])}
    # A key's bias moves no attention weight; LoRA's A and VeRA's d wait for what starts at zero.
    waiting = ("key.bias", "key_proj.bias", "k_lin.bias", "lora_A", "vera_lambda_d")
    still = {n for n in trainable - changed if not any(part in n for part in waiting)}
    assert changed <= trainable and not still
    return classifier, data.splits["validation"]


def batch_drift(classifier: Classifier, pairs: Any) -> float:
    """How far padding moves probabilities; 0 where masks, positions and pooling are right."""
    return float(
        np.abs(classifier.predict_proba(pairs, 9) - classifier.predict_proba(pairs, 1)).max()
    )


def reload_drift(
    classifier: Classifier, pairs: Any, model: str, method: str, folder: Path
) -> float:
    """How far probabilities are from those of what was saved and loaded again."""
    source = resolve_model(model)
    save_classifier(folder, classifier, source, load_config(source), method)
    again = load_classifier(str(folder)).predict_proba(pairs, 9)
    return float(np.abs(classifier.predict_proba(pairs, 9) - again).max())


def works(method: str, architecture: str, pooling: str) -> bool:
    options = default_options(method)
    return not validate_compatibility(tiny_config(architecture), method, options, pooling=pooling)


COMBINATIONS = [
    (method, architecture, pooling)
    for method in METHODS
    for architecture in ARCHITECTURES
    for pooling in poolings(architecture)
    if works(method, architecture, pooling)
]
