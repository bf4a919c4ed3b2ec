"""Which modules of an architecture a PEFT method changes, where the user names none."""

from collections.abc import Mapping
from typing import Any

from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftType
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from transformers import PretrainedConfig

from peft_mrpc.models.modeling_sentence_pair import SentencePairConfig

# PEFT's own defaults come first; these are for the encoders that it does not know.
# Query and value, as in arXiv:2106.09685 (table 5); ModernBERT has them in one projection.
ATTENTION = {"distilbert": ["q_lin", "v_lin"], "modernbert": ["Wqkv"]}
# Every normalization, those of the embeddings too: a thousandth of the numbers of the model.
NORMS = {
    **{name: ["LayerNorm"] for name in ("bert", "roberta", "xlm-roberta", "electra", "deberta-v2")},
    "distilbert": ["LayerNorm", "sa_layer_norm", "output_layer_norm"],
    # The first layer has no norm before its attention: "attn_norm" alone would meet an Identity.
    "modernbert": r".*(embeddings\.norm|[1-9]\d*\.attn_norm|mlp_norm|final_norm)",
}
# Keys, values and what enters the second feed-forward projection (arXiv:2205.05638, section 3.3).
SCALED = {
    "electra": ["key", "value", "output.dense"],
    "xlm-roberta": ["key", "value", "output.dense"],
    "distilbert": ["k_lin", "v_lin", "lin2"],
    "modernbert": ["Wqkv", "mlp.Wo"],
}
SCALED_INPUTS = {
    "electra": ["output.dense"],
    "xlm-roberta": ["output.dense"],
    "distilbert": ["lin2"],
    "modernbert": ["mlp.Wo"],
}


def encoder_type(config: PretrainedConfig) -> str:
    """The architecture's name, that of the encoder inside our own model."""
    if isinstance(config, SentencePairConfig):
        return str(config.encoder["model_type"])
    return str(config.model_type)


def default_targets(peft_type: Any, model_type: str) -> Any:
    """Names (or a pattern) of the modules that the method changes; None where none are known."""
    if peft_type == PeftType.IA3:  # the one tuner that does not carry its mapping
        known: Mapping[str, Any] = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        return known.get(model_type) or SCALED.get(model_type)
    known = getattr(PEFT_TYPE_TO_TUNER_MAPPING[PeftType(peft_type)], "target_module_mapping", {})
    ours: Mapping[str, Any] = NORMS if peft_type == PeftType.LN_TUNING else ATTENTION
    return known.get(model_type) or ours.get(model_type)


def name_targets(config: PretrainedConfig, options: Any) -> None:
    """Write the targets into the options, unless the user did: PEFT sees only our model's type."""
    if not hasattr(options, "target_modules"):
        return
    model_type = encoder_type(config)
    if options.target_modules is None:
        targets = default_targets(options.peft_type, model_type)
        options.target_modules = set(targets) if isinstance(targets, list) else targets
    if options.peft_type == PeftType.IA3 and options.feedforward_modules is None:
        known: Mapping[str, Any] = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
        inputs = set(known.get(model_type) or SCALED_INPUTS.get(model_type) or ())
        chosen = options.target_modules
        options.feedforward_modules = inputs & chosen if isinstance(chosen, set) else inputs
