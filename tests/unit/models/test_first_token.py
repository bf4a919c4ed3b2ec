"""The last layer run for one token equals the last layer run for all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import batch_drift, reload_drift, train_two_steps, write_tiny_model

from peft_mrpc.data.loading import load_data
from peft_mrpc.methods.freezing import encoder_layers
from peft_mrpc.models.classifier import ClassificationCollator, Classifier
from peft_mrpc.models.first_token import BERT_LIKE, FirstTokenLayer, read_first_token
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.training.build_model import build_classifier
from peft_mrpc.training.job import parse_request


@pytest.fixture(scope="module")
def bert_like(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bert-like")
    others = {n: write_tiny_model(n, folder / n) for n in ("camembert", "xlm-roberta")}
    return {**models, **others}


def build(model: str, data_flags: list[str], *flags: str) -> tuple[Classifier, Any]:
    request = parse_request(["--model", model, *data_flags, "--dropout", "0", *flags])
    torch.manual_seed(1)
    data = load_data(request.data)
    return build_classifier(request, resolve_model(model), data), data.splits["validation"]


def last_layer(classifier: Classifier) -> Any:
    model = classifier.model
    return encoder_layers(model.get_base_model() if hasattr(model, "peft_config") else model)[-1]


def logits_and_gradients(classifier: Classifier, pairs: Any) -> tuple[Any, dict[str, Any]]:
    model = classifier.model
    features, _ = classifier.encode(pairs)
    batch = ClassificationCollator(classifier.tokenizer, model.config)(features)
    model.zero_grad()
    logits = model.train()(**batch).logits
    torch.nn.functional.cross_entropy(logits, torch.arange(len(pairs)) % 2).backward()
    return logits.detach(), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pooling", ["native", "cls"])
@pytest.mark.parametrize("architecture", BERT_LIKE)
def test_logits_and_gradients_are_those_of_the_whole_layer(
    architecture: str,
    pooling: str,
    attention: str,
    bert_like: dict[str, str],
    data_flags: list[str],
) -> None:
    flags = ["--method", "full", "--pooling", pooling]
    classifier, pairs = build(bert_like[architecture], data_flags, *flags)
    classifier.model.base_model.set_attn_implementation(attention)
    layer = last_layer(classifier)
    assert isinstance(layer, FirstTokenLayer)
    assert layer(torch.randn(2, 5, 16)).stride()[1] == 0, "more than one position was computed"
    logits, gradients = logits_and_gradients(classifier, pairs)
    layer.__class__ = type(layer).__mro__[2]  # the plain one
    assert not isinstance(layer, FirstTokenLayer)
    plain, plain_gradients = logits_and_gradients(classifier, pairs)
    assert float((logits - plain).abs().max()) < 1e-5
    assert float(plain.std()) > 1e-3, "the logits say nothing"
    assert set(gradients) == set(plain_gradients)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, plain_gradients[name], atol=1e-5), name


def test_real_weights_give_the_same(data_flags: list[str]) -> None:
    flags = ["--method", "full", "--pooling", "native"]
    classifier, pairs = build("builtin:minilm", data_flags, *flags)
    layer = last_layer(classifier)
    assert isinstance(layer, FirstTokenLayer)
    logits, gradients = logits_and_gradients(classifier, pairs)
    layer.__class__ = type(layer).__mro__[2]  # the plain one
    plain, plain_gradients = logits_and_gradients(classifier, pairs)
    assert float((logits - plain).abs().max()) < 1e-5 < float(plain.std())
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, plain_gradients[name], atol=1e-5), name


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("pooling", ["native", "cls", "first"])
@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning", "lora"])
def test_virtual_tokens_are_counted(
    method: str, pooling: str, position: str, bert_like: dict[str, str], data_flags: list[str]
) -> None:
    if position == "after" and (pooling == "native" or method not in ("prompt_tuning", "p_tuning")):
        pytest.skip("refused: nothing is placed")
    flags = ["--method", method, "--pooling", pooling, "--prompt_position", position]
    if method != "lora":
        flags += ["--num_virtual_tokens", "5"]
    classifier, pairs = build(bert_like["bert"], data_flags, *flags)
    layer = last_layer(classifier)
    assert isinstance(layer, FirstTokenLayer)
    given: list[torch.Tensor] = []
    layer.register_forward_hook(lambda *passed: given.append(passed[-1]))
    logits, gradients = logits_and_gradients(classifier, pairs)
    # One token's for all of them; a prefix's keys and values are left to the whole layer.
    assert (given[0].stride()[1] == 0) == (method != "prefix_tuning")
    layer.__class__ = type(layer).__mro__[2]
    plain, plain_gradients = logits_and_gradients(classifier, pairs)
    assert float((logits - plain).abs().max()) < 1e-5
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, plain_gradients[name], atol=1e-5), name


@pytest.mark.parametrize("architecture", ["deberta-v2", "distilbert", "modernbert", "llama"])
def test_other_architectures_run_as_before(
    architecture: str, bert_like: dict[str, str], data_flags: list[str]
) -> None:
    classifier, _ = build(bert_like[architecture], data_flags, "--pooling", "native")
    assert not read_first_token(classifier.model)
    assert not isinstance(last_layer(classifier), FirstTokenLayer)


@pytest.mark.parametrize("pooling", ["aligned", "mean", "segments", "last"])
def test_heads_that_read_more_get_all(
    pooling: str, bert_like: dict[str, str], data_flags: list[str]
) -> None:
    classifier, _ = build(bert_like["bert"], data_flags, "--pooling", pooling)
    assert not isinstance(last_layer(classifier), FirstTokenLayer)


def test_what_is_trained_so_is_saved_and_reloaded_as_ever(
    bert_like: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    model = bert_like["bert"]
    flags = ["--pooling", "native", "--gradient_checkpointing", "true"]
    classifier, pairs = train_two_steps("full", model, data_flags, tmp_path / "t", *flags)
    assert batch_drift(classifier, pairs) < 1e-5
    assert reload_drift(classifier, pairs, model, "full", tmp_path / "model") < 1e-5
