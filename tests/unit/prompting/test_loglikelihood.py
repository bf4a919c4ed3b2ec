from collections.abc import Sequence
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

from peft_mrpc.prompting import loglikelihood
from peft_mrpc.prompting.loglikelihood import Continuation, ContinuationScorer, longest_reads
from peft_mrpc.prompting.prefix_cache import common_prefix


@pytest.fixture(scope="module")
def model(tiny_llama: str) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    return loaded.eval()


def plain(model: PreTrainedModel, one: Continuation) -> float:
    """One sequence by itself, every position through the model."""
    with torch.inference_mode():
        logits = model(torch.tensor([one.context + one.tokens])).logits[0]
    rows = logits.double().log_softmax(-1)
    start = len(one.context) - 1
    return float(sum(rows[start + step, token] for step, token in enumerate(one.tokens)))


def rows_of(prefix: Sequence[int]) -> list[list[Continuation]]:
    """Pairs of unlike lengths, with answers of one token and of several."""
    contexts = [(*prefix, *range(6, 6 + length)) for length in (1, 4, 2, 9, 3)]
    answers = [(25,), (31, 5), (27, 28), (27, 29, 30)]
    return [[Continuation(context, answer) for answer in answers] for context in contexts]


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_continuations_score_as_each_does_alone(
    shares: bool, batch_size: int, model: PreTrainedModel
) -> None:
    rows = rows_of(range(10, 22))
    scorer = ContinuationScorer(model, 0, shares_prefix=shares)
    found = scorer.score(rows, batch_size)
    assert scorer.prefix_length == (12 if shares else 0)
    expected = np.array([[plain(model, one) for one in row] for row in rows])
    assert np.abs(found - expected).max() < 1e-5
    again = scorer.score(rows, batch_size, max_tokens=20)  # the prefix was left as it was
    assert np.abs(again - expected).max() < 1e-5


@pytest.mark.parametrize("line", [1, 16, 512])
def test_sequences_in_one_line_score_as_each_does_alone(
    line: int, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft_mrpc.prompting.loglikelihood.WORTH_PACKING", 8)
    monkeypatch.setattr("peft_mrpc.prompting.loglikelihood.PACKED_TOKENS", line)
    rows = rows_of(range(10, 22))
    scorer = ContinuationScorer(model, 0)
    packed = []
    run = ContinuationScorer._packed_logits

    def watch(self: ContinuationScorer, sequences: Any, *args: Any) -> Any:
        packed.append(len(sequences))
        return run(self, sequences, *args)

    monkeypatch.setattr(ContinuationScorer, "_packed_logits", watch)
    found = scorer.score(rows, 3)
    _, *packed = packed  # two are tried first
    assert (max(packed) == 1) == (line == 1) and sum(packed) == 2 * len(rows)
    expected = np.array([[plain(model, one) for one in row] for row in rows])
    assert np.abs(found - expected).max() < 1e-5


def test_a_prefix_leaves_each_sequence_a_token_to_read(model: PreTrainedModel) -> None:
    prefix = tuple(range(10, 30))
    rows = [[Continuation(prefix, (25,))], [Continuation((*prefix, 6), (26,))]]
    scorer = ContinuationScorer(model, 0)
    found = scorer.score(rows, 2)
    assert scorer.prefix_length == len(prefix) - 1
    assert found[0, 0] == pytest.approx(plain(model, rows[0][0]), abs=1e-5)
    assert found[1, 0] == pytest.approx(plain(model, rows[1][0]), abs=1e-5)


def test_sequences_with_nothing_in_common_share_nothing(model: PreTrainedModel) -> None:
    rows = [[Continuation((start, 7, 8), (25,))] for start in (10, 11, 12)]
    scorer = ContinuationScorer(model, 0)
    found = scorer.score(rows, 3)
    assert scorer.prefix_length == 0
    assert found[2, 0] == pytest.approx(plain(model, rows[2][0]), abs=1e-5)


def test_what_is_the_beginning_of_another_is_not_run_again() -> None:
    context = (4, 5)
    row = [Continuation(context, tokens) for tokens in ((9,), (7,), (7, 8), (7, 8, 1), (6, 2))]
    # "9" and "7" are read off the context, "7 8" off what "7 8 1" reads.
    assert longest_reads(row) == [(4, 5, 6), (4, 5, 7, 8)]


def test_the_common_prefix_is_of_tokens() -> None:
    assert common_prefix([(1, 2, 3), (1, 2, 4), (1, 2)]) == 2
    assert common_prefix([(1,), (2,)]) == 0
    assert common_prefix([(1, 2)]) == 2
    assert common_prefix([]) == 0


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
def test_a_prefix_is_shared_only_where_keys_and_values_are_all_there_is(
    kind: str, length: int
) -> None:
    model, rows = sliding_window(kind), rows_of(range(10, 22))
    scorer = ContinuationScorer(model, 0)
    found = scorer.score(rows, 1)
    assert scorer.prefix_length == length
    expected = np.array([[plain(model, one) for one in row] for row in rows])
    assert np.abs(found - expected).max() < 1e-4


SIZES = {"vocab_size": 64, "hidden_size": 32}
# How each tells positions apart: learned, ALiBi, windows of its own, a state.
OTHERS: dict[str, tuple[Any, Any, bool, bool]] = {  # and whether it shares, and packs
    "gpt2": (
        GPT2Config(vocab_size=64, n_positions=512, n_embd=32, n_layer=2, n_head=4),
        GPT2LMHeadModel,
        *(True, True),
    ),
    "bloom": (
        BloomConfig(**SIZES, n_layer=2, n_head=4, initializer_range=0.3),
        BloomForCausalLM,
        *(True, False),
    ),
    "mpt": (
        MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, initializer_range=0.3),
        MptForCausalLM,
        *(True, False),
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
        *(True, False),
    ),
    "rwkv": (
        RwkvConfig(**SIZES, num_hidden_layers=2, attention_hidden_size=32),
        RwkvForCausalLM,
        *(False, False),
    ),
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_what_reckons_positions_its_own_way_scores_as_alone(architecture: str) -> None:
    config, kind, shares, packs = OTHERS[architecture]
    torch.manual_seed(0)
    model = kind(config).float().eval()
    prefix = np.random.default_rng(0).integers(4, 64, 140).tolist()
    rows = rows_of(prefix)
    scorer = ContinuationScorer(model, 0)
    found = scorer.score(rows, 5)
    assert (scorer.prefix_length > 0, scorer._packs) == (shares, packs)
    expected = np.array([[plain(model, one) for one in row] for row in rows])
    assert np.abs(found - expected).max() < 1e-4


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
        found = loglikelihood.chosen_log_probabilities(logits, line, column, token)
        assert torch.allclose(found, expected, atol=1e-6)
