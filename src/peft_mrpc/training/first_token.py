"""Run the last layer for the first token only, while a model trains whose head reads nothing else.

The result is exact. Of the last layer the head needs keys and values of all tokens, and the query,
the attention output and the feed-forward block of the first token: no other output is read.

Shapes: B batch, T tokens, H hidden.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedModel,
)

from peft_mrpc.interop.transformers_internals import (
    BERT_ATTENTIONS,
    attn_implementation,
    bert_first_token_attention,
    is_checkpointed,
)
from peft_mrpc.models.architecture import (
    base_classifier,
    encoder_layers,
    is_trained,
    num_virtual_tokens,
)
from peft_mrpc.models.modeling_sentence_pair import SentencePairConfig
from peft_mrpc.training.activation_cache.bypass import replaced_forwards

# Architectures with the layers of BERT; their own heads read the first token.
BERT_FAMILY = ("bert", "camembert", "electra", "roberta", "xlm-roberta")

# Inputs of a layer that need all of it: the keys and values of a prefix, or cross-attention.
OTHER_INPUTS = ("past_key_values", "cache", "encoder_hidden_states")


def reads_first_token(model: nn.Module) -> bool:
    """Whether the head reads only the first output of the last of BERT's layers."""
    classifier = base_classifier(model)
    if not isinstance(classifier, PreTrainedModel) or num_virtual_tokens(model):
        return False
    encoder: Any = classifier.base_model.config
    if encoder.model_type not in BERT_FAMILY or encoder.is_decoder:
        return False
    if isinstance(classifier.config, SentencePairConfig):
        return classifier.config.pooling in ("cls", "first")
    native: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(classifier.config), None)
    return type(classifier) is native


def first_token_only(model: nn.Module) -> AbstractContextManager[None]:
    """Within the block the last layer returns the first token's output at every position.

    A last layer that does not train is left as it is: the activation cache skips it. The module
    tree, and so the names of the parameters, do not change.
    """
    if not reads_first_token(model):
        return nullcontext()
    layer = encoder_layers(base_classifier(model))[-1]
    return replaced_forwards([layer], _first_token_forward) if is_trained(layer) else nullcontext()


def _first_token_forward(module: nn.Module) -> Callable[..., Any]:
    layer: Any = module
    compute = layer.forward

    def forward(
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # The Trainer's own keywords, such as the number of items in the batch, arrive here too.
        needs_all = any(value is not None for value in (*args, *map(kwargs.get, OTHER_INPUTS)))
        needs_all |= attn_implementation(layer.attention.self.config) not in BERT_ATTENTIONS
        # In eval mode the layer computes exactly what it does when the trained model is scored.
        if needs_all or is_checkpointed(layer) or not layer.training:
            return compute(hidden_states, attention_mask, *args, **kwargs)
        attended = bert_first_token_attention(layer.attention.self, hidden_states, attention_mask)
        output = layer.attention.output(attended, hidden_states[:, :1])  # [B, 1, H]
        return layer.feed_forward_chunk(output).expand(hidden_states.shape)

    return forward
