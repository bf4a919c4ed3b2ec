"""Our own head: what it reads, and that it survives saving, virtual tokens and other tools."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROWS, build_from_flags
from tiny_models import FLAGS
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from peft_mrpc.api import load_classifier
from peft_mrpc.data.examples import Example
from peft_mrpc.errors import UserError
from peft_mrpc.methods.layer_freeze import LayerFreezeOptions
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.models.architecture import trainable_names
from peft_mrpc.models.classifier import Classifier
from peft_mrpc.models.loading import load_classification_model, load_tokenizer
from peft_mrpc.models.modeling_sentence_pair import (
    ALIGNED_POOLINGS,
    POOLINGS,
    SentencePairConfig,
    SentencePairForSequenceClassification,
    mark_sentences,
)
from peft_mrpc.models.sources import resolve_model
from peft_mrpc.runs.run import load_run
from peft_mrpc.train import main

LABELS = ["not_equivalent", "equivalent"]
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ENCODERS = {
    "bert": BertConfig(**SHAPE),
    "roberta": RobertaConfig(**SHAPE),
    "electra": ElectraConfig(**SHAPE, embedding_size=16),
    "deberta": DebertaV2Config(**SHAPE),
    "distilbert": DistilBertConfig(
        vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64
    ),
    "modernbert": ModernBertConfig(
        **SHAPE, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3
    ),
}


@pytest.mark.parametrize(
    ("row", "special", "expected"),
    [
        ([2, 10, 11, 3, 12, 3, 0], [0, 2, 3], [0, 1, 1, 0, 2, 0, 0]),  # BERT, padded on the right
        ([0, 0, 2, 10, 3, 12, 3], [0, 2, 3], [0, 0, 0, 1, 0, 2, 0]),  # on the left
        ([0, 10, 2, 2, 12, 13, 2, 1], [0, 1, 2], [0, 1, 0, 0, 2, 2, 0, 0]),  # RoBERTa
    ],
)
def test_marks_the_sentences_between_special_tokens(
    row: list[int], special: list[int], expected: list[int]
) -> None:
    assert mark_sentences(torch.tensor([row]), special).tolist() == [expected]


def test_poolings_equal_their_definitions(tiny_bert: str) -> None:
    source, tokenizer = resolve_model(tiny_bert), load_tokenizer(resolve_model(tiny_bert))
    encoder = AutoModel.from_pretrained(tiny_bert).eval()
    batch = tokenizer("the cat", "a dog sat", return_tensors="pt")  # [CLS] the cat [SEP] a dog sat
    hidden = encoder(**batch).last_hidden_state[0]
    u, v = hidden[1:3].mean(0), hidden[4:7].mean(0)
    expected = {
        "cls": hidden[0],
        "first": hidden[0],
        "last": hidden[-1],
        "mean": hidden.mean(0),
        "segments": torch.cat([u, v, (u - v).abs(), u * v]),
    }
    assert {*expected, *ALIGNED_POOLINGS} == set(POOLINGS)
    for pooling, features in expected.items():
        model = load_classification_model(source, LABELS, tokenizer, pooling).eval()
        seen: list[torch.Tensor] = []
        model.classifier.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        model(**batch)
        assert torch.allclose(seen[0][0], features, atol=1e-6), pooling


@pytest.mark.parametrize("pooling", ["aligned", "weighted"])
def test_an_alignment_head_equals_its_definition(pooling: str, tiny_bert: str) -> None:
    source, tokenizer = resolve_model(tiny_bert), load_tokenizer(resolve_model(tiny_bert))
    model = load_classification_model(source, LABELS, tokenizer, pooling).eval()
    head = model.classifier
    if pooling == "weighted":  # weights that differ from token to token
        head.importance.weight.data.normal_(std=0.5)
    batch = tokenizer("the cat", "a dog sat", return_tensors="pt")
    hidden = model.encoder(**batch).last_hidden_state[0]
    first, second = ([unit(h) for h in hidden[rows]] for rows in (slice(1, 3), slice(4, 7)))

    def aggregate(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> list[torch.Tensor]:
        compared, best, scores = [], [], []
        for h in ours:
            cosines = torch.stack([h @ other for other in theirs])
            weights = (10 * cosines).softmax(0)
            a = sum(w * other for w, other in zip(weights, theirs, strict=True))
            scale = len(h) ** 0.5
            features = torch.cat([scale * (h - a).abs(), scale**2 * h * a])
            compared.append(torch.relu(head.compare(features)))
            best.append(cosines.max())
            scores.append(h @ head.importance.weight[0] * scale if head.importance else h[0])
        tokens = torch.stack(compared)
        weighted = torch.stack(scores).softmax(0) @ tokens
        return [tokens.mean(0), weighted, torch.stack(best).mean()[None]]

    (c1, w1, b1), (c2, w2, b2) = aggregate(first, second), aggregate(second, first)
    pooled = [c1 + c2, c1 - c2]
    if pooling == "weighted":
        assert not torch.allclose(w1, c1, atol=1e-3)
        pooled += [w1 + w2, w1 - w2]
    pooled += [10 * (b1 + b2), 10 * (b1 - b2)]
    expected = head.out_proj(torch.tanh(head.dense(torch.cat(pooled))))
    assert torch.allclose(model(**batch).logits[0], expected, atol=1e-5)


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm()


def test_dropout_applies_to_encoder_and_head(tiny_bert: str) -> None:
    source, tokenizer = resolve_model(tiny_bert), load_tokenizer(resolve_model(tiny_bert))
    batch = tokenizer("the cat", "a dog sat", return_tensors="pt")
    for pooling in ("native", "aligned"):
        model = load_classification_model(source, LABELS, tokenizer, pooling, dropout=0.0).train()
        assert torch.equal(model(**batch).logits, model(**batch).logits)
        default = load_classification_model(source, LABELS, tokenizer, pooling).train()
        assert not torch.equal(default(**batch).logits, default(**batch).logits)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_encoders_of_every_family_train_all_their_parameters(name: str, pooling: str) -> None:
    torch.manual_seed(0)
    config = SentencePairConfig(
        ENCODERS[name].to_dict(), pooling=pooling, special_ids=[0, 2, 3], num_labels=3
    )
    model = SentencePairForSequenceClassification(config)
    ids = torch.tensor([[2, 10, 11, 3, 12, 13, 3], [2, 10, 3, 12, 3, 0, 0]])
    output = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=torch.tensor([0, 2]))
    assert output.logits.shape == (2, 3)
    output.loss.backward()
    # DDP takes a parameter that never gets a gradient for an error.
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_padding_does_not_change_probabilities(tiny_bert: str) -> None:
    source = resolve_model(tiny_bert)
    tokenizer = load_tokenizer(source)
    pairs = [Example(i, a, b) for i, (a, b, _) in enumerate(ROWS)]
    for pooling in POOLINGS:
        model = load_classification_model(source, LABELS, tokenizer, pooling)
        classifier = Classifier(model, tokenizer, LABELS, 64)
        together, alone = classifier.predict_proba(pairs, 9), classifier.predict_proba(pairs, 1)
        assert np.abs(together - alone).max() < 1e-5


POOLED = ("layer_freeze", "lora", "prompt_tuning")


@pytest.fixture(scope="module")
def pooled_runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: str, data_flags: list[str]
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pooled")
    for method in POOLED:
        main(
            ["--method", method, "--model", tiny_bert, *FLAGS[method], *data_flags]
            + ["--pooling", "aligned", "--head_learning_rate", "1e-3"]
            + ["--output_dir", str(folder / method), "--num_train_epochs", "2"]
        )
    return {method: folder / method for method in POOLED}


def test_a_decoder_with_virtual_tokens_pools_its_last_token(
    tiny_llama: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--method", "prompt_tuning", "--num_virtual_tokens", "4", "--model", tiny_llama]
    main([*flags, *data_flags, "--output_dir", str(tmp_path / "run"), "--num_train_epochs", "2"])
    run = load_run(tmp_path / "run")
    assert run.record["config"]["pooling"] == "last"
    saved = run.predictions("validation").probabilities
    predictor = load_classifier(str(run.path))
    pairs = [Example(i, a, b) for i, (a, b, _) in enumerate(ROWS)]
    # The same whatever a row is padded to, and the same as before it was saved.
    for batch_size in (1, 2, 9):
        assert np.abs(predictor.predict_proba(pairs, batch_size) - saved).max() < 1e-5
    with pytest.raises(UserError, match="reads a padding token when virtual tokens precede"):
        main([*flags, *data_flags, "--output_dir", str(tmp_path / "no"), "--pooling", "native"])


def test_deberta_freezes_all_inputs_of_frozen_layers() -> None:
    config = SentencePairConfig(
        {**ENCODERS["deberta"].to_dict(), "relative_attention": True, "pos_att_type": ["p2c"]},
        special_ids=[0, 2, 3],
    )
    model = SentencePairForSequenceClassification(config)
    METHODS["layer_freeze"].apply(model, LayerFreezeOptions(num_unfrozen_layers=1))
    trained = trainable_names(model.encoder)
    assert trained and all(name.startswith("encoder.layer.1.") for name in trained)


def test_runs_with_our_heads_reload_with_equal_probabilities(
    pooled_runs: dict[str, Path], tiny_bert: str
) -> None:
    pairs = [Example(i, a, b) for i, (a, b, _) in enumerate(ROWS)]
    for path in pooled_runs.values():
        saved = load_run(path).predictions("validation").probabilities
        assert np.abs(load_classifier(str(path)).predict_proba(pairs, 32) - saved).max() < 1e-6


def test_plain_transformers_loads_our_heads(pooled_runs: dict[str, Path]) -> None:
    script = (
        "import sys, json; sys.modules['peft_mrpc'] = None\n"  # importing it would fail
        "from transformers import AutoModelForSequenceClassification as M, AutoTokenizer as T\n"
        "model = M.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "tokenizer = T.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "batch = tokenizer(sys.argv[2], sys.argv[3], return_tensors='pt')\n"
        "print(json.dumps(model(**batch).logits.softmax(-1).tolist()))"
    )
    folder = pooled_runs["layer_freeze"] / "model"
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), *ROWS[0][:2]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    saved = load_run(pooled_runs["layer_freeze"]).predictions("validation").probabilities[0]
    assert np.abs(np.array(json.loads(done.stdout)[0]) - saved).max() < 1e-5


def test_virtual_tokens_are_attended_to_but_not_pooled(pooled_runs: dict[str, Path]) -> None:
    predictor = load_classifier(str(pooled_runs["prompt_tuning"]))
    assert isinstance(predictor, Classifier)
    pairs = [Example(0, *ROWS[0][:2])]
    before = predictor.predict_proba(pairs, 1)
    assert (predictor.predict_proba(pairs, 1) == before).all()  # so that any change is the prompt's
    prompt = predictor.model.prompt_encoder["default"].embedding.weight
    assert prompt.shape == (5, 16)
    with torch.no_grad():
        prompt += 100 * torch.randn_like(prompt)
    assert np.abs(predictor.predict_proba(pairs, 1) - before).max() > 1e-7


def test_the_head_has_its_own_learning_rate(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    trainer = build_from_flags(
        tmp_path,
        ["--method", "full", "--model", tiny_bert, *data_flags, "--pooling", "segments"]
        + ["--learning_rate", "1e-4", "--head_learning_rate", "5e-3", "--layer_decay", "1"],
    ).trainer
    groups = trainer.create_optimizer().param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups)
    for name, parameter in trainer.model.named_parameters():
        expected = 5e-3 if name.startswith("classifier.") else 1e-4
        assert rates[id(parameter)] == expected, name


def test_transformers_resolves_our_model_type(pooled_runs: dict[str, Path]) -> None:
    config = json.loads((pooled_runs["layer_freeze"] / "model" / "config.json").read_text())
    assert config["model_type"] == "sentence_pair" and "auto_map" in config
    model = AutoModelForSequenceClassification.from_pretrained(
        pooled_runs["layer_freeze"] / "model"
    )
    assert isinstance(model, SentencePairForSequenceClassification)
