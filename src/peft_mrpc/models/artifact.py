"""The directory of a fine-tuned classifier: a model or an adapter, and how to classify with it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft_mrpc.errors import UserError, one_line
from peft_mrpc.models.classifier import Classifier
from peft_mrpc.models.external import (
    ADAPTER_FILE,
    read_external_adapter,
    read_external_model,
    tokenizer_source,
)
from peft_mrpc.models.loading import load_classification_model, load_tokenizer
from peft_mrpc.models.sources import ModelSource, quiet_transformers, resolve_model
from peft_mrpc.runs.run import (
    ARTIFACT_FILE,
    ARTIFACT_FOLDERS,
    load_run,
    read_artifact_record,
    seed_folders,
)
from peft_mrpc.serialization import read_json, write_json


def save_info(folder: Path, source: ModelSource, **entries: Any) -> None:
    """Write `peft_mrpc.json`: how to classify with this directory, beyond what PEFT saves.

    Args:
        folder: The directory.
        source: The base model; `push` replaces a local path by the Hub id.
        entries: What the kind of classifier needs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {"format_version": 1, "model": source.name, "base_model_id": source.hub_id} | entries
    write_json(folder / ARTIFACT_FILE, record)


def save_classifier(folder: Path, classifier: Classifier, source: ModelSource, method: str) -> None:
    """Save a model or an adapter, its tokenizer, and how to classify with them."""
    with quiet_transformers():
        classifier.model.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    save_info(
        folder,
        source,
        # If a tokenizer file is missing, transformers silently builds another tokenizer.
        files=sorted(p.name for p in folder.iterdir() if p.name != "README.md"),
        method=method,
        label_names=classifier.labels,
        max_length=classifier.max_length,
        threshold=classifier.threshold,
        pooling=getattr(classifier.model.config, "pooling", "native"),
        head_layer=classifier.head_layer,
        prompt_position=getattr(classifier.model.config, "prompt_position", "before"),
        quantization=classifier.quantization,
    )
    adapter_config = folder / ADAPTER_FILE
    if adapter_config.is_file() and source.hub_id:
        # PEFT writes the path that the base model was loaded from, which exists here only.
        config = json.loads(adapter_config.read_text("utf-8"))
        config["base_model_name_or_path"] = source.hub_id
        if config.get("tokenizer_name_or_path"):
            config["tokenizer_name_or_path"] = source.hub_id
        write_json(adapter_config, config)


def save_threshold(folder: Path, threshold: float) -> None:
    """Replace the threshold of a saved classifier."""
    write_json(folder / ARTIFACT_FILE, read_json(folder / ARTIFACT_FILE) | {"threshold": threshold})


def resolve_artifact(name: str) -> Path:
    """Find the directory of a classifier.

    Args:
        name: A Run, the directory of an adapter or a model, or `owner/name` on the Hub.
    Raises:
        UserError: If it does not exist or cannot be downloaded.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        path = _download(name)
    if seed_folders(path):
        path = load_run(path).model_run.path
    for folder in ARTIFACT_FOLDERS:
        if (path / folder / ARTIFACT_FILE).is_file():
            return path / folder
    return path


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"run: got {name!r}, which is not a directory; expected a Run, an adapter or model "
            "directory, or owner/name on the Hub."
        )
    try:
        return Path(snapshot_download(name))
    except Exception as error:  # not found, no access, no network
        raise UserError(
            f"run: got {name!r}, which is not a directory and could not be downloaded: "
            f"{one_line(error)[:200]}"
        ) from error


def read_info(folder: Path, name: str) -> dict[str, Any]:
    """Read how to classify with a directory.

    Args:
        folder: A directory that this package or another tool wrote.
        name: Its name, for error messages.
    Raises:
        UserError: If the directory contains no classifier or lacks a file.
    """
    if (folder / ARTIFACT_FILE).is_file():
        return read_artifact_record(folder)
    if (folder / ADAPTER_FILE).is_file():
        return read_external_adapter(folder)
    if (folder / "config.json").is_file():
        return read_external_model(folder)
    raise UserError(
        f"run: got {name!r}, which contains no {ARTIFACT_FILE}, {ADAPTER_FILE} or config.json; "
        "expected a Run, an adapter or a model."
    )


def base_model_source(info: dict[str, Any]) -> ModelSource:
    """Resolve the base model by its local name, or else by its Hub id."""
    try:
        return resolve_model(info["model"], info["base_model_id"])
    except UserError:
        if info["base_model_id"] in (None, info["model"]):
            raise
        return resolve_model(info["base_model_id"])


def load_fine_tuned(folder: Path, info: dict[str, Any]) -> Classifier:
    """Load an adapter or a model that was fine-tuned to classify.

    Args:
        folder: The directory.
        info: Its description, as `read_info` returns it.
    Raises:
        UserError: If the base model is missing or the weights do not load.
    """
    is_adapter = (folder / ADAPTER_FILE).is_file()
    return _load_adapter(folder, info) if is_adapter else _load_model(folder, info)


def _load_adapter(folder: Path, info: dict[str, Any]) -> Classifier:
    from peft import PeftModel

    source = replace(base_model_source(info), head_layer=info.get("head_layer"))
    tokenizer = load_tokenizer(tokenizer_source(folder, source))
    quantization = info.get("quantization", "none")
    base = load_classification_model(
        source,
        info["label_names"],
        tokenizer,
        info.get("pooling", "native"),
        trained="weights" in info,
        in_adapter=info.get("weights", ()),
        quantization=quantization,
        prompt_position=info.get("prompt_position", "before"),
    )
    model = PeftModel.from_pretrained(base, str(folder))
    return _pair_classifier(model, tokenizer, info)


def _load_model(folder: Path, info: dict[str, Any]) -> Classifier:
    source = ModelSource(str(folder), str(folder), None)
    tokenizer = load_tokenizer(source)
    model = load_classification_model(source, info["label_names"], tokenizer, trained=True)
    return _pair_classifier(model, tokenizer, info)


def _pair_classifier(model: Any, tokenizer: Any, info: dict[str, Any]) -> Classifier:
    threshold = float(info.get("threshold", 0.5))  # models of other tools have none
    return Classifier(
        model,
        tokenizer,
        info["label_names"],
        info["max_length"],
        info.get("quantization", "none"),
        threshold,
        info.get("head_layer"),
    )
