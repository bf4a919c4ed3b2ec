import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
from conftest import ROWS, build_tokenizer, run_command, write_csv
from safetensors.torch import load_file, save_file
from tiny_models import write_tiny_model
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from peft_mrpc import DataConfig, UserError, compare_runs, load_classifier, load_run
from peft_mrpc.predict import main
from peft_mrpc.train import main as train_main

PAIRS = [row[:2] for row in ROWS]
ADDED = ["prediction", "probability_not_equivalent", "probability_equivalent"]


def test_keeps_the_order_and_the_other_columns(trained_run: Path, tmp_path: Path) -> None:
    rows = [(f"id-{i}", a, b, 'a "note", kept') for i, (a, b, _) in enumerate(ROWS)]
    source = write_csv(tmp_path / "in.csv", rows, ("id", "sentence1", "sentence2", "note"))
    main([str(trained_run), "--input", str(source), "--output", str(tmp_path / "out.csv")])
    with (tmp_path / "out.csv").open(newline="") as file:
        labelled = list(csv.DictReader(file))
    assert [row["id"] for row in labelled] == [row[0] for row in rows]
    assert [row["note"] for row in labelled] == ['a "note", kept'] * len(rows)
    saved = (trained_run / "predictions" / "validation.jsonl").read_text().splitlines()
    for row, line in zip(labelled, map(json.loads, saved), strict=True):
        assert row["prediction"] == line["prediction"]
        assert float(row["probability_equivalent"]) == pytest.approx(
            line["probabilities"]["equivalent"], abs=1e-5
        )


def test_uses_the_columns_of_the_training(
    tiny_bert: str, tmp_path: Path, fails: Callable[..., str]
) -> None:
    train = str(write_csv(tmp_path / "train.csv", ROWS, ("one", "two", "label")))
    flags = ["--method", "linear_probe", "--model", tiny_bert, "--train_file", train]
    flags += ["--validation_file", train, "--sentence1_column", "one", "--sentence2_column", "two"]
    train_main([*flags, "--max_steps", "1", "--output_dir", str(tmp_path / "run")])
    output = tmp_path / "out.csv"
    main([str(tmp_path / "run"), "--input", train, "--output", str(output)])
    with output.open(newline="") as file:
        assert [row["one"] for row in csv.DictReader(file)] == [row[0] for row in ROWS]
    other = str(write_csv(tmp_path / "other.csv", ROWS, ("three", "two", "label")))
    assert "expected one of the usual pairs" in fails(main, str(tmp_path / "run"), "--input", other)


def test_the_api_accepts_tuples_datasets_and_frames(trained_run: Path) -> None:
    rows = [row[:2] for row in ROWS]
    frame = pandas.DataFrame(rows, columns=["sentence1", "sentence2"])
    classifier = load_classifier(load_run(trained_run))
    assert classifier.labels == ["not_equivalent", "equivalent"]
    saved = load_run(trained_run).predictions("validation")
    for inputs in (rows, frame, datasets.Dataset.from_pandas(frame)):
        probabilities = classifier.predict_proba(inputs, batch_size=4)
        assert probabilities.dtype == np.float64
        assert np.abs(probabilities - saved.probabilities).max() < 1e-5
        assert classifier.predict(inputs) == [classifier.labels[i] for i in saved.predictions]
    assert classifier.predict([]) == [] and classifier.predict_proba([]).shape == (0, 2)
    with pytest.raises(UserError, match="inputs: got an empty 'sentence2' in row 1"):
        classifier.predict([("a", "")])


@pytest.mark.parametrize("suffix", ["jsonl", "tsv", "parquet"])
def test_every_output_type_has_the_same_content(
    suffix: str, trained_run: Path, pair_files: dict[str, str], tmp_path: Path
) -> None:
    from peft_mrpc.data.files import read_table

    output = tmp_path / f"out.{suffix}"
    main([str(trained_run), "--input", pair_files["unlabelled"], "--output", str(output)])
    table = read_table(output)
    assert table.columns == ["sentence1", "sentence2", *ADDED]
    assert [row["sentence1"] for row in table.rows] == [row[0] for row in ROWS]


def test_standard_input_to_standard_output(trained_run: Path) -> None:
    done = run_command(
        *("predict", str(trained_run), "--input", "-"),
        stdin="sentence1,sentence2\na cat,不同\n",
        env={"PYTHONIOENCODING": "cp1252"},  # as on Windows; the output is UTF-8 all the same
    )
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert list(row) == ["sentence1", "sentence2", *ADDED] and row["sentence2"] == "不同"
    assert row["prediction"] in ("equivalent", "not_equivalent")


def test_a_run_records_dropped_rows(train_tiny: Callable[..., Any], tmp_path: Path) -> None:
    header = ("sentence1", "sentence2", "label")
    rows = [ROWS[0], ("", "b", "equivalent"), ("a", "b", "-"), *ROWS[1:]]
    path = str(write_csv(tmp_path / "t.csv", rows, header))
    files = {"train_file": path, "validation_file": path}
    run = train_tiny("full", data=DataConfig(**files, drop_invalid_rows=True), max_steps=1)
    splits = run.record["data"]["splits"]
    assert splits["train"]["dropped"] == {"an empty 'sentence1'": 1, "no label": 1}
    assert splits["validation"]["dropped"] == {"an empty 'sentence1'": 1}
    assert run.record["config"]["drop_invalid_rows"] is True
    predictions = load_run(run.path).predictions("validation")
    assert predictions.references.tolist().count(-1) == 1 and len(predictions.idx) == len(rows) - 1
    assert compare_runs([run]).metrics


def test_rejects_a_model_without_a_trained_head(
    tiny_bert: str, pair_files: dict[str, str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    AutoModel.from_pretrained(tiny_bert).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "base")
    fault = fails(main, str(tmp_path / "base"), "--input", pair_files["unlabelled"])
    assert "lacks the weights classifier.bias" in fault and "expected a trained classifier" in fault


@pytest.mark.parametrize("names", [["equivalent", "not_equivalent"], ["a", "b", "c"]])
def test_rejects_label_names_that_are_not_those_of_the_model(
    names: list[str], trained_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained_run, folder)
    (path,) = folder.glob("*/peft_mrpc.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "label_names": names}))
    with pytest.raises(UserError, match="damaged: label_names differ from id2label in config"):
        load_classifier(folder)


def test_rejects_a_run_with_a_missing_file(
    trained_run: Path, pair_files: dict[str, str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    (tmp_path / "run" / "model" / "tokenizer.json").unlink()
    message = fails(main, str(tmp_path / "run"), "--input", pair_files["unlabelled"])
    assert "damaged: tokenizer.json is missing" in message


def test_labels_with_a_model_of_another_tool(
    tiny_bert: str, pair_files: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    main([tiny_bert, "--input", pair_files["unlabelled"], "--output", str(output)])
    assert "probability_LABEL_1" in output.read_text().splitlines()[0]


def save_by_peft(
    base: Path, folder: Path, architecture: str, method: str, headless: bool = True, **options: Any
) -> Path:
    """A checkpoint in `base`, and an adapter of three labels over it, saved by PEFT."""
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    write_tiny_model(architecture, base)
    if headless:
        AutoModel.from_pretrained(base).save_pretrained(base)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=options.pop("num_labels", 3), ignore_mismatched_sizes=True
    )
    options = {"task_type": "SEQ_CLS", **options}
    if method == "lora":
        options = {"target_modules": "all-linear", "init_lora_weights": False, **options}
        adapted = get_peft_model(model, LoraConfig(r=2, **options))
    else:
        adapted = get_peft_model(model, PromptTuningConfig(num_virtual_tokens=5, **options))
    adapted.save_pretrained(folder)
    return folder


def probabilities_by_peft(base: Path, folder: Path) -> list[list[float]]:
    """Probabilities of plain PEFT for each row of ROWS, one at a time."""
    from peft import PeftModel

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=3, ignore_mismatched_sizes=True
    )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.eos_token_id
    model = PeftModel.from_pretrained(model, folder).eval()
    probabilities = []
    for one, other, _ in ROWS:
        texts = (
            (one, other) if tokenizer.sep_token else (f"Sentence 1: {one}\nSentence 2: {other}",)
        )
        with torch.no_grad():
            logits = model(**tokenizer(*texts, return_tensors="pt")).logits
        probabilities.append(logits.softmax(-1)[0].tolist())
    return probabilities


@pytest.mark.parametrize(
    ("architecture", "method", "headless"),
    [
        ("bert", "lora", True),
        ("roberta", "lora", False),  # its own head has two labels
        ("llama", "lora", True),
        ("bert", "prompt_tuning", True),
    ],
)
def test_an_external_adapter_predicts_as_in_peft(
    architecture: str, method: str, headless: bool, pair_files: dict[str, str], tmp_path: Path
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_by_peft(base, adapter, architecture, method, headless)
    assert not (adapter / "tokenizer_config.json").exists()
    expected = probabilities_by_peft(base, adapter)
    assert np.std(expected, axis=0).max() > 1e-3, "all examples have the same probabilities"
    for names, flags in (
        (["LABEL_0", "LABEL_1", "LABEL_2"], []),
        (["no", "perhaps", "yes"], ["--class_names", "no, perhaps,yes"]),
    ):
        output = tmp_path / f"{names[0]}.jsonl"
        main([str(adapter), "--input", pair_files["unlabelled"], "--output", str(output), *flags])
        for row, wanted in zip(map(json.loads, output.open()), expected, strict=True):
            assert [row[f"probability_{name}"] for name in names] == pytest.approx(wanted, abs=1e-5)
            assert row["prediction"] == names[int(np.argmax(wanted))]


def test_an_adapter_over_a_trained_classifier_has_its_labels(
    tiny_bert: str, pair_files: dict[str, str], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "id2label": {"0": "no", "1": "yes"}}))
    model = AutoModelForSequenceClassification.from_pretrained(base)
    options = {"target_modules": ["query"], "init_lora_weights": False}
    get_peft_model(model, LoraConfig(**options)).save_pretrained(tmp_path / "adapter")
    output = tmp_path / "out.csv"
    main([str(tmp_path / "adapter"), "--input", pair_files["unlabelled"], "--output", str(output)])
    with output.open(newline="") as file:
        header = next(csv.reader(file))
    assert header[-2:] == ["probability_no", "probability_yes"]


def test_a_model_counts_positions_from_its_own_padding_id(
    train_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    """RoBERTa's ids of positions depend on the id of padding, here not the tokenizer's."""
    folder = tmp_path / "roberta"
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        pad_token_id=1,
        initializer_range=0.5,
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    long = [("the cat " * 300, "a dog " * 300)]
    assert len(load_classifier(folder).predict(long)) == 1
    run = train_tiny("full", model=str(folder), pooling="native", max_steps=2)
    expected = run.predictions("validation").probabilities
    np.testing.assert_allclose(load_classifier(run).predict_proba(PAIRS), expected, atol=1e-5)


def test_rejects_incomplete_external_adapters(
    pair_files: dict[str, str], tmp_path: Path, fails: Callable[..., str], trained_run: Path
) -> None:
    flags = ["--input", pair_files["unlabelled"]]

    def fault(folder: Path, *more: str) -> str:
        text = fails(main, str(folder), *flags, *more)
        assert len(text.splitlines()) == 1
        return text

    def changed(name: str, **values: Any) -> Path:
        shutil.copytree(whole, tmp_path / name)
        path = tmp_path / name / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return tmp_path / name

    whole = save_by_peft(tmp_path / "bert", tmp_path / "whole", "bert", "lora")
    assert "got 2 names; expected 3, the number of labels" in fault(whole, "--class_names", "a,b")
    assert "two or more different names" in fault(whole, "--class_names", "a,a,b")
    assert "has its own label names (not_eq" in fault(trained_run, "--class_names", "a,b")
    assert "got no base_model_name_or_path" in fault(changed("0", base_model_name_or_path=None))
    gone = fault(changed("1", base_model_name_or_path="/gone/model"))
    assert "adapter_config.json: base_model_name_or_path: got '/gone/model'" in gone
    assert "got task_type 'CAUSAL_LM'; expected" in fault(changed("2", task_type="CAUSAL_LM"))
    (changed("3") / "adapter_model.safetensors").write_bytes(b"half")
    assert "damaged: its weights: " in fault(tmp_path / "3")
    (tmp_path / "3" / "adapter_model.safetensors").unlink()
    assert "damaged: adapter_model.safetensors is missing" in fault(tmp_path / "3")
    assert "8: damaged: `r` should be a positive integer" in fault(changed("8", r=-1))
    assert "9: damaged: " in fault(changed("9", r=3))
    assert "10: damaged: " in fault(changed("10", target_modules=["gone"]))
    assert "11: damaged: 'GONE'" in fault(changed("11", peft_type="GONE"))
    weights = load_file(changed("12") / "adapter_model.safetensors")
    others = {name: weights[name] for name in weights if ".layer.1." not in name}
    save_file(others, tmp_path / "12" / "adapter_model.safetensors")
    assert "12: damaged: Found missing adapter keys while" in fault(tmp_path / "12")
    # Its pooler was drawn at random, stayed as it was, and is nowhere.
    deberta = save_by_peft(tmp_path / "deberta", tmp_path / "4", "deberta-v2", "lora")
    lost = "lacks the weights pooler.dense.bias, pooler.dense.weight, and so does the adapter"
    assert lost in fault(deberta) and "PEFT's modules_to_save" in fault(deberta)
    headless = save_by_peft(tmp_path / "bert2", tmp_path / "5", "bert", "lora", task_type=None)
    assert "lacks the weights classifier.bias" in fault(headless)
    score = save_by_peft(tmp_path / "bert3", tmp_path / "7", "bert", "lora", num_labels=1)
    assert "got a head with one output; expected" in fault(score)
    llama = save_by_peft(tmp_path / "llama", tmp_path / "6", "llama", "prompt_tuning")
    assert "got PROMPT_TUNING for llama, whose head reads a padding token" in fault(llama)


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ([], "--input: got none"),
        (["--input", "gone.csv"], "gone.csv: no such file."),
        (["--input", "{new}", "--output", "x.docx"], "--output: got 'x.docx'; expected .csv"),
        (["--input", "{new}", "--output", "{new}"], "which exists"),
        (["--input", "{new}", "--output", "no/dir/x.csv"], "expected an existing directory"),
        (["--input", "{new}", "--sentence1_column", "s1"], "--sentence1_column: got 's1'"),
        (["--input", "{clash}"], "already has the columns prediction"),
        (["--input", "{empty}"], "got an empty 'sentence2' in row 1; expected a sentence."),
        (["--inputs=x"], "Did you mean 'input'?"),
    ],
)
def test_invalid_input_is_reported_in_one_line(
    flags: list[str],
    fault: str,
    trained_run: Path,
    pair_files: dict[str, str],
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    files = {
        "new": pair_files["unlabelled"],
        "clash": write_csv(
            tmp_path / "c.csv", [("a", "b", "c")], ("sentence1", "sentence2", "prediction")
        ),
        "empty": write_csv(tmp_path / "e.csv", [("a", " ")], ("sentence1", "sentence2")),
    }
    message = fails(main, str(trained_run), *(flag.format(**files) for flag in flags))
    assert fault in message and len(message.splitlines()) == 1


def test_rejects_a_directory_that_is_not_a_run(
    pair_files: dict[str, str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    flags = ["--input", pair_files["unlabelled"]]
    assert "expected a Run, an adapter or model" in fails(main, "./gone", *flags)
    assert "contains no peft_mrpc.json, adapter_config.json or config.json" in fails(
        main, str(tmp_path), *flags
    )
