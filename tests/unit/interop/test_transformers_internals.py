"""A release of transformers that changes one of these private parts fails here first."""

import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    DynamicCache,
    MistralConfig,
    PretrainedConfig,
)

from peft_mrpc.interop.transformers_internals import (
    attn_implementation,
    expand_cache,
    has_only_keys_and_values,
    hub_revision,
)

SIZES = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 8}


def test_an_expanded_cache_continues_each_sequence_and_leaves_the_original() -> None:
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, sliding_window=None)
    model = AutoModelForCausalLM.from_config(config).eval()
    prefix, ends = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5], [6, 7]])
    with torch.inference_mode():
        cache = model(prefix, past_key_values=DynamicCache(config=config)).past_key_values
        assert has_only_keys_and_values(cache)
        logits = model(ends, past_key_values=expand_cache(cache, 2)).logits
        whole = model(torch.cat([prefix.expand(2, -1), ends], dim=1)).logits[:, 3:]
    assert torch.allclose(logits, whole, atol=1e-6)
    assert cache.get_seq_length() == 3 and cache.layers[0].keys.shape[0] == 1


def test_the_hub_revision_is_that_of_the_configuration() -> None:
    config = PretrainedConfig()
    assert hub_revision(config) is None
    config._commit_hash = "abc"
    assert hub_revision(config) == "abc"


def test_attn_implementation_follows_the_public_setter() -> None:
    model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert attn_implementation(model.config) == name
