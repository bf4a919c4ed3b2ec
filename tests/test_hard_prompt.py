import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROWS, write_csv

from peft_mrpc.artifacts import load_predictor
from peft_mrpc.config import DataConfig
from peft_mrpc.data import load_pairs
from peft_mrpc.errors import UserError
from peft_mrpc.hard_prompt import main
from peft_mrpc.models import load_causal_lm, load_tokenizer
from peft_mrpc.predictors import PromptClassifier
from peft_mrpc.prompts import load_template, packaged_templates, parse_template
from peft_mrpc.runs import load_run
from peft_mrpc.sources import ModelSource, find_model

LABELS = ["not_equivalent", "equivalent"]


@pytest.fixture(scope="module")
def smollm2() -> ModelSource:
    return find_model("builtin:smollm2")


def test_packaged_templates_load_and_answer_both_labels() -> None:
    assert packaged_templates()
    for name in packaged_templates():
        template = load_template(name)
        assert template.name == name
        assert len(set(template.words(LABELS))) == 2


def test_braces_in_a_sentence_stay_text() -> None:
    question = load_template("paraphrase").question("{sentence2} {0}", "100 % {of} it")
    assert "Sentence 1: {sentence2} {0}" in question and "100 % {of} it" in question


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("txt: a", ["unknown key 'txt'. Did you mean 'text'?", "'text' is missing", "label_words"]),
        (
            "text: '{sentence1} {it}'\nlabel_words: {a: X, b: Y}",
            ["{it}", "lacks {sentence2}"],
        ),
        ("text: '{sentence1} {sentence2}'\nlabel_words: {a: X, b: X}", ["the same word"]),
        (
            "text: '{sentence1} {sentence2}'\nlabel_words: {a: yes, b: no}",
            ["got True"],
        ),
        ("text: '{sentence1'\nlabel_words: {a: X, b: Y}", ["literal brace"]),
        ("[", ["not valid YAML"]),
    ],
)
def test_every_fault_of_a_template_is_named(text: str, faults: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_template(text, "mine.yaml")
    for fault in faults:
        assert fault in str(caught.value)


def test_a_prompt_has_one_bos_and_ends_where_the_answer_begins(smollm2: ModelSource) -> None:
    tokenizer = load_tokenizer(smollm2)
    model = load_causal_lm(smollm2, "none")
    classifier = PromptClassifier(model, tokenizer, load_template("paraphrase"), LABELS, 512)
    pairs = load_pairs(DataConfig(dataset="builtin:pairs")).splits["test"][:5]
    prompt_ids, label_tokens = classifier.encode(pairs)
    text = tokenizer.decode(prompt_ids[0])
    assert text.count("<|im_start|>system") == 1
    assert text.endswith("<|im_start|>assistant\n")
    assert [tokenizer.decode([token]) for token in label_tokens] == ["No", "Yes"]
    # The scores are the model's own next-token probabilities, row by row and unpadded.
    scores = classifier.score(pairs, batch_size=5)
    for row, ids in enumerate(prompt_ids):
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        plain = logits[label_tokens].softmax(-1).numpy()
        assert np.abs(scores[row] - plain).max() < 1e-5
    assert classifier.label_mass is not None and 0 < classifier.label_mass <= 1
    with pytest.raises(UserError, match="row 1: its prompt has .* tokens; expected at most 20"):
        PromptClassifier(model, tokenizer, classifier.template, LABELS, 20).encode(pairs)


def test_nf4_packs_the_weights_and_answers_near_the_full_ones(smollm2: ModelSource) -> None:
    tokenizer = load_tokenizer(smollm2)
    pairs = load_pairs(DataConfig(dataset="builtin:pairs")).splits["test"][:4]
    full, packed = load_causal_lm(smollm2, "none"), load_causal_lm(smollm2, "nf4")
    assert packed.get_memory_footprint() < 0.5 * full.get_memory_footprint()
    template = load_template("paraphrase")
    first, second = (
        PromptClassifier(model, tokenizer, template, LABELS, 512).score(pairs, 4)
        for model in (full, packed)
    )
    assert 0 < np.abs(first - second).max() < 0.35


def run_flags(tiny_llama: str, pair_files: dict[str, str], tmp_path: Path) -> list[str]:
    return [
        *("--model", tiny_llama, "--quantization", "none", "--batch_size", "4"),
        *("--validation_file", pair_files["validation"], "--output_dir", str(tmp_path / "run")),
    ]


def test_a_model_without_chat_template_is_asked_in_plain_text(
    tiny_llama: str, pair_files: dict[str, str], tmp_path: Path
) -> None:
    main(run_flags(tiny_llama, pair_files, tmp_path))
    run = load_run(tmp_path / "run")
    rows = run.predictions("validation")
    assert list(rows.idx) == list(range(len(ROWS)))
    assert np.allclose(rows.probabilities.sum(axis=1), 1)
    assert 0 < run.record["label_mass"]["validation"] < 1
    info = json.loads((run.artifact / "peft_mrpc.json").read_text())
    assert info["quantization"] == "none" and info["template"]["name"] == "paraphrase"
    # What was saved asks the same question and gets the same answer.
    pairs = load_pairs(DataConfig(validation_file=pair_files["validation"])).splits["validation"]
    again = load_predictor(str(run.path)).score(pairs, 4)
    assert np.abs(again - rows.probabilities).max() < 1e-7


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--template", "paraphras"], "Did you mean 'paraphrase'?"),
        (["--template", "gone.yaml"], "--template: got 'gone.yaml'; cannot be read"),
        (["--quantization", "nf5"], "--quantization: got 'nf5'"),
        (["--batch_size", "0"], "--batch_size: got 0; expected at least 1"),
        (["--push_to_hub"], "--push_to_hub: got no --hub_model_id"),
        (["--num_virtual_tokens", "3"], "--num_virtual_tokens: got an unknown flag"),
        (["--class_names", "zero,one"], "got label 'equivalent'; expected one of zero, one"),
        (["--max_length", "12"], "tokens; expected at most 12"),
    ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(
    flags: list[str],
    said: str,
    tiny_llama: str,
    pair_files: dict[str, str],
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    message = fails(main, *run_flags(tiny_llama, pair_files, tmp_path), *flags)
    assert said in message
    assert list(tmp_path.iterdir()) == []


def test_a_template_for_other_labels_is_refused(
    tiny_llama: str, tmp_path: Path, fails: Callable[..., str]
) -> None:
    header = ("sentence1", "sentence2", "label")
    path = write_csv(tmp_path / "v.csv", [("a", "b", "x"), ("c", "d", "y")], header)
    flags = run_flags(tiny_llama, {"validation": str(path)}, tmp_path)
    said = fails(main, *flags)
    assert "'paraphrase' answers equivalent, not_equivalent, but the data's labels are x, y" in said
