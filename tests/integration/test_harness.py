"""Against EleutherAI's lm-evaluation-harness: the same prompts, the same log-probabilities."""

from typing import Any

import numpy as np
import pytest
from conftest import MRPC
from harness_peer import run_harness

from peft_mrpc.config import DataConfig
from peft_mrpc.data.loading import load_data
from peft_mrpc.models.loading import load_causal_lm, load_tokenizer
from peft_mrpc.models.sources import resolve_model
from peft_mrpc.prompting.classifier import PromptClassifier
from peft_mrpc.prompting.demonstrations import sample_demonstrations
from peft_mrpc.prompting.loglikelihood import LocalEngine
from peft_mrpc.prompting.prompt_encoder import PromptEncoder
from peft_mrpc.prompting.templates import Template, load_template

LONG = {"equivalent": ("yes, they do",), "not_equivalent": ("no, they do not",)}


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, None),
        pytest.param(3, None, marks=pytest.mark.slow),
        pytest.param(2, LONG, marks=pytest.mark.slow),
    ],
)
def test_label_scores_equal_those_of_the_harness(count: int, words: Any) -> None:
    """Label words of one token, and of several."""
    template = load_template("paraphrase_harness")
    template = template.model_copy(update={"label_words": words or template.label_words})
    compare("builtin:pairs", "test", 24, template, count)


@pytest.mark.slow
@pytest.mark.skipif(not MRPC.is_dir(), reason="needs MRPC")
@pytest.mark.parametrize("count", [0, 8])
def test_all_of_mrpcs_validation_split_scores_equally(count: int) -> None:
    compare(str(MRPC), "validation", 408, load_template("paraphrase_harness"), count)


def compare(dataset: str, split: str, num_pairs: int, template: Template, count: int) -> None:
    source = resolve_model("builtin:smollm2")
    model, tokenizer = load_causal_lm(source, "none"), load_tokenizer(source)
    data = load_data(DataConfig(dataset=dataset))
    pairs, train = data.splits[split][:num_pairs], data.splits["train"]
    assert len(pairs) == num_pairs
    labels = list(data.label_names)
    peer = run_harness(model, tokenizer, template, labels, pairs, train, count)
    classifier = PromptClassifier(
        PromptEncoder(tokenizer, labels, 4096),
        LocalEngine(model),
        [template],
        labels,
        sample_demonstrations(train, labels, count, "first", 0),
    )
    scores = classifier.score(pairs, 8)[0].labels
    assert np.abs(scores - peer.log_probabilities).max() < 1e-4
    assert (scores.argmax(1) == peer.log_probabilities.argmax(1)).all()
