"""Read models and adapters that other tools have saved as classifiers."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.utils import load_peft_weights
from transformers import PretrainedConfig

from peft_mrpc.data.columns import class_name_faults, split_class_names
from peft_mrpc.errors import UserError, one_line, raise_faults
from peft_mrpc.models.loading import (
    config_label_names,
    init_classifier,
    load_config,
    load_tokenizer,
    output_names,
    position_limit,
)
from peft_mrpc.models.sources import ModelSource, Trust, resolve_model
from peft_mrpc.serialization import read_json

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# Maximum tokens of an example: these files do not state that of the training.
MAX_LENGTH = 128
# Labels of a model with one output, the logit of the second one.
BINARY_LABELS = ["0", "1"]


def read_external_model(folder: Path) -> dict[str, Any]:
    """Describe a sequence classifier that another tool saved, as in `peft_mrpc.json`.

    A model with one output is a binary classifier: `outputs` holds the name of its output.

    Raises:
        UserError: If the model is not a classifier with one label for each example, or its labels
            have no names of their own.
    """
    where = folder / "config.json"
    config = _read_object(where)
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise UserError(
            f"{where}: got problem_type {problem!r}; expected single_label_classification: one of "
            "the labels for each example."
        )
    names = _read_label_names(config, where)
    if len(names) == 1:
        logger.info("%s: one output; the probability of label 1 is its sigmoid", folder)
        return {"label_names": BINARY_LABELS, "outputs": names, "max_length": MAX_LENGTH}
    return {"label_names": names, "max_length": MAX_LENGTH}


def _read_object(where: Path) -> dict[str, Any]:
    """Read a file with a JSON object.

    Raises:
        UserError: If it is missing or is not a JSON object.
    """
    content = read_json(where)
    if not isinstance(content, dict):
        raise UserError(f"{where}: got {str(content)[:40]}; expected a JSON object.")
    return content


def _read_label_names(config: Mapping[str, Any] | PretrainedConfig, where: Path) -> list[str]:
    """The label names of a configuration, by index.

    Raises:
        UserError: If they are not different names of the positions from 0 on.
    """
    labels = (config if isinstance(config, Mapping) else config.to_dict()).get("id2label") or {}
    positions = {*map(str, labels)} if isinstance(labels, dict) else {""}
    names = {*map(str, labels.values())} if isinstance(labels, dict) else {""}
    if positions != {*map(str, range(len(labels)))} or len(names) < len(labels):
        raise UserError(
            f"{where}: got id2label {str(labels)[:200]}; expected different names of the positions "
            "from 0 on."
        )
    return config_label_names(config)


def read_external_adapter(folder: Path, trust: Trust) -> dict[str, Any]:
    """Describe an adapter that PEFT saved, as in `peft_mrpc.json`.

    Args:
        folder: The directory of the adapter.
        trust: What may run while it is loaded.
    Raises:
        UserError: If it is not a classifier's, is damaged, or its base model cannot be loaded.
    """
    adapter = _read_adapter(folder)
    weights = read_adapter_weights(folder, trust)
    source, config = _find_base(folder, adapter, trust)
    outputs = [weights[name] for name in output_names(config, source.name) if name in weights]
    if outputs:
        names = [f"LABEL_{number}" for number in range(len(outputs[0]))]
    else:  # the adapter has no head: the base model is a classifier
        names = _read_label_names(config, folder)
    if len(names) < 2:
        raise UserError(f"{folder}: got a head with one output; expected one output per label.")
    num_virtual = int(adapter.get("num_virtual_tokens") or 0)
    num_embeddings = _num_embeddings(config, weights)
    if num_embeddings is not None:
        config.get_text_config().vocab_size = num_embeddings
    tokenizer = load_tokenizer(tokenizer_source(folder, source), config)
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
        "num_embeddings": num_embeddings,
    }


def _num_embeddings(config: PretrainedConfig, weights: Mapping[str, torch.Tensor]) -> int | None:
    """The number of token embeddings in an adapter that was trained with added tokens."""
    model = init_classifier(config, "native")
    embeddings = model.get_input_embeddings().weight
    names = [name for name, parameter in model.named_parameters() if parameter is embeddings]
    return next((len(weights[name]) for name in names if name in weights), None)


def _read_adapter(folder: Path) -> dict[str, Any]:
    where = folder / ADAPTER_FILE
    adapter = _read_object(where)
    faults = []
    if not adapter.get("base_model_name_or_path"):
        faults.append(f"{where}: got no base_model_name_or_path; expected that of the training.")
    if (task := adapter.get("task_type")) not in (None, "SEQ_CLS"):
        faults.append(f"{where}: got task_type {task!r}; expected SEQ_CLS.")
    raise_faults(faults)
    return adapter


def _find_base(
    folder: Path, adapter: Mapping[str, Any], trust: Trust
) -> tuple[ModelSource, PretrainedConfig]:
    try:
        source = resolve_model(str(adapter["base_model_name_or_path"]), trust=trust)
        return source, load_config(source)
    except UserError as error:
        place = f"{folder / ADAPTER_FILE}: base_model_name_or_path:"
        raise UserError(*(f.replace("model:", place, 1) for f in error.faults)) from error


def tokenizer_source(folder: Path, base: ModelSource) -> ModelSource:
    """The source of an adapter's tokenizer: the adapter's directory, or else the base model."""
    is_here = (folder / "tokenizer_config.json").is_file()
    return replace(base, name=str(folder), location=str(folder)) if is_here else base


def read_adapter_weights(folder: Path, trust: Trust) -> dict[str, torch.Tensor]:
    """Load the weights of an adapter; those of the base model have the base model's names.

    Raises:
        UserError: If they are missing, damaged, or in a pickle file that is not allowed.
    """
    safe, pickled = ((folder / name).is_file() for name in WEIGHT_FILES)
    if not (safe or pickled):
        raise UserError(f"{folder}: damaged: {WEIGHT_FILES[0]} is missing.")
    if not safe and not trust.pickle:
        raise UserError(
            f"{folder}: got {WEIGHT_FILES[1]}; expected {WEIGHT_FILES[0]}. Pickle files can "
            "execute code: if you trust it, set allow_pickle."
        )
    try:
        weights = load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # the errors of safetensors and pickle have no common base
        raise UserError(f"{folder}: damaged: its weights: {one_line(error)[:200]}") from error
    # PEFT wraps the model once for soft prompts, twice for adapters that change layers.
    return {
        name.removeprefix("base_model.").removeprefix("model."): weights[name] for name in weights
    }


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
