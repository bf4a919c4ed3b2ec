"""A model and its tokenizer fit each other, and no code of a folder runs unless it is trusted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROWS, build_tokenizer
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config, write_tiny_model
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
)

from peft_mrpc import UserError, doctor, load_classifier, predict
from peft_mrpc import train as train_command
from peft_mrpc.models.artifact import save_info
from peft_mrpc.models.loading import (
    load_causal_lm,
    load_classification_model,
    load_config,
    load_tokenizer,
    position_limit,
)
from peft_mrpc.models.sources import Trust, resolve_model

LABELS = ["not_equivalent", "equivalent"]
PAIRS = [row[:2] for row in ROWS]


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def bert(tiny_bert: str, tmp_path: Path) -> Path:
    """A copy of the tiny BERT."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "bert"))


def remove_weights(folder: Path, part: str) -> None:
    """Remove the weights whose names contain a text."""
    weights = load_file(folder / "model.safetensors")
    others = {name: weights[name] for name in weights if part not in name}
    save_file(others, folder / "model.safetensors", {"format": "pt"})


def write_custom_model(folder: Path, executed: Path) -> None:
    """A classifier whose class is in a file beside it, which records that it was executed."""
    write_tiny_model("bert", folder)
    (folder / "modeling_mine.py").write_text(
        "from pathlib import Path\n"
        "from transformers import BertConfig, BertForSequenceClassification\n"
        f"Path({str(executed)!r}).touch()\n"
        "class MyConfig(BertConfig):\n    model_type = 'mine'\n"
        "class MyClassifier(BertForSequenceClassification):\n    config_class = MyConfig\n"
    )
    auto_map = {
        "AutoConfig": "modeling_mine.MyConfig",
        "AutoModelForSequenceClassification": "modeling_mine.MyClassifier",
    }
    change(folder / "config.json", model_type="mine", auto_map=auto_map)


# ---- tokenizers ----


def test_a_model_without_tokenizer_files_is_refused_by_every_command(
    bert: Path, data_flags: list[str], pair_files: dict[str, str], fails: Callable[..., str]
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bert / name).unlink()
    expected = f"--model: got {str(bert)!r}, which has no tokenizer files"
    flags = ["--model", str(bert), "--method", "lora"]
    for message in (
        fails(train_command.main, *flags, *data_flags, "--dry_run"),
        fails(doctor.main, *flags),
        fails(predict.main, str(bert), "--input", pair_files["unlabelled"]),
    ):
        assert expected in message and len(message.splitlines()) == 1


def test_a_token_without_an_embedding_is_refused(bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert)
    tokenizer.add_tokens(["added"])
    tokenizer.save_pretrained(bert)
    rows = len(tokenizer) - 1
    with pytest.raises(UserError, match=rf"has the id {rows} \('added'\).* {rows} token embedd"):
        load_tokenizer(resolve_model(str(bert)))


@pytest.mark.parametrize("special", [{"unk_token": "[UNK]"}, {}])
@pytest.mark.parametrize("pooling", ["last", "native"])
def test_a_tokenizer_without_a_padding_token_pads_with_another(
    special: dict[str, str], pooling: str, train_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "llama"
    tokenizer = build_tokenizer(is_chat=True)
    for name in ("bos_token", "eos_token", "unk_token"):
        setattr(tokenizer, name, special.get(name))
    torch.manual_seed(0)
    config = tiny_config("llama", len(tokenizer))
    config.bos_token_id = config.eos_token_id = None
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(resolve_model(str(folder))).pad_token == special.get("unk_token", ",")
    run = train_tiny("lora", model=str(folder), pooling=pooling, max_steps=2)
    expected = run.predictions("validation").probabilities
    for batch_size in (1, 9):  # padding changes nothing
        probabilities = load_classifier(run).predict_proba(PAIRS, batch_size)
        assert np.abs(probabilities - expected).max() < 1e-5


def test_token_types_that_the_model_lacks_are_dropped(
    train_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    write_tiny_model("roberta", tmp_path / "roberta")
    build_tokenizer().save_pretrained(tmp_path / "roberta")
    assert "token_type_ids" in AutoTokenizer.from_pretrained(tmp_path / "roberta").model_input_names
    run = train_tiny("lora", model=str(tmp_path / "roberta"), max_steps=2)
    probabilities = load_classifier(run).predict_proba(PAIRS)
    assert np.abs(probabilities - run.predictions("validation").probabilities).max() < 1e-5


@pytest.mark.parametrize(("architecture", "limit"), [("bert", 64), ("roberta", 65)])
def test_positions_without_tokens_do_not_count(
    architecture: str, limit: int, models: dict[str, str]
) -> None:
    # RoBERTa's table has 66 rows here; the first token has position pad_token_id + 1 = 1.
    source = resolve_model(models[architecture])
    tokenizer, config = load_tokenizer(source), load_config(source)
    tokenizer.model_max_length = 10**9
    assert position_limit(config, tokenizer) == limit
    encoder = AutoModel.from_pretrained(source.location)
    encoder(input_ids=torch.full((1, limit), 7))
    with pytest.raises((IndexError, RuntimeError)):
        encoder(input_ids=torch.full((1, limit + 1), 7))


def test_a_missing_sentencepiece_is_named(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("`tiktoken` is required to read a `tiktoken` file.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="Run: pip install sentencepiece"):
        load_tokenizer(resolve_model(str(bert)))


# ---- heads ----


def test_a_model_with_one_output_is_a_binary_classifier(bert: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(
        bert, num_labels=1, ignore_mismatched_sizes=True
    )
    model.save_pretrained(bert)
    classifier = load_classifier(bert, class_names="no,yes")
    assert load_classifier(bert).labels == ["0", "1"] and classifier.labels == ["no", "yes"]
    batch = AutoTokenizer.from_pretrained(bert)(*PAIRS[0], return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**batch).logits.sigmoid().item()
    assert classifier.predict_proba(PAIRS[:1])[0] == pytest.approx([1 - expected, expected])


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_other_problems_than_one_label_are_refused(problem: str, bert: Path) -> None:
    change(bert / "config.json", problem_type=problem)
    with pytest.raises(UserError, match=f"got problem_type '{problem}'; expected single_label"):
        load_classifier(bert)


def named(bert: Path, *names: str) -> Path:
    """Give the tiny BERT a head with these labels, of known weights."""
    model = AutoModelForSequenceClassification.from_pretrained(
        bert, id2label=dict(enumerate(names)), ignore_mismatched_sizes=True
    )
    with torch.no_grad():
        model.classifier.bias.copy_(torch.arange(1.0, len(names) + 1))
    model.save_pretrained(bert)
    return bert


@pytest.mark.parametrize(
    ("names", "bias"),
    [
        (("LABEL_0", "LABEL_1"), [1, 2]),
        (("not_equivalent", "equivalent"), [1, 2]),
        (("equivalent", "not_equivalent"), [2, 1]),
        (("contradiction", "entailment"), [0, 0]),
        (("contradiction", "neutral", "entailment"), [0, 0]),
    ],
)
def test_a_native_head_is_matched_by_its_label_names(
    names: tuple[str, ...], bias: list[float], bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = resolve_model(str(named(bert, *names)))
    with caplog.at_level("INFO"):
        model = load_classification_model(source, LABELS, load_tokenizer(source))
    assert model.classifier.bias.tolist() == bias
    assert list(model.config.id2label.values()) == LABELS
    assert ("head" in caplog.text) == (bias != [1, 2])


def test_an_adapter_over_a_head_with_other_labels_is_saved_with_code(
    bert: Path, train_tiny: Callable[..., Any]
) -> None:
    """PEFT would load it with the labels of the base model."""
    run = train_tiny("lora", model=str(named(bert, *reversed(LABELS))), pooling="native")
    assert not (run.artifact / "adapter_config.json").exists()
    assert json.loads((run.artifact / "config.json").read_text())["id2label"]["0"] == LABELS[0]
    probabilities = load_classifier(run).predict_proba(PAIRS)
    assert np.abs(probabilities - run.predictions("validation").probabilities).max() < 1e-5


def test_an_adapter_with_added_tokens_predicts_as_in_peft(bert: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model

    tokenizer = AutoTokenizer.from_pretrained(bert)
    tokenizer.add_tokens(["zebra", "okapi"])
    base = AutoModelForSequenceClassification.from_pretrained(bert)
    base.resize_token_embeddings(len(tokenizer))
    options = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    get_peft_model(base, options).save_pretrained(tmp_path / "a", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "a")
    pair = ("the zebra sat", "the okapi sat")
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "a").eval()
    with torch.no_grad():
        logits = model(**tokenizer(*pair, return_tensors="pt")).logits
    probabilities = load_classifier(tmp_path / "a").predict_proba([pair])
    assert probabilities == pytest.approx(logits.softmax(-1).numpy(), abs=1e-6)


@pytest.mark.parametrize("threshold", ["0.25", "auto"])
def test_the_threshold_and_the_maximum_length_are_in_the_files_of_other_tools(
    threshold: str, train_tiny: Callable[..., Any]
) -> None:
    for method in ("layer_freeze", "prompt_tuning"):
        run = train_tiny(method, method, pooling="mean", threshold=threshold, max_length=32)
        config = json.loads((run.artifact / "config.json").read_text())
        assert config["threshold"] == run.record["threshold"] == load_classifier(run).threshold
        tokenizer = AutoTokenizer.from_pretrained(run.artifact)
        assert tokenizer.model_max_length == load_classifier(run).max_length


def test_an_adapter_with_our_head_of_an_earlier_version_is_still_read(
    build_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    classifier = build_tiny("prompt_tuning", pooling="mean").classifier
    classifier.model.save_pretrained(tmp_path / "old")
    classifier.tokenizer.save_pretrained(tmp_path / "old")
    source = resolve_model(classifier.model.get_base_model().encoder.name_or_path)
    entries = {"method": "prompt_tuning", "label_names": LABELS, "max_length": 59}
    save_info(tmp_path / "old", source, **entries, pooling="mean")
    again = load_classifier(tmp_path / "old").predict_proba(PAIRS)
    assert np.abs(again - classifier.predict_proba(PAIRS)).max() < 1e-6


def test_a_model_with_our_head_keeps_it_as_a_base_model(train_tiny: Callable[..., Any]) -> None:
    base = str(train_tiny("full", "base", pooling="mean", max_steps=1).artifact)
    run = train_tiny("lora", "again", model=base, max_steps=1)
    assert run.record["config"]["pooling"] == "native"
    probabilities = load_classifier(run).predict_proba(PAIRS)
    assert np.abs(probabilities - run.predictions("validation").probabilities).max() < 1e-6
    with pytest.raises(UserError, match=r"pooling: got cls, .* keeps the head .* expected native"):
        train_tiny("lora", "other", model=base, pooling="cls")


def test_an_adapter_is_not_a_base_model(train_tiny: Callable[..., Any], tiny_bert: str) -> None:
    run = train_tiny("lora", pooling="mean", max_steps=1)
    with pytest.raises(UserError, match=f"an adapter; expected its base model, {tiny_bert}"):
        train_tiny("lora", "again", model=str(run.artifact))


# ---- code and pickle files ----


def test_code_of_a_model_runs_only_if_it_is_trusted(
    data_flags: list[str],
    pair_files: dict[str, str],
    train_tiny: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
) -> None:
    folder, executed = tmp_path / "mine", tmp_path / "executed"
    write_custom_model(folder, executed)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks there
    flags = ["--model", str(folder), "--method", "full"]
    for message in (
        fails(train_command.main, *flags, *data_flags),
        fails(doctor.main, *flags),
        fails(predict.main, str(folder), "--input", pair_files["unlabelled"]),
    ):
        assert "which needs Python code from its own files" in message
    assert not executed.exists()
    trusted = {"model": str(folder), "trust_remote_code": True, "max_steps": 1}
    run = train_tiny("full", **trusted)
    assert executed.exists()
    with pytest.raises(UserError, match="needs Python code"):
        load_classifier(run)
    probabilities = load_classifier(run, trust_remote_code=True).predict_proba(PAIRS)
    assert np.abs(probabilities - run.predictions("validation").probabilities).max() < 1e-5
    with pytest.raises(UserError, match=r"pooling: got mean, .* expected native"):
        train_tiny("full", "other", pooling="mean", **trusted)


@pytest.mark.parametrize("method", ["layer_freeze", "lora"])
def test_our_head_is_loaded_by_the_code_of_the_package(
    method: str, train_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    run = train_tiny(method, pooling="mean", max_steps=1)
    files = list(run.artifact.glob("*.py"))
    for file in files:
        file.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'executed')!r}).touch()")
    load_classifier(run, trust_remote_code=True).predict(PAIRS[:1])
    assert files and not (tmp_path / "executed").exists()


def test_pickle_files_are_loaded_only_if_they_are_allowed(
    bert: Path, pair_files: dict[str, str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForSequenceClassification.from_pretrained(bert)
    base = shutil.copytree(bert, tmp_path / "base")
    torch.save(model.state_dict(), bert / "pytorch_model.bin")
    (bert / "model.safetensors").unlink()
    message = fails(predict.main, str(bert), "--input", pair_files["unlabelled"])
    assert "no weights in safetensors" in message and "set allow_pickle" in message
    assert len(load_classifier(bert, allow_pickle=True).predict(PAIRS)) == len(PAIRS)
    files = dict.fromkeys(model.state_dict(), "pytorch_model.bin")
    index = bert / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    with pytest.raises(UserError, match="no weights in safetensors"):
        load_classifier(bert)
    index.unlink()
    source = resolve_model(str(bert), trust=Trust(pickle=True))
    load_classification_model(source, LABELS, load_tokenizer(source), "mean")

    model = AutoModelForSequenceClassification.from_pretrained(base)
    options = LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    adapter = tmp_path / "adapter"
    get_peft_model(model, options).save_pretrained(adapter, safe_serialization=False)
    with pytest.raises(UserError, match=r"got adapter_model.bin; expected adapter_model.safetens"):
        load_classifier(adapter)
    assert len(load_classifier(adapter, allow_pickle=True).predict(PAIRS)) == len(PAIRS)


@pytest.mark.parametrize("part", ["layers.1.", "embed_tokens", "model.norm", "lm_head"])
def test_a_causal_lm_without_a_weight_is_refused(
    tiny_llama: str, tmp_path: Path, part: str
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "llama"))
    remove_weights(folder, part)
    with pytest.raises(UserError, match=f"which lacks the weights .*{part}"):
        load_causal_lm(resolve_model(str(folder)), "none")


@pytest.mark.parametrize("length", ["many", 0, -5])
def test_a_tokenizer_that_truncates_everything_is_refused(bert: Path, length: object) -> None:
    change(bert / "tokenizer_config.json", model_max_length=length)
    with pytest.raises(UserError, match=f"model_max_length {length!r}; expected at least 8"):
        load_tokenizer(resolve_model(str(bert)))


@pytest.mark.parametrize("pooling", ["native", "mean"])
@pytest.mark.parametrize("part", ["layer.1.", "embeddings.LayerNorm.bias"])
def test_a_model_without_weights_of_its_body_is_refused(
    bert: Path, pooling: str, part: str
) -> None:
    remove_weights(bert, part)
    source = resolve_model(str(bert))
    with pytest.raises(UserError, match=f"which lacks the weights .*{part}"):
        load_classification_model(source, LABELS, load_tokenizer(source), pooling)


@pytest.mark.parametrize("pooling", ["native", "mean"])
def test_an_adapter_of_ours_is_not_read_from_a_pickle_file(
    pooling: str, train_tiny: Callable[..., Any]
) -> None:
    folder = train_tiny("lora", pooling=pooling, max_steps=1).artifact
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    info = json.loads((folder / "peft_mrpc.json").read_text())
    change(folder / "peft_mrpc.json", files=[f for f in info["files"] if "adapter_model" not in f])
    with pytest.raises(UserError, match=r"got adapter_model.bin; expected adapter_model.safetens"):
        load_classifier(folder)
