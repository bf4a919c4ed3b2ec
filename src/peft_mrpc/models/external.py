"""Read models and adapters that other tools have saved as classifiers."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils import load_peft_weights
from transformers import PretrainedConfig

from peft_mrpc.data.columns import class_name_faults, split_class_names
from peft_mrpc.errors import UserError, one_line, raise_faults
from peft_mrpc.models.loading import (
    init_classifier,
    load_config,
    load_tokenizer,
    position_limit,
)
from peft_mrpc.models.sources import ModelSource, resolve_model
from peft_mrpc.serialization import read_json

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# Maximum tokens of an example: these files do not state that of the training.
MAX_LENGTH = 128
# A number of labels that no dimension of a model equals: it identifies the head's output.
MARKER_NUM_LABELS = 7919


def read_external_model(folder: Path) -> dict[str, Any]:
    """Describe a sequence classifier that another tool saved, as in `peft_mrpc.json`."""
    return {
        "label_names": _label_names(read_json(folder / "config.json")),
        "max_length": MAX_LENGTH,
    }


def _label_names(config: Mapping[str, Any]) -> list[str]:
    # The keys are sorted as text: "10" before "2".
    labels = sorted((config.get("id2label") or {}).items(), key=lambda item: int(item[0]))
    return [name for _, name in labels] or ["LABEL_0", "LABEL_1"]


def read_external_adapter(folder: Path) -> dict[str, Any]:
    """Describe an adapter that PEFT saved, as in `peft_mrpc.json`.

    Raises:
        UserError: If it is not a classifier's, is damaged, or its base model cannot be loaded.
    """
    adapter = _read_adapter(folder)
    source, config = _find_base(folder, adapter)
    weights = _read_weights(folder)
    outputs = [weights[name] for name in _output_names(config, source) if name in weights]
    if outputs:
        names = [f"LABEL_{number}" for number in range(len(outputs[0]))]
    else:  # the adapter has no head: the base model is a classifier
        names = _label_names(config.to_dict())
    if len(names) < 2:
        raise UserError(f"{folder}: got a head with one output; expected one output per label.")
    num_virtual = int(adapter.get("num_virtual_tokens") or 0)
    tokenizer = load_tokenizer(tokenizer_source(folder, source))
    if tokenizer.sep_token is None:
        if adapter.get("peft_type") in ("PROMPT_TUNING", "P_TUNING"):
            raise UserError(
                f"{folder / ADAPTER_FILE}: got {adapter['peft_type']} for {config.model_type}, "
                "whose head reads a padding token behind a soft prompt; expected an adapter of an "
                "encoder, or LoRA."
            )
        logger.warning(
            "%s: examples are formatted as the lines `Sentence 1: ...` and `Sentence 2: ...`; if "
            "the training used another format, the predictions are unreliable",
            folder,
        )
    return {
        "model": source.name,
        "base_model_id": None,
        "label_names": names,
        "max_length": min(MAX_LENGTH, position_limit(config, tokenizer) - num_virtual),
        "weights": sorted(weights),
    }


def _read_adapter(folder: Path) -> dict[str, Any]:
    where = folder / ADAPTER_FILE
    adapter: dict[str, Any] = read_json(where)
    faults = []
    if not adapter.get("base_model_name_or_path"):
        faults.append(f"{where}: got no base_model_name_or_path; expected that of the training.")
    if (task := adapter.get("task_type")) not in (None, "SEQ_CLS"):
        faults.append(f"{where}: got task_type {task!r}; expected SEQ_CLS.")
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
        raise UserError(*(f.replace("model:", place, 1) for f in error.faults)) from error


def tokenizer_source(folder: Path, base: ModelSource) -> ModelSource:
    """The source of an adapter's tokenizer: the adapter's directory, or else the base model."""
    is_here = (folder / "tokenizer_config.json").is_file()
    return ModelSource(str(folder), str(folder), None) if is_here else base


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Load the weights of an adapter; those of the base model have the base model's names."""
    try:
        weights = load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # the errors of safetensors and pickle have no common base
        raise UserError(f"{folder}: damaged: its weights: {one_line(error)[:200]}") from error
    # PEFT wraps the model once for soft prompts, twice for adapters that change layers.
    return {
        name.removeprefix("base_model.").removeprefix("model."): weights[name] for name in weights
    }


def _output_names(config: PretrainedConfig, source: ModelSource) -> list[str]:
    """The names of the weights whose first dimension is the number of labels."""
    config = copy.deepcopy(config)
    config.num_labels = MARKER_NUM_LABELS
    try:
        model = init_classifier(config, "native")
    except ValueError as error:
        raise UserError(
            f"{source.name}: got a {config.model_type}; expected an architecture with a sequence "
            "classifier."
        ) from error
    return [name for name, p in model.named_parameters() if p.shape[0] == MARKER_NUM_LABELS]


def rename_labels(info: dict[str, Any], class_names: str, where: str) -> dict[str, Any]:
    """Rename the labels of a classifier.

    Args:
        info: Its description.
        class_names: New names, comma-separated.
        where: Name of the classifier, for error messages.
    Raises:
        UserError: If the number of names is not the number of labels.
    """
    raise_faults(class_name_faults(class_names))
    names, num_labels = split_class_names(class_names), len(info["label_names"])
    if len(names) != num_labels:
        raise UserError(
            f"class_names: got {len(names)} names; expected {num_labels}, the number of labels of "
            f"{where}."
        )
    return {**info, "label_names": names}
