"""Against EleutherAI's lm-evaluation-harness: the same prompts, the same log-probabilities."""

import numpy as np
import pytest
from harness_peer import run_harness

from peft_mrpc.config import DataConfig
from peft_mrpc.data import load_pairs
from peft_mrpc.demonstrations import choose_demonstrations, fixed
from peft_mrpc.engines import LocalEngine, PromptClassifier
from peft_mrpc.models import load_causal_lm, load_tokenizer
from peft_mrpc.sources import find_model
from peft_mrpc.template_files import load_template


@pytest.mark.parametrize("count", [0, 3])
def test_labels_score_as_in_the_harness(count: int) -> None:
    source = find_model("builtin:smollm2")
    model, tokenizer = load_causal_lm(source, "none"), load_tokenizer(source)
    data = load_pairs(DataConfig(dataset="builtin:pairs"))
    pairs, train = data.splits["test"][:24], data.splits["train"]
    template = load_template("paraphrase_harness")
    labels = list(data.label_names)
    peer = run_harness(model, tokenizer, template, labels, pairs, train, count)
    shown = choose_demonstrations(train, labels, count, "first", 0)
    classifier = PromptClassifier(
        LocalEngine(model, tokenizer, 4096), [template], labels, fixed(shown)
    )
    found = classifier.label_scores(pairs, 8)[0]
    assert np.abs(found - peer.log_probabilities).max() < 1e-4
    assert (found.argmax(1) == peer.log_probabilities.argmax(1)).all()
