"""Classifiers that other tools have saved: what their folders say of how they classify pairs."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils import load_peft_weights
from transformers import PretrainedConfig

from peft_mrpc.data.columns import split_class_names
from peft_mrpc.errors import UserError, logger, one_line, raise_faults
from peft_mrpc.models.hub import ModelSource, resolve_model
from peft_mrpc.models.loading import (
    init_classifier,
    load_config,
    load_tokenizer,
    position_limit,
)
from peft_mrpc.serialization import read_json

ADAPTER_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
MAX_LENGTH = 128  # of a pair: that of the training is in none of these files
# As many labels as no layer has units: what is so long is the output of a head.
MANY_LABELS = 7919


def describe_plain_model(folder: Path) -> dict[str, Any]:
    """What a sequence classifier says of itself."""
    return {
        "label_names": _label_names(read_json(folder / "config.json")),
        "max_length": MAX_LENGTH,
    }


def _label_names(config: Mapping[str, Any]) -> list[str]:
    # Saved with its keys sorted as text: "10" stands before "2".
    labels = sorted((config.get("id2label") or {}).items(), key=lambda item: int(item[0]))
    return [name for _, name in labels] or ["LABEL_0", "LABEL_1"]


def describe_plain_adapter(folder: Path) -> dict[str, Any]:
    """What an adapter that PEFT alone has saved, and its base model, say of the labels.

    Raises:
        UserError: If it is of no classifier, is damaged, or its base model cannot be found.
    """
    adapter = _read_adapter(folder)
    source, config = _find_base(folder, adapter)
    weights = _read_weights(folder)
    outputs = [weights[name] for name in _output_names(config, source) if name in weights]
    if outputs:
        names = [f"LABEL_{number}" for number in range(len(outputs[0]))]
    else:  # trained over a classifier, whose head it left as it was
        names = _label_names(config.to_dict())
    if len(names) < 2:
        raise UserError(f"{folder}: has a head of one output; expected one for each of two labels.")
    virtual = int(adapter.get("num_virtual_tokens") or 0)
    tokenizer = load_tokenizer(tokenizer_source(folder, source))
    if tokenizer.sep_token is None:
        if adapter.get("peft_type") in ("PROMPT_TUNING", "P_TUNING"):
            raise UserError(
                f"{folder / ADAPTER_FILE}: got {adapter['peft_type']} over {config.model_type}, "
                "whose head reads padding behind a soft prompt; expected an encoder's, or a LoRA."
            )
        logger.warning(
            "%s: a pair is put as lines `Sentence 1: ...` and `Sentence 2: ...`; it labels well "
            "only what looks as in its training",
            folder,
        )
    return {
        "model": source.name,
        "base_model_id": None,
        "label_names": names,
        "max_length": min(MAX_LENGTH, position_limit(config, tokenizer) - virtual),
        "weights": sorted(weights),
    }


def _read_adapter(folder: Path) -> dict[str, Any]:
    where = folder / ADAPTER_FILE
    adapter: dict[str, Any] = read_json(where)
    faults = []
    if not adapter.get("base_model_name_or_path"):
        faults.append(f"{where}: names no base_model_name_or_path; expected that of its training.")
    if (task := adapter.get("task_type")) not in (None, "SEQ_CLS"):
        faults.append(f"{where}: got task_type {task!r}; expected SEQ_CLS, a classifier's.")
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        faults.append(f"{folder}: damaged: {WEIGHT_FILES[0]} is missing.")
    raise_faults(faults)
    return adapter


def _find_base(folder: Path, adapter: Mapping[str, Any]) -> tuple[ModelSource, PretrainedConfig]:
    try:
        source = resolve_model(str(adapter["base_model_name_or_path"]))
        return source, load_config(source)
    except UserError as error:
        place = f"{folder / ADAPTER_FILE}: base_model_name_or_path:"
        raise UserError(*(f.replace("--model:", place, 1) for f in error.faults)) from error


def tokenizer_source(folder: Path, base: ModelSource) -> ModelSource:
    """Where an adapter's tokenizer is: beside it, if it was saved there, or its base model's."""
    is_here = (folder / "tokenizer_config.json").is_file()
    return ModelSource(str(folder), str(folder), None) if is_here else base


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """An adapter's weights, named as in the model without it where they are of such."""
    try:
        weights = load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # safetensors' and pickle's errors have no common base
        raise UserError(f"{folder}: damaged: its weights: {one_line(error)[:200]}") from error
    # A soft prompt's base is the model itself, a changed layer's is wrapped once more.
    return {
        name.removeprefix("base_model.").removeprefix("model."): weights[name] for name in weights
    }


def _output_names(config: PretrainedConfig, source: ModelSource) -> list[str]:
    """Weights with an entry for each label, by name."""
    config = copy.deepcopy(config)
    config.num_labels = MANY_LABELS
    try:
        model = init_classifier(config, "native")
    except ValueError as error:
        raise UserError(
            f"{source.name}: a {config.model_type}, which has no sequence classifier."
        ) from error
    return [name for name, p in model.named_parameters() if p.shape[0] == MANY_LABELS]


def rename_labels(info: dict[str, Any], class_names: str, where: str) -> dict[str, Any]:
    """Call the labels of a classifier so.

    Raises:
        UserError: If they are not as many.
    """
    names, num_labels = split_class_names(class_names), len(info["label_names"])
    if len(names) != num_labels:
        raise UserError(
            f"--class_names: got {len(names)} names; expected {num_labels}, as many as {where} has "
            "labels."
        )
    return {**info, "label_names": names}
