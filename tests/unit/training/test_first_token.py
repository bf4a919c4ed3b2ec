"""The last layer for the first token alone computes what the whole layer computes."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from peft_mrpc.models.architecture import encoder_layers
from peft_mrpc.models.modeling_sentence_pair import (
    SentencePairConfig,
    SentencePairForSequenceClassification,
)
from peft_mrpc.training import first_token
from peft_mrpc.training.first_token import first_token_only, reads_first_token

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SIZES |= {"intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FAMILY = {
    "bert": (BertConfig, BertForSequenceClassification),
    "electra": (ElectraConfig, ElectraForSequenceClassification),
    "roberta": (RobertaConfig, RobertaForSequenceClassification),
}


def build(name: str, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    config_class, model_class = FAMILY[name]
    options = {"classifier_dropout": 0.0, "attn_implementation": attention}
    model: PreTrainedModel = model_class(config_class(**SIZES, **options))
    return model.train()


def build_own(pooling: str) -> SentencePairForSequenceClassification:
    torch.manual_seed(0)
    encoder = BertConfig(**SIZES).to_dict()
    model = SentencePairForSequenceClassification(
        SentencePairConfig(encoder, pooling, [0, 2, 3], head_dropout=0.0)
    )
    model.train()
    return model


def batch() -> dict[str, torch.Tensor]:
    input_ids = torch.randint(5, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    input_ids[:, 0], input_ids[:, 3], input_ids[:, 6] = 2, 3, 3
    attention_mask = torch.ones_like(input_ids)
    input_ids[1, 5:], attention_mask[1, 5:] = 1, 0
    labels = torch.tensor([0, 1, 1])
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def logits_and_gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    # The Trainer hands such a keyword down to the layers.
    output = model(**batch(), num_items_in_batch=torch.tensor(3))
    output.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"logits": output.logits.detach(), **gradients}


def assert_equal_within(model: Any) -> None:
    plain = logits_and_gradients(model)
    names, outputs = list(model.state_dict()), []
    last = encoder_layers(getattr(model, "base_model", model))[-1].attention.output
    hook = last.register_forward_hook(lambda module, args, output: outputs.append(output))
    with first_token_only(model):
        fast = logits_and_gradients(model)
        assert list(model.state_dict()) == names
    hook.remove()
    assert [output.shape[1] for output in outputs] == [1]  # tokens
    assert fast.keys() == plain.keys()
    for name, expected in plain.items():
        torch.testing.assert_close(fast[name], expected, rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(logits_and_gradients(model)["logits"], plain["logits"])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", FAMILY)
def test_logits_and_gradients_are_those_of_the_whole_layer(name: str, attention: str) -> None:
    assert_equal_within(build(name, attention))


def test_the_same_holds_for_our_head_over_the_first_token() -> None:
    assert_equal_within(build_own("cls"))


def test_a_layer_with_gradient_checkpointing_stays_checkpointed() -> None:
    model = build("bert")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    forwards: list[int] = []
    last = encoder_layers(model)[-1].attention.output
    last.register_forward_hook(lambda module, args, output: forwards.append(output.shape[1]))
    with first_token_only(model):
        logits_and_gradients(model)
    assert forwards == [7, 7]  # tokens, forward and again in the backward pass


def test_the_same_holds_with_an_adapter() -> None:
    lora: Any = get_peft_model(build("bert"), LoraConfig("SEQ_CLS", lora_dropout=0.0))
    assert reads_first_token(lora)
    plain = logits_and_gradients(lora)
    with first_token_only(lora):
        torch.testing.assert_close(logits_and_gradients(lora), plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", ["aligned", "last", "mean", "segments", "weighted"])
def test_other_heads_need_the_whole_layer(pooling: str) -> None:
    model = build_own(pooling)
    assert not reads_first_token(model)
    with first_token_only(model):
        assert "forward" not in vars(encoder_layers(model)[-1])


def test_other_architectures_and_virtual_tokens_need_the_whole_layer() -> None:
    tiny = DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    assert not reads_first_token(DistilBertForSequenceClassification(tiny))
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    assert not reads_first_token(get_peft_model(build("bert"), config))


def test_the_keys_and_values_of_a_prefix_need_the_whole_layer() -> None:
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    model: Any = get_peft_model(build("bert"), config)
    encoder_layers(model.base_model)[-1].requires_grad_(True)
    plain = logits_and_gradients(model)
    with first_token_only(model):
        torch.testing.assert_close(logits_and_gradients(model), plain)


def test_a_frozen_last_layer_is_left_as_it_is() -> None:
    model = build("bert")
    layer = encoder_layers(model)[-1].requires_grad_(False)
    with first_token_only(model):
        assert "forward" not in vars(layer)


def test_a_training_uses_it_for_heads_that_read_the_first_token(
    train_tiny: Any, monkeypatch: Any
) -> None:
    tokens: set[int] = set()
    attend = first_token.bert_first_token_attention

    def record(*args: Any) -> torch.Tensor:
        output = attend(*args)
        tokens.add(output.shape[1])
        return output

    monkeypatch.setattr(first_token, "bert_first_token_attention", record)
    for pooling, expected in (("native", {1}), ("mean", set())):
        tokens.clear()
        train_tiny("layer_freeze", pooling, pooling=pooling, num_unfrozen_layers=1)
        assert tokens == expected
