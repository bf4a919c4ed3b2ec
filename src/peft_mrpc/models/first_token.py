"""The last layer, run for the one token that the head reads.

A head over [CLS] needs of the last layer its keys and values for all tokens, and everything else
(query, attention output, feed-forward) for [CLS] alone. That is exact: no other token of the last
layer goes anywhere.

Shapes: B batch, T tokens, H hidden.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from peft_mrpc.methods.freezing import encoder_layers
from peft_mrpc.models.modeling_sentence_pair import SentencePairConfig

# Whose layers are BERT's, and whose own classifiers read position 0; test_first_token.py holds
# each of them to the plain layer.
BERT_LIKE = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
# Those that read a mask with a row for each query.
ATTENTIONS = ("eager", "sdpa")


class FirstTokenLayer(nn.Module):
    """What a BERT layer becomes: gives the output of one position, at every position.

    So a head that reads that position finds it wherever its counting begins.
    """

    first_token: int

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As BERT's layer, which has keys and values of before by either name."""
        layer: Any = self
        inner = layer.attention.self
        attention = inner.config._attn_implementation or "eager"
        before = {"past_key_values": past_key_values, "cache": cache}
        before = {name: value for name, value in before.items() if value is not None}
        if before or attention not in ATTENTIONS:
            inputs = (hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask)
            whole: torch.Tensor = super().forward(*inputs, **before, **kwargs)
            return whole
        here = slice(self.first_token, self.first_token + 1)
        own = hidden_states[:, here]  # [B, 1, H]
        if attention_mask is not None and attention_mask.shape[2] > 1:
            attention_mask = attention_mask[:, :, here]  # [B, 1, 1, T]

        def heads(projected: torch.Tensor) -> torch.Tensor:
            size = (*projected.shape[:-1], -1, inner.attention_head_size)
            return projected.view(size).transpose(1, 2)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention, eager_attention_forward)
        attended, _ = attend(
            inner,
            heads(inner.query(own)),
            heads(inner.key(hidden_states)),
            heads(inner.value(hidden_states)),
            attention_mask,
            dropout=inner.dropout.p if inner.training else 0.0,
            scaling=inner.scaling,
        )
        output = layer.attention.output(attended.reshape(*own.shape[:2], -1), own)
        return torch.as_tensor(layer.feed_forward_chunk(output)).expand(hidden_states.shape)


# What layers are given that is either for FirstTokenLayer to see or no matter to it.
KNOWN = {*inspect.signature(FirstTokenLayer.forward).parameters, "cache_position"}


def read_first_token(model: Any) -> bool:
    """Run the last layer for the token that the head reads, where it reads only one.

    Returns:
        Whether this model's is run so from now on.
    """
    has_adapter = hasattr(model, "get_base_model")
    classifier: PreTrainedModel = model.get_base_model() if has_adapter else model
    position = _position(model, classifier) if isinstance(classifier, PreTrainedModel) else None
    if position is None:
        return False
    layer: Any = encoder_layers(classifier)[-1]
    if not isinstance(layer, FirstTokenLayer):
        kind = type(layer)
        if not KNOWN.issuperset(inspect.signature(kind.forward).parameters):
            return False  # another release of transformers gives it something that may matter
        # A class of the same name, as wrapping policies and messages have it.
        layer.__class__ = type(kind.__name__, (FirstTokenLayer, kind), {"__doc__": kind.__doc__})
    layer.first_token = position
    return True


def _position(model: Any, classifier: PreTrainedModel) -> int | None:
    """Where the encoder sees the one token that is read; None where it is not one."""
    inner: Any = classifier.base_model.config
    if inner.model_type not in BERT_LIKE or inner.is_decoder:
        return None
    config = classifier.config
    if not isinstance(config, SentencePairConfig):
        return 0 if type(classifier).__name__.endswith("ForSequenceClassification") else None
    virtual = virtual_tokens(model)
    if config.prompt_position == "after":  # [CLS], virtual tokens, words
        places = {"cls": 0, "first": min(1, virtual)}
    else:  # virtual tokens, [CLS], words
        places = {"cls": virtual, "first": 0}
    return places.get(config.pooling)


def virtual_tokens(model: Any) -> int:
    """By how many virtual tokens an adapter lengthens each row."""
    adapter = getattr(model, "active_peft_config", None)
    if adapter is None or not adapter.is_prompt_learning or adapter.peft_type == "PREFIX_TUNING":
        return 0
    return int(adapter.num_virtual_tokens)
