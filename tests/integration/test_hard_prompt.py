"""Hard prompts through the API, with a tiny LLaMA of random weights."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROWS, write_csv

from peft_mrpc import DataConfig, PromptConfig, UserError, evaluate_prompt, load_classifier
from peft_mrpc.data.loading import load_data
from peft_mrpc.hard_prompt import main
from peft_mrpc.models.loading import load_causal_lm, load_tokenizer
from peft_mrpc.models.sources import ModelSource, resolve_model
from peft_mrpc.prompting.classifier import PromptClassifier
from peft_mrpc.prompting.loglikelihood import LocalEngine
from peft_mrpc.prompting.prompt_encoder import PromptEncoder
from peft_mrpc.prompting.run import preview_prompts
from peft_mrpc.prompting.score_cache import FileScoreCache
from peft_mrpc.prompting.templates import load_template
from peft_mrpc.runs.run import Run, load_run

LABELS = ["not_equivalent", "equivalent"]
HEADER = ("sentence1", "sentence2", "label")
# Training examples that no split to score contains.
TRAIN_ROWS = [(f"{first} is true", f"it is {second}", label) for first, second, label in ROWS]


@pytest.fixture(scope="module")
def smollm2() -> ModelSource:
    return resolve_model("builtin:smollm2")


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_csv(tmp_path_factory.mktemp("train") / "train.csv", TRAIN_ROWS * 2, HEADER))


@pytest.fixture
def config(tiny_llama: str, tmp_path: Path) -> PromptConfig:
    return PromptConfig(
        model=tiny_llama, quantization="none", batch_size=4, output_dir=str(tmp_path / "run")
    )


@pytest.fixture
def data(pair_files: dict[str, str]) -> DataConfig:
    return DataConfig(validation_file=pair_files["validation"])


@pytest.fixture
def data_with_train(pair_files: dict[str, str], train_file: str) -> DataConfig:
    return DataConfig(validation_file=pair_files["validation"], train_file=train_file)


def evaluate(config: PromptConfig, data: Any, **changes: Any) -> Run:
    run = evaluate_prompt(replace(config, **changes), data)
    assert run is not None
    return run


def build_classifier(source: ModelSource, model: Any, template: str) -> PromptClassifier:
    encoder = PromptEncoder(load_tokenizer(source), LABELS, 512)
    return PromptClassifier(encoder, LocalEngine(model), [load_template(template)], LABELS)


def test_scores_are_the_next_token_probabilities_of_the_model(smollm2: ModelSource) -> None:
    model = load_causal_lm(smollm2, "none")
    classifier = build_classifier(smollm2, model, "paraphrase")
    examples = load_data(DataConfig(dataset="builtin:pairs")).splits["test"][:5]
    probabilities = classifier.predict_proba(examples, batch_size=5)
    batch = classifier.encoder.encode(classifier.templates[0], examples, [])
    for row, options in enumerate(batch.rows):
        with torch.inference_mode():
            logits = model(torch.tensor([options[0].context.tolist()])).logits[0, -1].double()
        expected = logits[[option.tokens[0] for option in options]].softmax(-1).numpy()
        assert np.abs(probabilities[row] - expected).max() < 1e-5
    pairs = [(example.sentence1, example.sentence2) for example in examples]
    names = [LABELS[index] for index in (probabilities[:, 1] > 0.5).astype(int)]
    assert classifier.predict(pairs) == names


def test_quantized_weights_are_smaller_and_score_similarly(
    smollm2: ModelSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    examples = load_data(DataConfig(dataset="builtin:pairs")).splits["test"][:4]
    full, packed = load_causal_lm(smollm2, "none"), load_causal_lm(smollm2, "fp4")
    assert packed.get_memory_footprint() < 0.5 * full.get_memory_footprint()
    packed.save_pretrained(tmp_path / "packed")
    load_tokenizer(smollm2).save_pretrained(tmp_path / "packed")
    with caplog.at_level("INFO", "peft_mrpc"):
        again = load_causal_lm(resolve_model(str(tmp_path / "packed")), "nf4")
    assert "already quantized (bitsandbytes)" in caplog.text
    first, second, third = (
        build_classifier(smollm2, model, "paraphrase").predict_proba(examples)
        for model in (full, packed, again)
    )
    assert 0 < np.abs(first - second).max() < 0.5 and np.abs(second - third).max() < 1e-5


def test_a_model_without_a_chat_template_gets_plain_text(
    config: PromptConfig, data: DataConfig, tmp_path: Path
) -> None:
    run = evaluate(config, data)
    rows = run.predictions("validation")
    assert list(rows.idx) == list(range(len(ROWS)))
    assert np.allclose(rows.probabilities.sum(axis=1), 1)
    assert 0 < run.record["label_mass"]["validation"]["paraphrase"] < 1
    assert not (tmp_path / ".run.scores").exists()
    info = json.loads((run.artifact / "peft_mrpc.json").read_text())
    assert info["quantization"] == "none" and info["templates"][0]["name"] == "paraphrase"


def test_examples_in_memory_are_scored_like_those_of_a_file(
    config: PromptConfig, data: DataConfig, tmp_path: Path
) -> None:
    first = evaluate(config, data)
    second = evaluate(config, {"validation": ROWS}, output_dir=str(tmp_path / "memory"))
    assert second.record["data"]["name"] == second.record["config"]["dataset"] == "in_memory"
    texts = [(row[0], row[1]) for row in ROWS]
    probabilities = {
        run.path.name: dict(
            zip(texts, run.predictions("validation").probabilities.tolist(), strict=True)
        )
        for run in (first, second)
    }
    assert probabilities["memory"] == probabilities["run"]


def test_the_command_prints_the_metrics(
    config: PromptConfig, pair_files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", config.model, "--quantization", "none", "--template"]
    options += ["paraphrase,paraphrase_harness", "--validation_file", pair_files["validation"]]
    main([*options, "--output_dir", str(config.output_dir)])
    output = capsys.readouterr().out
    assert "accuracy" in output
    assert f"Run: {config.output_dir}" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "paraphras"}, "Did you mean 'paraphrase'?"),
        ({"template": "gone.yaml"}, "template: got 'gone.yaml'; expected a readable file"),
        ({"template": ""}, "template: got an empty name"),
        ({"template": "paraphrase,paraphrase"}, "template: got 'paraphrase' twice"),
        ({"quantization": "nf5"}, "quantization: got 'nf5'"),
        ({"calibration": "bach"}, "calibration: got 'bach'; expected one of affine, batch"),
        ({"calibration": "affine"}, "calibration affine: needs training examples; set train_file"),
        ({"num_demonstrations": 2}, "num_demonstrations 2: needs training examples"),
        ({"num_demonstrations": -1}, "num_demonstrations: got -1; expected at least 0."),
        ({"label_prior": "train"}, "label_prior train: needs training examples"),
        ({"batch_size": 0}, "batch_size: got 0; expected at least 1"),
        ({"push_to_hub": True}, "push_to_hub: got no hub_model_id"),
        ({"max_length": 12}, "validation, row 1, paraphrase: its prompt has"),
        (
            {"template": "channel_that_is", "num_demonstrations": 2},
            "num_demonstrations: got 2, but channel_that_is has direction channel",
        ),
        (
            {"template": "channel_that_is", "calibration": "contextual"},
            "calibration: got contextual, but channel_that_is has direction channel",
        ),
        ({"template": "channel_that_is"}, "channel_that_is has direction channel, whose raw"),
        (
            {"calibration": "affine", "label_prior": "train"},
            "label_prior: got train, but the affine fit includes the prior",
        ),
        ({"demonstrations": "first"}, "demonstrations: got first without any"),
        ({"num_calibration_pairs": 9}, "num_calibration_pairs: got 9, but nothing is fitted"),
        ({"num_calibration_pairs": 9, "batch_size": 0}, "batch_size: got 0; expected at least 1"),
    ],
)
def test_invalid_options_write_nothing(
    options: dict[str, Any], message: str, config: PromptConfig, data: DataConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        evaluate(config, data, **options)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "data_options", "message"),
    [
        (
            {"calibration": "affine"},
            {"split": "train"},
            "split: got train, which calibration affine samples from",
        ),
        ({"num_demonstrations": 999}, {}, "num_demonstrations: got 999, but train has"),
        (
            {"num_demonstrations": 999, "demonstrations": "first"},
            {},
            f"num_demonstrations: got 999, but train has {2 * len(ROWS)} examples; use fewer.",
        ),
        (
            {"num_demonstrations": 2, "calibration": "affine"},
            {},
            "train has 0 examples that are not_equivalent besides the 18 of num_calibration_pairs",
        ),
        (
            {"calibration": "batch"},
            {"max_eval_samples": 3},
            "split validation has 3 examples; a calibration on the scored examples needs",
        ),
        ({}, {"split": "validation,validation"}, "split: got 'validation' twice"),
    ],
)
def test_options_that_the_data_do_not_allow_are_refused(
    options: dict[str, Any],
    data_options: dict[str, Any],
    message: str,
    config: PromptConfig,
    data_with_train: DataConfig,
) -> None:
    with pytest.raises(UserError) as caught:
        evaluate(config, replace(data_with_train, **data_options), max_length=2048, **options)
    assert message in str(caught.value)


def test_the_command_ends_with_one_line_per_fault(
    config: PromptConfig, pair_files: dict[str, str], fails: Callable[..., str]
) -> None:
    options = ["--model", config.model, "--validation_file", pair_files["validation"]]
    options += ["--output_dir", str(config.output_dir)]
    assert "--num_virtual_tokens: got an unknown" in fails(main, *options, "--num_virtual_tokens=3")
    message = fails(main, *options, "--batch_size", "0", "--quantization", "nf5")
    assert "--batch_size: got 0" in message and "--quantization: got 'nf5'" in message


def test_invalid_prompts_are_reported_before_the_model_is_loaded(
    config: PromptConfig, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "peft_mrpc.prompting.run.load_causal_lm", lambda *_: pytest.fail("the model was loaded")
    )
    long, same = tmp_path / "long.yaml", tmp_path / "same.yaml"
    text = "text: '{sentence1} {sentence2}'\n"
    words = "label_words: {equivalent: Yes, not_equivalent: No}\n"
    long.write_text(f"{text}system: {'long ' * 400}\n{words}")
    same.write_text(f"{text}label_words: {{equivalent: yes, not_equivalent: yes yes}}\n")
    with pytest.raises(UserError) as caught:
        evaluate(config, data, template=f"{long},{same}")
    assert "validation, row 1, long: its prompt has" in str(caught.value)
    assert "'same': label words" in str(caught.value)


def test_a_preview_shows_the_prompts_and_loads_no_weights(
    config: PromptConfig, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "peft_mrpc.prompting.run.load_causal_lm", lambda *_: pytest.fail("the model was loaded")
    )
    direct, channel = tmp_path / "direct.yaml", tmp_path / "channel.yaml"
    words = "label_words: {equivalent: [Yes, 'yes'], not_equivalent: 'No'}\n"
    direct.write_text("text: '{sentence1} ? {sentence2}'\nanswer_prefix: ' :'\n" + words)
    channel.write_text(
        "text: '{sentence1} .'\ndirection: channel\nboth_orders: true\n"
        "label_words: {equivalent: 'is it', not_equivalent: []}\n"
    )
    changed = replace(config, template=f"{direct},{channel}", calibration="batch", max_length=40)
    text = "\n".join(preview_prompts(changed, data))
    first, second, _ = ROWS[0]
    assert f"    <s> {first} ? {second} :\n" in text
    assert "  then 'No' (not_equivalent) or 'Yes' (equivalent) or 'yes' (equivalent)" in text
    for one, other in ((first, second), (second, first)):
        assert f"    <s> {one} . is it\n  then '{other}' (equivalent)" in text
        assert f"    <s>\n  then '{other}' (not_equivalent)" in text
    assert f"prompts: validation {len(ROWS)} examples x 2 templates, " in text
    longest = int(text.split("at most ")[1].split()[0])
    assert not Path(str(config.output_dir)).exists()
    preview_prompts(replace(changed, max_length=longest), data)
    with pytest.raises(UserError, match=f"has {longest} tokens; expected at most {longest - 1}"):
        preview_prompts(replace(changed, max_length=longest - 1), data)


def test_a_preview_counts_the_calibration_set_and_shows_demonstrations(
    config: PromptConfig, data_with_train: DataConfig
) -> None:
    changed = replace(config, calibration="affine", num_calibration_pairs=4, max_length=2048)
    changed = replace(changed, num_demonstrations=1, demonstrations="first")
    text = "\n".join(preview_prompts(changed, data_with_train))
    assert "prompts: train 4 examples, " in text
    assert f"prompts: validation {len(ROWS)} examples, " in text
    (first, second, _), (scored, _, _) = TRAIN_ROWS[0], ROWS[0]
    assert text.index(first) < text.index(second) < text.rindex(f"{scored} ")


def test_a_template_for_other_labels_is_refused_before_the_model_is_resolved(
    config: PromptConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft_mrpc.prompting.run.resolve_model", None)  # may convert for a minute
    path = write_csv(tmp_path / "v.csv", [("a", "b", "x"), ("c", "d", "y")], HEADER)
    with pytest.raises(UserError) as caught:
        evaluate(config, DataConfig(validation_file=str(path)))
    assert "has words for equivalent, not_equivalent, but the data's labels are x, y" in str(
        caught.value
    )
    assert "class_names" not in str(caught.value)  # which names numbers


@pytest.mark.parametrize(
    "options",
    [
        {"num_demonstrations": 3, "calibration": "affine", "num_calibration_pairs": 8},
        {"num_demonstrations": 2, "label_prior": "train"},
        {"num_demonstrations": 2, "demonstrations": "first", "calibration": "contextual"},
        {"template": "paraphrase_harness,channel_that_is", "calibration": "batch"},
        {
            "template": "paraphrase_harness,channel_that_is,channel_another_story",
            "calibration": "affine",
            "num_calibration_pairs": 8,
        },
    ],
    ids=["affine", "prior", "contextual", "ensemble", "features"],
)
def test_a_loaded_classifier_gives_the_probabilities_of_its_run(
    options: dict[str, Any], config: PromptConfig, data_with_train: DataConfig
) -> None:
    run = evaluate(config, data_with_train, max_length=2048, **options)
    rows = run.predictions("validation")
    examples = load_data(data_with_train).splits["validation"]
    classifier = load_classifier(run)
    assert classifier.predict_proba([]).shape == (0, 2) and classifier.predict([]) == []
    again = classifier.predict_proba(examples, 4)
    assert np.abs(again - rows.probabilities).max() < 1e-6
    assert bool(run.record["uses_labels"]["for"]) == (options.get("calibration") != "batch")


def test_an_interrupted_run_continues_and_writes_the_same_file(
    config: PromptConfig, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, batch_size=2)
    whole = evaluate(config, data, output_dir=str(tmp_path / "whole"))
    add, num_calls = FileScoreCache.add, 0

    def interrupt(self: FileScoreCache, *args: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            raise KeyboardInterrupt
        add(self, *args)

    monkeypatch.setattr(FileScoreCache, "add", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        evaluate(config, data)
    scratch = tmp_path / ".run.scores"
    assert caught.value.__notes__ == [
        f"The scores so far are in {scratch}: the same command continues."
    ]
    with (scratch / "0.jsonl").open("a") as file:
        file.write('{"key": "ab')  # a line that was being written
    run = evaluate(config, data)
    assert num_calls == 3 + (len(ROWS) + 1) // 2 - 2  # two batches were scored before
    first, second = (r.path / "predictions" / "validation.jsonl" for r in (whole, run))
    assert first.read_bytes() == second.read_bytes() and not scratch.exists()


def test_scores_of_other_prompts_or_weights_are_not_reused(tmp_path: Path, tiny_llama: str) -> None:
    source = resolve_model(tiny_llama)
    cache = FileScoreCache(tmp_path, 0, {"prompts": "a"})
    cache.add([0, 2], np.array([[1.0, 2.0], [3.0, 4.0]]))
    again = FileScoreCache(tmp_path, 1, {"prompts": "a"})
    assert len(again) == 2 and again.find([2]).tolist() == [[3.0, 4.0]]
    assert again.find([1, 2]) is None
    assert len(FileScoreCache(tmp_path, 0, {"prompts": "b"})) == 0
    shutil.copytree(tiny_llama, tmp_path / "model")
    source = resolve_model(str(tmp_path / "model"))
    fingerprints = []
    for second in (1, 2):
        os.utime(tmp_path / "model" / "model.safetensors", (second, second))
        fingerprints.append(LocalEngine(load_causal_lm(source, "none")).fingerprint())
    assert fingerprints[0]["files"] != fingerprints[1]["files"]


def test_a_model_over_several_devices_gives_the_same_probabilities(
    config: PromptConfig, data: DataConfig, tmp_path: Path
) -> None:
    replica = evaluate(config, data)
    spread = evaluate(config, data, device_map="auto", output_dir=str(tmp_path / "b"))
    first, second = (run.predictions("validation").probabilities for run in (replica, spread))
    assert np.array_equal(first, second)


def test_scored_examples_are_neither_demonstrations_nor_in_the_calibration_set(
    config: PromptConfig,
    data: DataConfig,
    pair_files: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    swapped = [(second, first, label) for first, second, label in ROWS]
    mixed = write_csv(tmp_path / "mixed.csv", swapped + TRAIN_ROWS, HEADER)
    config = replace(config, num_demonstrations=4, max_length=2048)
    run = evaluate(config, replace(data, train_file=str(mixed)))
    assert f"{len(ROWS)} training examples also occur in the splits to score" in caplog.text
    info = json.loads((run.artifact / "peft_mrpc.json").read_text())
    sentences = {shot["sentence1"] for shot in info["demonstrations"]["shown"]}
    assert len(sentences) == 4 and sentences <= {first for first, _, _ in TRAIN_ROWS}
    with pytest.raises(UserError, match="every training example also occurs in the splits"):
        evaluate(config, replace(data, train_file=pair_files["train"]), overwrite=True)


def test_new_examples_are_calibrated_like_the_first_split(
    config: PromptConfig, data: DataConfig, train_file: str
) -> None:
    data = replace(data, test_file=train_file)
    run = evaluate(config, data, calibration="batch")
    info = json.loads((run.artifact / "peft_mrpc.json").read_text())
    assert info["calibration"]["split"] == "validation"
    classifier, splits = load_classifier(run), load_data(data).splits
    differences = {
        split: np.abs(
            classifier.predict_proba(splits[split], 4) - run.predictions(split).probabilities
        ).max()
        for split in ("validation", "test")
    }
    assert differences["validation"] < 1e-7 < differences["test"]


def test_splits_with_one_label_and_the_training_split_are_reported(
    config: PromptConfig, train_file: str, tmp_path: Path
) -> None:
    rows = [row for row in ROWS if row[2] == "equivalent"]
    data = DataConfig(
        validation_file=str(write_csv(tmp_path / "one.csv", rows, HEADER)),
        class_names="not_equivalent,equivalent",
    )
    run = evaluate(config, data, template="paraphrase,paraphrase_harness")
    assert run.metrics["validation"]["roc_auc"] is None
    data = DataConfig(train_file=train_file, split="train", max_train_samples=3)
    assert list(evaluate(config, data, overwrite=True).predictions("train").idx) == [0, 1, 2]
    assert load_run(run.path).record["method"] == "hard_prompt"
