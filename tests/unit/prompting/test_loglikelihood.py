import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
)

from peft_mrpc.errors import UserError
from peft_mrpc.prompting import loglikelihood
from peft_mrpc.prompting.loglikelihood import LocalEngine, distinct_inputs
from peft_mrpc.prompting.prompt_encoder import Continuation


@pytest.fixture(scope="module")
def model(tiny_llama: str) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    return loaded.eval()


def continuation(context: Sequence[int], tokens: tuple[int, ...]) -> Continuation:
    return Continuation(np.array(context, np.int32), tokens)


def score_alone(model: PreTrainedModel, option: Continuation) -> float:
    """One sequence by itself, every position through the model."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*option.context.tolist(), *option.tokens]])).logits[0]
    rows = logits.double().log_softmax(-1)
    start = len(option.context) - 1
    return float(sum(rows[start + step, token] for step, token in enumerate(option.tokens)))


def rows_of(prefix: Sequence[int]) -> list[list[Continuation]]:
    """Pairs of unlike lengths, with answers of one token and of several."""
    contexts = [(*prefix, *range(6, 6 + length)) for length in (1, 4, 2, 9, 3)]
    answers = [(25,), (31, 5), (27, 28), (27, 29, 30)]
    return [[continuation(context, answer) for answer in answers] for context in contexts]


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batched_scores_equal_those_of_single_sequences(
    shares: bool, batch_size: int, model: PreTrainedModel
) -> None:
    rows = rows_of(range(10, 22))
    engine = LocalEngine(model, shares_prefix=shares)
    scores = engine.log_likelihoods(rows, batch_size)
    assert engine.compute_prefix(rows).length == (12 if shares else 0)
    expected = np.array([[score_alone(model, option) for option in row] for row in rows])
    assert np.abs(scores - expected).max() < 1e-5
    again = replace(engine, max_batch_tokens=20).log_likelihoods(rows, batch_size)
    assert np.abs(again - expected).max() < 1e-5


def test_a_prefix_leaves_each_context_its_last_token(model: PreTrainedModel) -> None:
    prefix = tuple(range(10, 30))
    rows = [[continuation(prefix, (25,))], [continuation((*prefix, 6), (26,))]]
    engine = LocalEngine(model)
    scores = engine.log_likelihoods(rows, 2)
    assert engine.compute_prefix(rows).length == len(prefix) - 1
    assert scores[0, 0] == pytest.approx(score_alone(model, rows[0][0]), abs=1e-5)
    assert scores[1, 0] == pytest.approx(score_alone(model, rows[1][0]), abs=1e-5)


def test_different_sequences_share_no_prefix(model: PreTrainedModel) -> None:
    rows = [[continuation((start, 7, 8), (25,))] for start in (10, 11, 12)]
    engine = LocalEngine(model)
    scores = engine.log_likelihoods(rows, 3)
    assert engine.compute_prefix(rows).length == 0
    assert scores[2, 0] == pytest.approx(score_alone(model, rows[2][0]), abs=1e-5)


def test_inputs_that_are_prefixes_of_others_are_not_computed() -> None:
    context = (4, 5)
    row = [continuation(context, tokens) for tokens in ((9,), (7,), (7, 8), (7, 8, 1), (6, 2))]
    # "9" and "7" are read off the context, "7 8" off what "7 8 1" reads.
    assert distinct_inputs(row) == [(4, 5, 6), (4, 5, 7, 8)]


def sliding_window(kind: str) -> PreTrainedModel:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    if kind == "window":
        config = MistralConfig(**sizes, sliding_window=8, initializer_range=0.3)
        return MistralForCausalLM(config).eval()
    state = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
    config = FalconH1Config(**sizes, **state, mamba_n_groups=1, initializer_range=0.3)
    return FalconH1ForCausalLM(config).float().eval()


@pytest.mark.parametrize(("kind", "length"), [("window", 12), ("state", 0)])
def test_a_prefix_is_shared_with_keys_and_values_only(kind: str, length: int) -> None:
    model, rows = sliding_window(kind), rows_of(range(10, 22))
    engine = LocalEngine(model)
    scores = engine.log_likelihoods(rows, 1)
    assert engine.compute_prefix(rows).length == length
    expected = np.array([[score_alone(model, option) for option in row] for row in rows])
    assert np.abs(scores - expected).max() < 1e-4


SIZES = {"vocab_size": 64, "hidden_size": 32}
# Their position schemes: learned, ALiBi, local windows, a recurrent state.
OTHERS: dict[str, tuple[Any, Any, bool]] = {  # and whether a prefix is shared
    "gpt2": (
        GPT2Config(vocab_size=64, n_positions=512, n_embd=32, n_layer=2, n_head=4),
        GPT2LMHeadModel,
        True,
    ),
    "bloom": (
        BloomConfig(**SIZES, n_layer=2, n_head=4, initializer_range=0.3),
        BloomForCausalLM,
        True,
    ),
    "mpt": (
        MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, initializer_range=0.3),
        MptForCausalLM,
        True,
    ),
    "gpt_neo": (
        GPTNeoConfig(
            **SIZES,
            num_layers=2,
            num_heads=4,
            intermediate_size=64,
            attention_types=[[["global", "local"], 1]],
            window_size=16,
            max_position_embeddings=512,
            initializer_range=0.3,
        ),
        GPTNeoForCausalLM,
        True,
    ),
    "rwkv": (
        RwkvConfig(**SIZES, num_hidden_layers=2, attention_hidden_size=32),
        RwkvForCausalLM,
        False,
    ),
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_position_schemes_score_like_single_sequences(architecture: str) -> None:
    config, kind, shares = OTHERS[architecture]
    torch.manual_seed(0)
    model = kind(config).float().eval()
    prefix = np.random.default_rng(0).integers(4, 64, 140).tolist()
    rows = rows_of(prefix)
    engine = LocalEngine(model)
    scores = engine.log_likelihoods(rows, 5)
    assert (engine.compute_prefix(rows).length > 0) == shares
    expected = np.array([[score_alone(model, option) for option in row] for row in rows])
    assert np.abs(scores - expected).max() < 1e-4


def test_a_large_vocabulary_is_scored_some_tokens_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 11, generator=draw)
    line, column = torch.tensor([0, 2, 1, 0, 2]), torch.tensor([3, 0, 1, 1, 0])
    token = torch.tensor([10, 0, 4, 4, 1])
    expected = logits.log_softmax(-1)[line, column, token]
    for elements in (1, 30, 1000):  # one token at a time, two, all
        monkeypatch.setattr(loglikelihood, "SOFTMAX_ELEMENTS", elements)
        scores = loglikelihood.token_log_probabilities(logits, line, column, token)
        assert torch.allclose(scores, expected, atol=1e-6)


def test_scores_that_are_not_finite_are_refused_before_they_are_cached(
    model: PreTrainedModel,
) -> None:
    class Cache:
        def find(self, rows: Sequence[int]) -> None:
            return None

        def add(self, rows: Sequence[int], scores: Any) -> None:
            pytest.fail("cached")

    damaged = copy.deepcopy(model)
    damaged.get_output_embeddings().weight.data[25] = float("nan")
    with pytest.raises(UserError, match="log-probabilities that are not finite"):
        LocalEngine(damaged).log_likelihoods(rows_of(range(10, 22)), 2, cache=Cache())
