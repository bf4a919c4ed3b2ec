"""Every method on every architecture, with the architecture's own head and with ours."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import build_from_flags, build_tokenizer
from tiny_models import (
    ARCHITECTURES,
    COMBINATIONS,
    batch_drift,
    poolings,
    reload_drift,
    train_two_steps,
)
from transformers import OPTConfig, OPTModel

from peft_mrpc.methods.registry import METHODS


def test_rejects_only_the_documented_combinations() -> None:
    every = {(m, a, p) for m in METHODS for a in ARCHITECTURES for p in poolings(a)}
    refused = {
        *(("bitfit", a, p) for a in ("modernbert", "llama") for p in poolings(a)),
        *((m, "llama", "native") for m in ("prompt_tuning", "p_tuning")),
        *(
            ("prefix_tuning", a, p)
            for a in ("deberta-v2", "distilbert", "modernbert")
            for p in poolings(a)
        ),
    }
    assert every - set(COMBINATIONS) == refused


@pytest.mark.parametrize(("method", "architecture", "pooling"), COMBINATIONS)
def test_a_method_trains_ignores_padding_and_reloads(
    method: str,
    architecture: str,
    pooling: str,
    models: dict[str, str],
    data_flags: list[str],
    tmp_path: Path,
) -> None:
    model = models[architecture]
    classifier, pairs = train_two_steps(
        method, model, data_flags, tmp_path / "trainer", "--pooling", pooling
    )
    assert batch_drift(classifier, pairs) < 1e-5
    assert reload_drift(classifier, pairs, model, method, tmp_path / "saved") < 1e-5


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("p_tuning", ["--encoder_reparameterization_type", "LSTM"]),
        ("prefix_tuning", ["--prefix_projection", "true"]),
        ("ia3", ["--target_modules", "key", "value"]),
        ("ln_tuning", ["--target_modules", "LayerNorm"]),
        ("lora", ["--target_modules", "all-linear"]),
    ],
)
def test_options_of_peft_configs_train_and_reload(
    method: str, flags: list[str], models: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    for pooling in poolings("bert"):
        classifier, pairs = train_two_steps(
            method, models["bert"], data_flags, tmp_path / "trainer", "--pooling", pooling, *flags
        )
        folder = tmp_path / pooling
        # PEFT writes the prompt as computed for one row: an LSTM rounds otherwise for nine.
        assert reload_drift(classifier, pairs, models["bert"], method, folder) < 1e-5


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "lora"])
def test_a_decoder_with_left_padding_ignores_padding(
    method: str, models: dict[str, str], data_flags: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(models["llama"], folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    tiny = build_from_flags(folder, ["--model", str(folder), *data_flags, "--method", method])
    classifier, pairs = tiny.classifier, tiny.data.splits["validation"]
    alone, together = (
        classifier.predict_proba(pairs, 1),
        classifier.predict_proba(pairs, len(pairs)),
    )
    assert np.abs(alone - together).max() < 1e-5


def test_heads_work_without_an_initializer_range(data_flags: list[str], tmp_path: Path) -> None:
    config = OPTConfig(
        **{"vocab_size": 64, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64},
        pad_token_id=0,
    )
    OPTModel(config).save_pretrained(tmp_path / "opt")
    build_tokenizer(is_chat=True).save_pretrained(tmp_path / "opt")
    model = str(tmp_path / "opt")
    classifier, pairs = train_two_steps("lora", model, data_flags, tmp_path, "--pooling", "auto")
    assert classifier.model.config.pooling == "last"
    assert reload_drift(classifier, pairs, model, "lora", tmp_path / "saved") < 1e-5
