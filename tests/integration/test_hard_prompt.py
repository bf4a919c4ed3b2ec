import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROWS, write_csv
from tokenizers.processors import TemplateProcessing

from peft_mrpc import hard_prompt
from peft_mrpc.api import load_classifier
from peft_mrpc.config import DataConfig
from peft_mrpc.data.examples import Example
from peft_mrpc.data.loading import load_data
from peft_mrpc.errors import UserError
from peft_mrpc.hard_prompt import main
from peft_mrpc.models.hub import ModelSource, resolve_model
from peft_mrpc.models.loading import load_causal_lm, load_tokenizer
from peft_mrpc.prompting.demonstrations import NearestDemonstrations, choose_demonstrations
from peft_mrpc.prompting.local_model import LocalEngine, PromptClassifier
from peft_mrpc.prompting.loglikelihood import Continuation, ContinuationScorer
from peft_mrpc.prompting.prompt_encoder import PromptEncoder, _num_same, _split, channel_scores
from peft_mrpc.prompting.score_cache import FileScoreCache
from peft_mrpc.prompting.template_files import load_template
from peft_mrpc.prompting.templates import Demonstration, Template
from peft_mrpc.runs.publishing import collect_files
from peft_mrpc.runs.run import load_run

LABELS = ["not_equivalent", "equivalent"]


@pytest.fixture(scope="module")
def smollm2() -> ModelSource:
    return resolve_model("builtin:smollm2")


def encode(
    model: ModelSource, template: Template, pairs: Sequence[Example], shown: Any = None
) -> list[list[Continuation]]:
    encoder = PromptEncoder(load_tokenizer(model), template, LABELS, 2048)
    return encoder.encode(pairs, shown or [[] for _ in pairs])


def test_a_prompt_has_one_bos_and_ends_where_the_answer_begins(smollm2: ModelSource) -> None:
    tokenizer = load_tokenizer(smollm2)
    model = load_causal_lm(smollm2, "none")
    template = load_template("paraphrase")
    classifier = PromptClassifier(LocalEngine(model, tokenizer, 512), [template], LABELS)
    pairs = load_data(DataConfig(dataset="builtin:pairs")).splits["test"][:5]
    rows = encode(smollm2, template, pairs)
    text = tokenizer.decode(rows[0][0].context)
    assert text.count("<|im_start|>system") == 1
    assert text.endswith("<|im_start|>assistant\n")
    assert [tokenizer.decode(one.tokens) for one in rows[0]] == ["No", "Yes"]
    # The scores are the model's own next-token probabilities, row by row and unpadded.
    scores = classifier.predict_proba(pairs, batch_size=5)
    for row, continuations in enumerate(rows):
        with torch.inference_mode():
            logits = model(torch.tensor([continuations[0].context])).logits[0, -1].double()
        plain = logits[[one.tokens[0] for one in continuations]].softmax(-1).numpy()
        assert np.abs(scores[row] - plain).max() < 1e-5
    mass = classifier.label_mass["paraphrase"]
    assert mass is not None and 0 < mass <= 1
    with pytest.raises(
        UserError, match="row 1, paraphrase: its prompt has .* tokens; expected at most 20"
    ):
        PromptClassifier(LocalEngine(model, tokenizer, 20), [template], LABELS).predict_proba(
            pairs, 5
        )


def test_demonstrations_stand_before_the_question(smollm2: ModelSource) -> None:
    tokenizer = load_tokenizer(smollm2)
    shown = [[Demonstration("A b.", "B a.", "equivalent"), Demonstration("C.", "D.", LABELS[0])]]
    pairs = [Example(0, "One.", "Two.")]
    rows = encode(smollm2, load_template("paraphrase_harness"), pairs, shown)
    assert tokenizer.decode(rows[0][0].context) == (
        "Sentence 1: A b.\nSentence 2: B a.\nQuestion: Do both sentences mean the same thing?\n"
        "Answer: yes\n\n"
        "Sentence 1: C.\nSentence 2: D.\nQuestion: Do both sentences mean the same thing?\n"
        "Answer: no\n\n"
        "Sentence 1: One.\nSentence 2: Two.\nQuestion: Do both sentences mean the same thing?\n"
        "Answer:"
    )
    assert [tokenizer.decode(one.tokens) for one in rows[0]] == [" no", " yes"]
    chat = tokenizer.decode(
        encode(smollm2, load_template("paraphrase"), pairs, shown)[0][0].context
    )
    assert (
        "Answer with one word, Yes or No.<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>" in chat
    )
    assert chat.count("<|im_start|>assistant\n") == 3 and chat.endswith("assistant\n")


def test_the_channel_reads_sentence_2_after_sentence_1_in_both_orders(smollm2: ModelSource) -> None:
    tokenizer = load_tokenizer(smollm2)
    rows = encode(smollm2, load_template("channel_that_is"), [Example(0, "One is.", "Two are.")])
    said = [tuple(map(tokenizer.decode, (one.context, one.tokens))) for one in rows[0]]
    start = tokenizer.bos_token
    assert said == [
        (start, "Two are."),
        ("One is. That is to say,", " Two are."),
        (start, "One is."),
        ("Two are. That is to say,", " One is."),
    ]
    # Of -10 and -5 the shares of their mean are -4/3 and -2/3; of -9 and -9, -1 and -1: this order
    # says less for `equivalent`.
    encoder = PromptEncoder(tokenizer, load_template("channel_that_is"), LABELS, 2048)
    scores = encoder.scores(np.array([[-10.0, -5.0, -9.0, -9.0]]), rows).labels
    assert np.allclose(scores, [[-1, -1]])


def test_a_fit_reads_the_channel_alike_whichever_sentence_stands_first() -> None:
    # Two orders, under each label: -10 and -5 over 5 tokens, -9 and -9 over 3.
    said, lengths = np.array([[[-10.0, -5.0], [-9.0, -9.0]]]), np.array([[[5, 5], [3, 3]]])
    found = channel_scores(said, lengths)
    assert np.allclose(found.labels, [[-1, -1]])
    # The smaller first, of each label: shares, log-likelihoods, and these per token.
    assert np.allclose(
        found.evidence[:, 0],
        [[-4 / 3, -1], [-1, -2 / 3], [-10, -9], [-9, -5], [-3, -3], [-2, -1]],
    )
    swapped = channel_scores(said[:, ::-1], lengths[:, ::-1])
    assert np.array_equal(swapped.labels, found.labels)
    assert np.array_equal(swapped.evidence, found.evidence)


def test_a_label_is_as_likely_as_all_of_its_words(smollm2: ModelSource) -> None:
    template = load_template("paraphrase_true")
    rows = encode(smollm2, template, [Example(0, "One.", "Two.")])
    assert len(rows[0]) == 4
    encoder = PromptEncoder(load_tokenizer(smollm2), template, LABELS, 2048)
    scores = encoder.scores(np.log([[0.1, 0.2, 0.3, 0.1]]), rows).labels
    assert np.allclose(np.exp(scores), [[0.3, 0.4]])


def test_words_of_several_tokens_add_up_or_are_averaged(smollm2: ModelSource) -> None:
    words = {"not_equivalent": ("No",), "equivalent": ("The same thing", "Yes")}
    found = {}
    for is_normalized in (False, True):
        template = replace(
            load_template("paraphrase"), label_words=words, length_normalized=is_normalized
        )
        rows = encode(smollm2, template, [Example(0, "One.", "Two.")])
        lengths = [len(one.tokens) for one in rows[0]]
        encoder = PromptEncoder(load_tokenizer(smollm2), template, LABELS, 2048)
        found[is_normalized] = encoder.scores(np.array([[-1.0, -6.0, -3.0]]), rows).labels
    assert lengths == [1, 3, 1]
    # Sums: e^-6 + e^-3. Means: e^(-6 / 3) + e^-3.
    assert np.allclose(found[False], [[-1, np.log(np.exp(-6) + np.exp(-3))]])
    assert np.allclose(found[True], [[-1, np.log(np.exp(-2) + np.exp(-3))]])


def test_a_word_that_changes_the_token_before_it_is_scored_with_that_token() -> None:
    assert _num_same((1, 2, 3), (1, 2, 3, 9)) == 3 and _num_same((1, 2, 3), (1, 2, 8)) == 2
    assert _split((1, 2, 3), (1, 2, 3, 9), (1, 2, 3), 3) == Continuation((1, 2, 3), (9,))
    assert _split((1, 2, 3), (1, 2, 8), (7, 2, 3), 2) == Continuation((7, 2), (8,))
    # Beside a word that does so, one that does not is scored with that token as well.
    assert _split((1, 2, 3), (1, 2, 3, 9), (7, 2, 3), 2) == Continuation((7, 2), (3, 9))


def test_nf4_packs_the_weights_and_answers_near_the_full_ones(smollm2: ModelSource) -> None:
    tokenizer = load_tokenizer(smollm2)
    pairs = load_data(DataConfig(dataset="builtin:pairs")).splits["test"][:4]
    full, packed = load_causal_lm(smollm2, "none"), load_causal_lm(smollm2, "nf4")
    assert packed.get_memory_footprint() < 0.5 * full.get_memory_footprint()
    template = load_template("paraphrase")
    first, second = (
        PromptClassifier(LocalEngine(model, tokenizer, 512), [template], LABELS).predict_proba(
            pairs, 4
        )
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
    assert 0 < run.record["label_mass"]["validation"]["paraphrase"] < 1
    assert not (tmp_path / ".run.scores").exists()
    info = json.loads((run.artifact / "peft_mrpc.json").read_text())
    assert info["quantization"] == "none" and info["templates"][0]["name"] == "paraphrase"
    # What was saved asks the same question and gets the same answer.
    pairs = load_data(DataConfig(validation_file=pair_files["validation"])).splits["validation"]
    again = load_classifier(str(run.path)).predict_proba(pairs, 4)
    assert np.abs(again - rows.probabilities).max() < 1e-6


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--template", "paraphras"], "Did you mean 'paraphrase'?"),
        (["--template", "gone.yaml"], "--template: got 'gone.yaml'; cannot be read"),
        (["--template", ""], "--template: got an empty name"),
        (["--template", "paraphrase,"], "--template: got an empty name"),
        (["--quantization", "nf5"], "--quantization: got 'nf5'"),
        (["--template", "paraphrase,paraphrase"], "--template: got 'paraphrase' twice"),
        (["--calibration", "bach"], "--calibration: got 'bach'; expected one of affine, batch"),
        (["--calibration", "affine"], "--calibration affine: needs training pairs; give --train_f"),
        (["--num_demonstrations", "2"], "--num_demonstrations 2: needs training pairs"),
        (["--num_demonstrations", "-1"], "--num_demonstrations: got -1; expected at least 0."),
        (["--label_prior", "train"], "--label_prior train: needs training pairs"),
        (["--combine", "best"], "--combine: got best of one template"),
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


def test_what_the_tokens_do_not_allow_is_said_before_the_model_is_loaded(
    tiny_llama: str,
    pair_files: dict[str, str],
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "peft_mrpc.hard_prompt.load_causal_lm", lambda *_: pytest.fail("the model was loaded")
    )
    long, same = tmp_path / "long.yaml", tmp_path / "same.yaml"
    text = "text: '{sentence1} {sentence2}'\n"
    words = "label_words: {equivalent: Yes, not_equivalent: No}\n"
    long.write_text(f"{text}system: {'long ' * 400}\n{words}")
    same.write_text(f"{text}label_words: {{equivalent: yes, not_equivalent: yes yes}}\n")
    (tmp_path / "out").mkdir()
    flags = run_flags(tiny_llama, pair_files, tmp_path / "out")
    said = fails(main, *flags, "--template", f"{long},{same}")
    assert "validation, row 1, long: its prompt has" in said
    assert "'same': got the words" in said and "is or begins the other" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_dry_run_shows_what_the_model_would_read_and_loads_no_weights(
    tiny_llama: str,
    pair_files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "peft_mrpc.hard_prompt.load_causal_lm", lambda *_: pytest.fail("the model was loaded")
    )
    direct, channel = tmp_path / "direct.yaml", tmp_path / "channel.yaml"
    words = "label_words: {equivalent: [Yes, 'yes'], not_equivalent: 'No'}\n"
    direct.write_text("text: '{sentence1} ? {sentence2}'\nanswer_prefix: ' :'\n" + words)
    channel.write_text(
        "text: '{sentence1} .'\ndirection: channel\nboth_orders: true\n"
        "label_words: {equivalent: 'is it', not_equivalent: []}\n"
    )
    (tmp_path / "out").mkdir()
    flags = run_flags(tiny_llama, pair_files, tmp_path / "out")
    flags += ["--template", f"{direct},{channel}", "--calibration", "batch"]
    flags += ["--max_length", "40", "--dry_run"]
    main(flags)
    said = capsys.readouterr().out
    first, second, _ = ROWS[0]
    assert f"    <s> {first} ? {second} :\n" in said
    assert "  then 'No' (not_equivalent) or 'Yes' (equivalent) or 'yes' (equivalent)" in said
    for one, other in ((first, second), (second, first)):
        assert f"    <s> {one} . is it\n  then '{other}' (equivalent)" in said
        assert f"    <s>\n  then '{other}' (not_equivalent)" in said
    assert f"prompts: validation {len(ROWS)} pairs in 2 wordings, " in said
    assert "no Run was written" in said
    longest = int(said.split("at most ")[1].split()[0])
    assert list((tmp_path / "out").iterdir()) == []
    main([*flags[:-3], "--max_length", str(longest), "--dry_run"])
    with pytest.raises(UserError, match=f"has {longest} tokens; expected at most {longest - 1}"):
        main([*flags[:-3], "--max_length", str(longest - 1), "--dry_run"])


def test_a_template_for_other_labels_is_refused(
    tiny_llama: str, tmp_path: Path, fails: Callable[..., str]
) -> None:
    header = ("sentence1", "sentence2", "label")
    path = write_csv(tmp_path / "v.csv", [("a", "b", "x"), ("c", "d", "y")], header)
    flags = run_flags(tiny_llama, {"validation": str(path)}, tmp_path)
    said = fails(main, *flags)
    assert "'paraphrase' answers equivalent, not_equivalent, but the data's labels are x, y" in said


# None of these is scored.
OTHERS = [(f"{first} is true", f"it is {second}", label) for first, second, label in ROWS]


@pytest.fixture(scope="module")
def other_train(tmp_path_factory: pytest.TempPathFactory) -> str:
    header = ("sentence1", "sentence2", "label")
    return str(write_csv(tmp_path_factory.mktemp("train") / "train.csv", OTHERS * 2, header))


def with_train(flags: list[str], train: str) -> list[str]:
    return [*flags, "--train_file", train, "--max_length", "2048"]


def test_dry_run_counts_what_is_fitted_and_shows_demonstrations(
    tiny_llama: str,
    pair_files: dict[str, str],
    other_train: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = with_train(run_flags(tiny_llama, pair_files, tmp_path), other_train)
    flags += ["--calibration", "affine", "--num_calibration_pairs", "4", "--dry_run"]
    main([*flags, "--num_demonstrations", "1", "--demonstrations", "first"])
    said = capsys.readouterr().out
    assert "prompts: train 4 pairs, " in said
    assert f"prompts: validation {len(ROWS)} pairs, " in said
    (first, second, _), (own, _, _) = OTHERS[0], ROWS[0]
    assert said.index(first) < said.index(second) < said.rindex(f"{own} ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--template", "channel_that_is", "--num_demonstrations", "2"],
            "--num_demonstrations: got 2, but channel_that_is reads the noisy channel",
        ),
        (
            ["--template", "channel_that_is", "--calibration", "contextual"],
            "--calibration: got contextual, but channel_that_is reads the noisy channel",
        ),
        (
            ["--calibration", "affine", "--label_prior", "train"],
            "--label_prior: got train, but the affine fit knows the labels' shares",
        ),
        (
            ["--calibration", "affine", "--split", "train"],
            "--split: got train, which --calibration affine draws from",
        ),
        (["--num_demonstrations", "999"], "--num_demonstrations: got 999, but train has"),
        (
            ["--num_demonstrations", "999", "--demonstrations", "first"],
            f"--num_demonstrations: got 999, but train has {2 * len(OTHERS)} pairs; lower it.",
        ),
        (
            ["--num_demonstrations", "2", "--calibration", "affine"],
            f"train has 0 pairs that are not_equivalent beside the {2 * len(OTHERS)} fitted on "
            "(--num_calibration_pairs)",
        ),
        (
            ["--template", "channel_that_is", "--calibration", "batch", "--scoring", "generate"],
            "--scoring: got generate, but channel_that_is reads the noisy channel",
        ),
        (["--template", "channel_that_is"], "channel_that_is reads the noisy channel, whose raw"),
        (
            ["--calibration", "contextual", "--demonstrations", "nearest"]
            + ["--num_demonstrations", "2"],
            "--calibration: got contextual, but --demonstrations nearest gives each pair a context",
        ),
        (["--demonstrations", "first"], "--demonstrations: got first and none to show"),
        (["--num_calibration_pairs", "9"], "--num_calibration_pairs: got 9, which nothing is"),
        (
            ["--calibration", "batch", "--max_eval_samples", "3"],
            "split validation has 3 pairs; a calibration over the pairs themselves needs",
        ),
        (["--split", "validation,validation"], "--split: got 'validation' twice"),
        (
            ["--num_demonstrations", "99", "--demonstrations", "nearest"],
            "--num_demonstrations: got 99, but train has",
        ),
    ],
)
def test_flags_that_do_not_stand_together_are_refused(
    flags: list[str],
    said: str,
    tiny_llama: str,
    pair_files: dict[str, str],
    other_train: str,
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All of this is said before a model is loaded.
    monkeypatch.setattr(hard_prompt, "load_causal_lm", None)
    given = with_train(run_flags(tiny_llama, pair_files, tmp_path), other_train)
    assert said in fails(main, *given, *flags)
    assert list(tmp_path.iterdir()) == []


def test_data_and_templates_are_checked_before_the_model_is_fetched(
    tiny_llama: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hard_prompt, "find_source", None)  # it may convert for a minute
    rows = [(*row[:2], "yes" if row[2] == "equivalent" else "no") for row in ROWS]
    path = write_csv(tmp_path / "words.csv", rows, ("sentence1", "sentence2", "label"))
    said = fails(main, *run_flags(tiny_llama, {"validation": str(path)}, tmp_path))
    assert "the data's labels are no, yes; expected a template whose label_words have" in said
    assert "--class_names" not in said  # which names numbers


@pytest.mark.parametrize(
    "flags",
    [
        ["--num_demonstrations", "3", "--calibration", "affine", "--num_calibration_pairs", "8"],
        ["--num_demonstrations", "2", "--demonstrations", "nearest", "--label_prior", "train"],
        ["--num_demonstrations", "2", "--demonstrations", "first", "--calibration", "contextual"],
        ["--template", "paraphrase_harness,channel_that_is", "--calibration", "batch"],
        [
            *("--template", "paraphrase_harness,channel_that_is,channel_another_story"),
            *("--calibration", "affine", "--num_calibration_pairs", "8"),
        ],
        [
            *("--template", "paraphrase_harness,paraphrase", "--combine", "best"),
            *("--num_calibration_pairs", "8"),
        ],
    ],
    ids=["affine", "nearest", "contextual", "ensemble", "evidence", "best"],
)
def test_what_was_saved_answers_as_it_did(
    flags: list[str],
    tiny_llama: str,
    pair_files: dict[str, str],
    other_train: str,
    tmp_path: Path,
) -> None:
    main([*with_train(run_flags(tiny_llama, pair_files, tmp_path), other_train), *flags])
    run = load_run(tmp_path / "run")
    rows = run.predictions("validation")
    data = load_data(DataConfig(validation_file=pair_files["validation"]))
    again = load_classifier(str(run.path)).predict_proba(data.splits["validation"], 4)
    assert np.abs(again - rows.probabilities).max() < 1e-6
    assert bool(run.record["uses_labels"]["for"]) == ("batch" not in flags)
    if "best" in flags:
        reached = {
            name: sum(about["train"]["f1"].values())
            for name, about in run.record["templates"].items()
        }
        assert run.record["chosen_template"] == max(reached, key=lambda name: reached[name])
        assert [t["name"] for t in run.record["config"]["templates"]] == [
            run.record["chosen_template"]
        ]


def test_whoever_publishes_is_told_that_training_pairs_go_along(
    tiny_llama: str,
    pair_files: dict[str, str],
    other_train: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flags = with_train(run_flags(tiny_llama, pair_files, tmp_path), other_train)
    main([*flags, "--num_demonstrations", "2", "--demonstrations", "nearest"])
    run = load_run(tmp_path / "run")
    count = len((run.artifact / "pool.jsonl").read_text().splitlines())
    assert count == run.num_pool_pairs > 2
    collect_files(run, "owner/name", tmp_path / "published")
    assert f"push: {count} labelled training pairs go along" in caplog.text
    card = (tmp_path / "published" / "README.md").read_text()
    assert f"This repository holds the {count} training pairs" in card


def test_a_command_that_was_cut_off_goes_on_and_gives_the_same_file(
    tiny_llama: str,
    pair_files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = run_flags(tiny_llama, pair_files, tmp_path)
    flags[flags.index("--batch_size") + 1] = "2"
    main([*flags[:-1], str(tmp_path / "whole")])
    forward = ContinuationScorer._score_batch
    calls = []

    def cut_off(self: ContinuationScorer, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, *args)

    monkeypatch.setattr(ContinuationScorer, "_score_batch", cut_off)
    with pytest.raises(KeyboardInterrupt):
        main(flags)
    scratch = tmp_path / ".run.scores"
    with (scratch / "0.jsonl").open("a") as file:
        file.write('{"key": "ab')  # a line that was being written
    main(flags)
    assert len(calls) == 3 + (len(ROWS) + 1) // 2 - 2  # two batches were found again
    predictions = [
        (tmp_path / name / "predictions" / "validation.jsonl").read_bytes()
        for name in ("whole", "run")
    ]
    assert predictions[0] == predictions[1] and not scratch.exists()


def test_demonstrations_are_never_of_the_pair_asked_about() -> None:
    pool = [
        Demonstration("The cat sat on the mat.", "A cat was sitting on a mat.", "equivalent"),
        Demonstration("The cat sat on a chair.", "The cat stood on a chair.", "not_equivalent"),
        Demonstration("Stocks fell on Monday.", "Shares lost on Monday.", "equivalent"),
        Demonstration("Stocks fell on Friday.", "Stocks rose on Friday.", "not_equivalent"),
    ]
    show = NearestDemonstrations(pool, LABELS, 2)
    cats, same = show(
        [
            Example(0, "A cat sat on the mat.", "A cat lay on the mat."),
            Example(
                1, "A cat was sitting on a mat.", "The cat sat on the mat."
            ),  # in the other order
        ]
    )
    assert {one.label for one in cats} == set(LABELS) and set(cats) == set(pool[:2])
    assert pool[0] not in same and len(same) == 2


def test_demonstrations_are_drawn_by_the_seed_as_many_of_each_label() -> None:
    pool = [Example(n, f"a {n}", f"b {n}", int(n % 3 == 0)) for n in range(30)]
    chosen = choose_demonstrations(pool, LABELS, 6, "balanced", 1)
    assert sorted(one.label for one in chosen) == ["equivalent"] * 3 + ["not_equivalent"] * 3
    assert chosen == choose_demonstrations(pool, LABELS, 6, "balanced", 1)
    assert chosen != choose_demonstrations(pool, LABELS, 6, "balanced", 2)
    first = choose_demonstrations(pool, LABELS, 3, "first", 1)
    assert [one.sentence1 for one in first] == ["a 0", "a 1", "a 2"]
    assert len(choose_demonstrations(pool, LABELS, 7, "balanced", 1)) == 7


def test_a_checkpoint_that_is_quantized_already_is_loaded_as_it_is(
    smollm2: ModelSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer(smollm2)
    pairs = load_data(DataConfig(dataset="builtin:pairs")).splits["test"][:4]
    model = load_causal_lm(smollm2, "fp4")
    model.save_pretrained(tmp_path / "packed")
    tokenizer.save_pretrained(tmp_path / "packed")
    with caplog.at_level("INFO", "peft_mrpc"):
        again = load_causal_lm(resolve_model(str(tmp_path / "packed")), "nf4")
    assert "is quantized already (bitsandbytes) and loaded as it is" in caplog.text
    assert again.get_memory_footprint() == model.get_memory_footprint()
    first, second = (
        PromptClassifier(
            LocalEngine(one, tokenizer, 512), [load_template("paraphrase")], LABELS
        ).predict_proba(pairs, 4)
        for one in (model, again)
    )
    assert np.abs(first - second).max() < 1e-5


def test_a_model_that_is_spread_answers_as_one_that_is_not(
    tiny_llama: str, pair_files: dict[str, str], tmp_path: Path
) -> None:
    main(run_flags(tiny_llama, pair_files, tmp_path))
    main([*run_flags(tiny_llama, pair_files, tmp_path / "b"), "--device_map", "auto"])
    one, two = (load_run(folder / "run") for folder in (tmp_path, tmp_path / "b"))
    assert np.array_equal(
        one.predictions("validation").probabilities, two.predictions("validation").probabilities
    )


def test_a_pair_that_is_scored_is_neither_shown_nor_fitted_on(
    tiny_llama: str,
    pair_files: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fails: Callable[..., str],
) -> None:
    flags = run_flags(tiny_llama, pair_files, tmp_path)
    header = ("sentence1", "sentence2", "label")
    swapped = [(second, first, label) for first, second, label in ROWS]
    mixed = write_csv(tmp_path / "mixed.csv", swapped + OTHERS, header)
    main([*with_train(flags, str(mixed)), "--num_demonstrations", "4"])
    assert f"{len(ROWS)} training pairs are among those that are scored" in caplog.text
    info = json.loads((load_run(tmp_path / "run").artifact / "peft_mrpc.json").read_text())
    shown = {one["sentence1"] for one in info["demonstrations"]["shown"]}
    assert len(shown) == 4 and shown <= {first for first, _, _ in OTHERS}
    same = with_train([*flags, "--overwrite"], pair_files["train"])
    said = fails(main, *same, "--num_demonstrations", "4")
    assert "every training pair is among those that are scored; expected others." in said


def test_new_pairs_are_answered_as_the_first_split_was(
    tiny_llama: str, pair_files: dict[str, str], other_train: str, tmp_path: Path
) -> None:
    flags = run_flags(tiny_llama, pair_files, tmp_path)
    main([*flags, "--test_file", other_train, "--calibration", "batch"])
    run = load_run(tmp_path / "run")
    info = json.loads((run.artifact / "peft_mrpc.json").read_text())
    assert info["calibration"]["split"] == "validation"
    data = load_data(DataConfig(validation_file=pair_files["validation"], test_file=other_train))
    predictor = load_classifier(str(run.path))
    drifts = {
        split: np.abs(
            predictor.predict_proba(data.splits[split], 4) - run.predictions(split).probabilities
        ).max()
        for split in ("validation", "test")
    }
    assert drifts["validation"] < 1e-7 < drifts["test"]


def test_scores_of_other_labels_or_weights_are_not_found_again(
    tiny_llama: str, pair_files: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "peft_mrpc")
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    flags = run_flags(str(model), pair_files, tmp_path)
    kept = tmp_path / "kept"

    def run(*more: str) -> bool:
        """Score, and say whether what was kept was found."""
        caplog.clear()
        if kept.is_dir():
            shutil.copytree(kept, tmp_path / ".run.scores", dirs_exist_ok=True)
        main([*flags, "--overwrite", *more])
        return "were scored before" in caplog.text

    forward = FileScoreCache.add

    def keep(self: FileScoreCache, *args: Any) -> None:
        self.path = kept / "0.jsonl"
        forward(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileScoreCache, "add", keep)
        assert not run("--class_names", "not_equivalent,equivalent")
    assert run("--class_names", "not_equivalent,equivalent")
    assert run("--class_names", "not_equivalent,equivalent", "--batch_size", "3")
    assert not run("--class_names", "equivalent,not_equivalent")
    weights = model / "model.safetensors"
    os.utime(weights, (1, 1))
    assert not run("--class_names", "not_equivalent,equivalent")


def test_splits_of_one_label_and_some_of_train_are_reported(
    tiny_llama: str, other_train: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = ("sentence1", "sentence2", "label")
    path = write_csv(tmp_path / "one.csv", [row for row in ROWS if row[2] == "equivalent"], header)
    flags = run_flags(tiny_llama, {"validation": str(path)}, tmp_path)
    names = ["--class_names", "not_equivalent,equivalent"]
    main([*flags, *names, "--template", "paraphrase,paraphrase_harness"])
    assert "ROC-AUC -" in capsys.readouterr().out
    flags = with_train([*flags, "--overwrite"], other_train)
    main([*flags, "--split", "train", "--max_train_samples", "3"])
    assert list(load_run(tmp_path / "run").predictions("train").idx) == [0, 1, 2]


CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>"
    "{% else %}{{ raise_exception('System role not supported') }}{% endif %}{% endfor %}"
)


def test_an_answer_stands_where_the_chat_template_puts_it(
    smollm2: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(smollm2)
    tokenizer.chat_template = CHAT
    shown = [[Demonstration("A.", "B.", "equivalent")]]
    for name in ("paraphrase", "paraphrase_expert"):  # the second with a system text
        encoder = PromptEncoder(tokenizer, load_template(name), LABELS, 2048)
        rows = encoder.encode([Example(0, "One.", "Two.")], shown)
        assert [tokenizer.decode(one.tokens) for one in rows[0]] == [" No", " Yes"]
        text = tokenizer.decode(rows[0][0].context)
        assert "[/INST] Yes</s>" in text and text.endswith("[/INST]")
        assert ("expert annotator" in text) == (name == "paraphrase_expert")
    tokenizer.chat_template = "{{ raise_exception('no chats today') }}"
    with pytest.raises(UserError, match="this model's chat template refuses it: no chats today"):
        encoder.encode([Example(0, "One.", "Two.")], [[]])
    tokenizer.chat_template = "{{ messages[0].content }}"  # leaves the BOS to the tokenizer
    with monkeypatch.context() as patch:
        begun = TemplateProcessing(
            "<|im_start|> $A", special_tokens=[("<|im_start|>", int(tokenizer.bos_token_id))]
        )
        patch.setattr(tokenizer.backend_tokenizer, "post_processor", begun)
        encoder = PromptEncoder(tokenizer, load_template("paraphrase"), LABELS, 2048)
        (row,) = encoder.encode([Example(0, "One.", "Two.")], [[]])
        assert [one.context.count(tokenizer.bos_token_id) for one in row] == [1, 1]
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}{{ messages[0].content }}"
    with pytest.raises(UserError, match="the prompt begins with two BOS tokens"):
        encoder.encode([Example(0, "One.", "Two.")], [[]])


@pytest.mark.parametrize("words", [("Yes", "Yes indeed"), ("Yes", "Yes")])
def test_words_of_which_one_begins_the_other_are_refused(
    words: tuple[str, str], smollm2: ModelSource
) -> None:
    template = replace(
        load_template("paraphrase"),
        label_words={"equivalent": words[:1], "not_equivalent": words[1:]},
    )
    with pytest.raises(UserError, match="of which one is or begins the other"):
        encode(smollm2, template, [Example(0, "One.", "Two.")])


def test_an_odd_number_of_nearest_goes_on_with_the_nearest() -> None:
    pool = [
        Demonstration("A cat sat on the mat.", "A cat was sitting on a mat.", "equivalent"),
        Demonstration("The markets fell.", "Shares rose in London.", "not_equivalent"),
    ]
    (one,) = NearestDemonstrations(pool, LABELS, 1)(
        [Example(0, "The cat sat.", "A cat sat there.")]
    )
    assert one == pool[:1]
