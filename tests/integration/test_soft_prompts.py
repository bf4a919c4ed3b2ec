"""Soft prompts: where the virtual tokens stand, and what they begin as."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROWS, build_from_flags
from tiny_models import ENCODERS, FLAGS, batch_drift, reload_drift, train_two_steps
from transformers import AutoModel

from peft_mrpc import doctor
from peft_mrpc.api import load_classifier
from peft_mrpc.data.examples import Example
from peft_mrpc.errors import UserError
from peft_mrpc.models.classifier import ClassificationCollator, Classifier
from peft_mrpc.models.loading import load_classification_model, load_tokenizer
from peft_mrpc.models.modeling_sentence_pair import POOLINGS
from peft_mrpc.models.sources import resolve_model
from peft_mrpc.runs.run import load_run
from peft_mrpc.serialization import read_json
from peft_mrpc.train import main

PAIRS = [Example(i, a, b) for i, (a, b, _) in enumerate(ROWS)]
AFTER = ["--prompt_position", "after", "--pooling"]
TEXT = ["--prompt_tuning_init", "TEXT", "--prompt_tuning_init_text"]


def build(model: str, data_flags: list[str], *flags: str) -> Classifier:
    """What would train, as `train` builds it."""
    argv = ["--method", "prompt_tuning", "--model", model, *data_flags]
    with tempfile.TemporaryDirectory() as folder:
        return build_from_flags(folder, [*argv, "--num_virtual_tokens", "5", *flags]).classifier


def prompt_of(classifier: Classifier) -> torch.Tensor:
    """The virtual tokens, [P, H]."""
    prompt: torch.Tensor = classifier.model.get_prompt_embedding_to_save("default")
    return prompt


@pytest.mark.parametrize("architecture", ENCODERS)
@pytest.mark.parametrize(("position", "place"), [("before", 0), ("after", 1)])
def test_the_encoder_receives_the_prompt_at_its_position(
    architecture: str, position: str, place: int, models: dict[str, str], data_flags: list[str]
) -> None:
    path = models[architecture]
    flags = ["--pooling", "cls", "--prompt_position", position]
    classifier = build(path, data_flags, *flags)
    model, tokenizer = classifier.model.eval(), classifier.tokenizer
    read: list[torch.Tensor] = []  # by the head
    head = model.base_model.classifier
    head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    rows, _ = classifier.encode([PAIRS[2], PAIRS[3]])
    assert len(rows[0]["input_ids"]) < len(rows[1]["input_ids"])  # so that one is padded
    model(**ClassificationCollator(tokenizer, model.config)(rows))
    # By hand: the bare encoder over one pair's word embeddings with the prompt laid among them.
    encoder = AutoModel.from_pretrained(path).eval()
    for features, row in zip(read[0], rows, strict=True):
        assert row["input_ids"][0] == tokenizer.cls_token_id
        words = encoder.get_input_embeddings()(torch.tensor(row["input_ids"]))
        laid = torch.cat([words[:place], prompt_of(classifier), words[place:]])
        inputs = {"inputs_embeds": laid[None], "attention_mask": torch.ones(1, len(laid)).long()}
        if "token_type_ids" in row:
            types = row["token_type_ids"]
            inputs["token_type_ids"] = torch.tensor([types[:place] + 5 * [0] + types[place:]])
        expected = encoder(**inputs)[0][0, 0 if position == "after" else 5]
        assert torch.allclose(features, expected, atol=1e-5)


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_prompt_after_cls_trains_and_reloads(
    method: str, architecture: str, models: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    model = models[architecture]
    classifier, pairs = train_two_steps(method, model, data_flags, tmp_path, *AFTER, "aligned")
    assert batch_drift(classifier, pairs) < 1e-5
    assert reload_drift(classifier, pairs, model, method, tmp_path / "saved") < 1e-5


def test_a_saved_prompt_contains_no_dropout(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--encoder_reparameterization_type", "LSTM", "--encoder_dropout", "0.5"]
    out = ["--max_steps", "2", "--output_dir", str(tmp_path / "run")]
    main(["--model", tiny_bert, *data_flags, "--method", "p_tuning", *flags, *out])
    scored = load_run(tmp_path / "run").predictions("validation").probabilities
    again = load_classifier(str(tmp_path / "run" / "adapter")).predict_proba(PAIRS, 9)
    assert np.abs(np.subtract(scored, again)).max() < 1e-5


@pytest.mark.parametrize("pooling", [name for name in POOLINGS if name != "last"])
def test_every_pooling_ignores_the_prompt_at_both_positions(
    pooling: str, models: dict[str, str], data_flags: list[str]
) -> None:
    # An encoder without layers and positions gives each token the same state wherever it stands:
    # only a head that reads other tokens would tell.
    scores = []
    for position in ("before", "after"):
        flags = ["--pooling", pooling, "--prompt_position", position]
        classifier = build(models["bert"], data_flags, *flags)
        encoder = classifier.model.base_model.encoder
        encoder.encoder.layer = encoder.encoder.layer[:0]
        encoder.embeddings.position_embeddings.weight.data.zero_()
        scores.append(classifier.predict_proba(PAIRS, 9))
    assert np.abs(scores[0] - scores[1]).max() < 1e-5


@pytest.fixture(scope="module")
def after_run(
    tmp_path_factory: pytest.TempPathFactory, models: dict[str, str], data_flags: list[str]
) -> Path:
    folder = tmp_path_factory.mktemp("soft") / "run"
    main(
        ["--method", "prompt_tuning", "--model", models["bert"], *data_flags, *AFTER, "aligned"]
        + [*FLAGS["prompt_tuning"], *TEXT, "Same: yes or no?", "--num_train_epochs", "2"]
        + ["--output_dir", str(folder), "--base_model_id", "owner/tiny"]
    )
    return folder


def test_the_position_is_saved_and_loaded_in_a_new_process(
    after_run: Path, pair_files: dict[str, str]
) -> None:
    assert load_run(after_run).record["config"]["prompt_position"] == "after"
    info = after_run / "adapter" / "peft_mrpc.json"
    assert read_json(info)["prompt_position"] == "after"
    script = (
        "import sys, json; from peft_mrpc.api import load_classifier;"
        "from peft_mrpc.data.loading import load_data; from peft_mrpc.config import DataConfig;"
        "pairs = load_data(DataConfig(validation_file=sys.argv[1])).splits['validation'];"
        "print(json.dumps(load_classifier(sys.argv[2]).predict_proba(pairs, 32).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, pair_files["validation"], str(after_run)],
        capture_output=True,
        text=True,
        check=True,
    )
    saved = load_run(after_run).predictions("validation").probabilities
    assert np.abs(np.array(json.loads(done.stdout)) - saved).max() < 1e-6


def test_the_card_states_the_position(after_run: Path, trained_run: Path) -> None:
    card = (after_run / "README.md").read_text()
    assert "5 virtual tokens are inserted after the first token. The head is `aligned`" in card
    assert "virtual tokens" not in (trained_run / "README.md").read_text()


def test_the_saved_position_changes_the_probabilities(after_run: Path, tmp_path: Path) -> None:
    import shutil

    moved = Path(shutil.copytree(after_run / "adapter", tmp_path / "moved"))
    config = read_json(moved / "config.json")
    (moved / "config.json").write_text(json.dumps({**config, "prompt_position": "before"}))
    saved = load_run(after_run).predictions("validation").probabilities
    assert np.abs(load_classifier(str(moved)).predict_proba(PAIRS, 32) - saved).max() > 1e-5


@pytest.mark.parametrize(
    ("method", "architecture", "pooling", "fault"),
    [
        ("lora", "bert", "aligned", "lora has no virtual tokens"),
        ("linear_probe", "bert", "aligned", "linear_probe has no virtual tokens"),
        ("prefix_tuning", "bert", "aligned", "prefix_tuning adds keys and values"),
        ("prompt_tuning", "bert", "native", "this needs one of our heads"),
        ("p_tuning", "roberta", "native", "this needs one of our heads"),
        ("prompt_tuning", "llama", "last", "llama is a decoder"),
    ],
)
def test_rejects_unsupported_positions_before_loading_weights(
    method: str,
    architecture: str,
    pooling: str,
    fault: str,
    models: dict[str, str],
    data_flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
) -> None:
    monkeypatch.setattr(
        "peft_mrpc.training.build.load_classification_model", None
    )  # calling it would fail
    flags = ["--method", method, "--model", models[architecture], *AFTER, pooling]
    message = fails(main, *flags, *data_flags, "--output_dir", str(tmp_path / "run"))
    assert message.startswith("peft-mrpc: --prompt_position: got after, but") and fault in message
    assert len(message.splitlines()) == 1 and not list(tmp_path.iterdir())
    assert fails(doctor.main, *flags) == message


@pytest.mark.parametrize("change", [{"padding_side": "left"}, {"cls_token": "[SEP]"}])
def test_prompts_after_cls_need_a_tokenizer_that_begins_with_cls(
    change: dict[str, str], models: dict[str, str]
) -> None:
    source = resolve_model(models["bert"])
    tokenizer = load_tokenizer(source)
    for name, value in change.items():
        setattr(tokenizer, name, value)
    with pytest.raises(UserError, match=r"prompt_position: got after, but .* with \[CLS\]"):
        load_classification_model(
            source, ["no", "yes"], tokenizer, "aligned", prompt_position="after"
        )


@pytest.mark.parametrize("architecture", ["bert", "electra", "llama"])
def test_initializes_a_prompt_as_configured(
    architecture: str,
    models: dict[str, str],
    data_flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing is asked of the Hub
    path = models[architecture]
    classifier = build(path, data_flags, *TEXT, "is it the same thing")
    ids = classifier.tokenizer("is it the same thing")["input_ids"]
    words = classifier.model.word_embeddings.weight.detach()
    repeated = torch.tensor((ids * 5)[:5])
    assert torch.equal(prompt_of(classifier), words[repeated])

    sampled = prompt_of(build(path, data_flags, "--prompt_tuning_init", "SAMPLE_VOCAB"))
    others = prompt_of(build(path, data_flags, "--prompt_tuning_init", "SAMPLE_VOCAB", "--seed=7"))
    drawn = prompt_of(build(path, data_flags, "--prompt_tuning_init", "RANDOM"))
    assert all((words == row).all(dim=1).any() for row in torch.cat([sampled, others]))
    assert not torch.equal(sampled, others)
    assert not any((words == row).all(dim=1).any() for row in drawn)


def test_an_initial_text_is_used_as_typed_and_no_path_is_saved(
    after_run: Path, models: dict[str, str]
) -> None:
    record = load_run(after_run).record["method_options"]
    assert record["prompt_tuning_init_text"] == "Same: yes or no?"  # a mapping, to YAML
    config = read_json(after_run / "adapter" / "config.json")
    assert config["base_model_name_or_path"] == models["bert"]  # `push` writes the Hub id
    assert models["bert"] not in json.dumps(config["adapter"])


def test_doctor_accepts_a_prompt_from_text(
    models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    doctor.main(["--method", "prompt_tuning", "--model", models["bert"], *TEXT, "the cat"])
    assert "prompt_tuning: works" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--prompt_position", "afer"], "Did you mean 'after'?"),
        (["--prompt_tuning_init", "TEXT"], "PromptTuningConfig: When prompt_tuning_init='TEXT'"),
        (["--prompt_tuning_init", "X"], "--prompt_tuning_init: got 'X'; expected 'TEXT'"),
        ([*TEXT, "two", "words"], "got 2 words; expected one text, in quotes"),
        (["--tokenizer_name_or_path", "x"], "--tokenizer_name_or_path: got an unknown option"),
    ],
)
def test_rejects_invalid_prompt_options(
    flags: list[str],
    fault: str,
    models: dict[str, str],
    data_flags: list[str],
    fails: Callable[..., str],
) -> None:
    base = ["--method", "prompt_tuning", "--model", models["bert"], *data_flags]
    message = fails(main, *base, *flags)
    assert fault in message and len(message.splitlines()) == 1
