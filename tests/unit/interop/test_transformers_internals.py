"""A release of transformers that changes one of these private parts fails here first."""

from transformers import BertConfig, BertModel

from peft_mrpc.interop.transformers_internals import attn_implementation


def test_attn_implementation_follows_the_public_setter() -> None:
    model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert attn_implementation(model.config) == name
