"""The directory of a fine-tuned classifier: a model or an adapter, and how to classify with it."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PretrainedConfig

from peft_mrpc.errors import UserError, one_line
from peft_mrpc.models.architecture import base_classifier
from peft_mrpc.models.classifier import Classifier
from peft_mrpc.models.external import (
    ADAPTER_FILE,
    read_adapter_weights,
    read_external_adapter,
    read_external_model,
    tokenizer_source,
)
from peft_mrpc.models.loading import (
    config_dict,
    config_label_names,
    has_default_labels,
    load_classification_model,
    load_config,
    load_pretrained,
    load_tokenizer,
    position_limit,
    prepare_quantized,
    weight_options,
)
from peft_mrpc.models.modeling_sentence_pair import SentencePairConfig
from peft_mrpc.models.modeling_sentence_pair_adapter import (
    SentencePairAdapterConfig,
    SentencePairAdapterForSequenceClassification,
)
from peft_mrpc.models.sources import (
    NO_TRUST,
    ModelSource,
    Trust,
    quiet_transformers,
    resolve_model,
)
from peft_mrpc.runs.run import (
    ARTIFACT_FILE,
    ARTIFACT_FOLDERS,
    CARD_FILE,
    load_run,
    read_artifact_record,
    seed_folders,
)
from peft_mrpc.serialization import read_json, user_path, write_json

logger = logging.getLogger(__name__)

# Where PEFT found the base model and its tokenizer, on this machine.
PLACES = ("base_model_name_or_path", "tokenizer_name_or_path", "revision")
CONFIG_FILE, TOKENIZER_FILE = "config.json", "tokenizer_config.json"


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


def save_classifier(
    folder: Path,
    classifier: Classifier,
    source: ModelSource,
    base_config: PretrainedConfig,
    method: str,
) -> None:
    """Save a model or an adapter, its tokenizer, and how to classify with them.

    An adapter that PEFT alone would load wrongly is saved with the code that loads it.

    Args:
        folder: The directory.
        classifier: The fine-tuned classifier.
        source: The base model.
        base_config: The base model's configuration.
        method: Name of the method.
    """
    model = classifier.model
    # The architecture of a base model that this package has trained is ours.
    is_native = not isinstance(model.config, SentencePairConfig) or isinstance(
        base_config, SentencePairConfig
    )
    if isinstance(model, PeftModel) and not (
        is_native and _has_labels_of_base(base_config, classifier.labels)
    ):
        model = _with_code(classifier, source, is_native)
    if not isinstance(model, PeftModel):
        model.config.threshold = classifier.threshold
    with quiet_transformers():
        model.save_pretrained(folder)
    (folder / CARD_FILE).unlink(missing_ok=True)  # PEFT's, with local paths; the Run has its own
    classifier.tokenizer.save_pretrained(folder)
    # Other tools read the maximum length there.
    settings = read_json(folder / TOKENIZER_FILE)
    write_json(folder / TOKENIZER_FILE, settings | {"model_max_length": classifier.max_length})
    save_info(
        folder,
        source,
        # If a tokenizer file is missing, transformers silently builds another tokenizer.
        files=sorted(p.name for p in folder.iterdir()),
        method=method,
        label_names=classifier.labels,
        max_length=classifier.max_length,
        threshold=classifier.threshold,
        pooling="native" if is_native else classifier.model.config.pooling,
        head_layer=classifier.head_layer,
        prompt_position=getattr(classifier.model.config, "prompt_position", "before"),
        quantization=classifier.quantization,
    )
    if (folder / ADAPTER_FILE).is_file():
        config = read_json(folder / ADAPTER_FILE)
        config |= {name: _base_name(source) for name in PLACES[:2] if config.get(name)}
        write_json(folder / ADAPTER_FILE, config)


def _base_name(source: ModelSource) -> str:
    """Where other libraries find the base model, also without a network; `push` writes its Hub id.

    A Hub model may have been loaded from the cache, by a path.
    """
    return source.name if source.name == source.hub_id else source.location


def _has_labels_of_base(base_config: PretrainedConfig, label_names: Sequence[str]) -> bool:
    """Whether the base model's label names are right for an adapter, or are only numbers.

    With another number of labels, PEFT loads the adapter only if it is told the number.
    """
    names = config_label_names(base_config)
    same = names == list(label_names)
    return same or has_default_labels(names) or len(names) != len(label_names)


def _with_code(
    classifier: Classifier, source: ModelSource, is_native: bool
) -> SentencePairAdapterForSequenceClassification:
    """The adapter as a model that transformers loads with the code beside it."""
    model = classifier.model
    config = base_classifier(model).config
    values = config_dict(config)
    if is_native:
        labels = {"id2label": config.id2label, "label2id": config.label2id}
        values = {"encoder": values, "pooling": "native", **labels}
    adapter = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in model.active_peft_config.to_dict().items()
        if name not in PLACES
    }
    if adapter.get("prompt_tuning_init") == "TEXT":  # needs a tokenizer; the weights replace it
        names = ("prompt_tuning_init_text", "tokenizer_kwargs")
        adapter |= {"prompt_tuning_init": "RANDOM", **dict.fromkeys(names)}
    weights = weight_options(classifier.quantization, torch.float32)
    quantization = weights.get("quantization_config")
    values |= {
        "base_model_name_or_path": _base_name(source),
        "adapter": adapter,
        "quantization": quantization and quantization.to_dict(),
    }
    values.pop("model_type", None)
    values.pop("auto_map", None)
    return SentencePairAdapterForSequenceClassification(SentencePairAdapterConfig(**values), model)


def save_threshold(folder: Path, threshold: float) -> None:
    """Replace the threshold of a saved classifier."""
    for file in (folder / ARTIFACT_FILE, folder / CONFIG_FILE):
        if file.is_file():
            write_json(file, read_json(file) | {"threshold": threshold})


def resolve_artifact(name: str) -> Path:
    """Find the directory of a classifier.

    Args:
        name: A Run, the directory of an adapter or a model, or `owner/name` on the Hub.
    Raises:
        UserError: If it does not exist or cannot be downloaded.
    """
    path = user_path(name)
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


def read_info(folder: Path, name: str, trust: Trust = NO_TRUST) -> dict[str, Any]:
    """Read how to classify with a directory.

    Args:
        folder: A directory that this package or another tool wrote.
        name: Its name, for error messages.
        trust: What may run while it is read.
    Returns:
        The content of `peft_mrpc.json`, or the same for what another tool wrote.
    Raises:
        UserError: If the directory contains no classifier or lacks a file.
    """
    if (folder / ARTIFACT_FILE).is_file():
        return read_artifact_record(folder)
    if (folder / ADAPTER_FILE).is_file():
        return read_external_adapter(folder, trust)
    if (folder / CONFIG_FILE).is_file():
        return read_external_model(folder)
    raise UserError(
        f"run: got {name!r}, which contains no {ARTIFACT_FILE}, {ADAPTER_FILE} or config.json; "
        "expected a Run, an adapter or a model."
    )


def base_model_source(info: Mapping[str, Any], trust: Trust = NO_TRUST) -> ModelSource:
    """Resolve the base model by its local name, or else by its Hub id."""
    try:
        return resolve_model(info["model"], info["base_model_id"], trust)
    except UserError:
        if info["base_model_id"] in (None, info["model"]):
            raise
        return resolve_model(info["base_model_id"], trust=trust)


def load_fine_tuned(folder: Path, info: Mapping[str, Any], trust: Trust = NO_TRUST) -> Classifier:
    """Load an adapter or a model that was fine-tuned to classify.

    Args:
        folder: The directory.
        info: Its description, as `read_info` returns it.
        trust: What may run while it is loaded.
    Raises:
        UserError: If the base model is missing or the weights do not load.
    """
    if (folder / ADAPTER_FILE).is_file():
        weights = read_adapter_weights(folder, trust)
        return _load_adapter(folder, info, base_model_source(info, trust), list(weights))
    config = read_json(folder / CONFIG_FILE)
    if (folder / ARTIFACT_FILE).is_file() and config_label_names(config) != info["label_names"]:
        raise UserError(
            f"{folder / ARTIFACT_FILE}: damaged: label_names differ from id2label in {CONFIG_FILE}."
        )
    if config.get("model_type") == SentencePairAdapterConfig.model_type:
        read_adapter_weights(folder, trust)
        name = config.get("base_model_name_or_path")
        base = base_model_source({"model": name, "base_model_id": None, **info}, trust)
        return _load_adapter_with_code(folder, info, base)
    return _load_model(folder, info, trust)


def _load_adapter(
    folder: Path, info: Mapping[str, Any], base_source: ModelSource, weight_names: Sequence[str]
) -> Classifier:
    """Load an adapter that PEFT saved; earlier versions saved those with our heads so, too."""
    source = replace(base_source, head_layer=info.get("head_layer"))
    config = load_config(source)
    num_embeddings = info.get("num_embeddings")
    if num_embeddings is not None:
        config.get_text_config().vocab_size = num_embeddings
    tokenizer = load_tokenizer(tokenizer_source(folder, source), config)
    base = load_classification_model(
        source,
        info["label_names"],
        tokenizer,
        info.get("pooling", "native"),
        trained=True,
        in_adapter=weight_names,
        quantization=info.get("quantization", "none"),
        prompt_position=info.get("prompt_position", "before"),
    )
    if num_embeddings is not None:
        base.resize_token_embeddings(num_embeddings, mean_resizing=False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(base, str(folder))
    except Exception as error:  # PEFT checks few values of the file, and torch the shapes
        raise UserError(f"{folder}: damaged: {one_line(error)[:300]}") from error
    return _pair_classifier(model, tokenizer, info)


def _load_adapter_with_code(folder: Path, info: Mapping[str, Any], base: ModelSource) -> Classifier:
    """Load an adapter that was saved with its code, by the same code in this package."""
    source = replace(base, name=str(folder), location=str(folder))
    tokenizer = load_tokenizer(source)
    quantization = info.get("quantization", "none")
    loaded = load_pretrained(
        SentencePairAdapterForSequenceClassification,
        source,
        base_model_name_or_path=base.location,
        **weight_options(quantization, torch.float32),
    )
    if quantization != "none":
        prepare_quantized(loaded.adapted)
    return _pair_classifier(loaded.adapted, tokenizer, info)


def _load_model(folder: Path, info: Mapping[str, Any], trust: Trust) -> Classifier:
    source = ModelSource(str(folder), str(folder), None, trust=trust)
    tokenizer = load_tokenizer(source)
    outputs = info.get("outputs", info["label_names"])
    model = load_classification_model(source, outputs, tokenizer, trained=True)
    return _pair_classifier(model, tokenizer, info)


def _pair_classifier(model: Any, tokenizer: Any, info: Mapping[str, Any]) -> Classifier:
    max_length, limit = info["max_length"], position_limit(model.config, tokenizer)
    if max_length > limit:
        logger.info(
            "max_length: the model has %d positions, %d tokens are too many", limit, max_length
        )
    threshold = float(info.get("threshold", 0.5))  # models of other tools have none
    return Classifier(
        model,
        tokenizer,
        info["label_names"],
        min(max_length, limit),
        info.get("quantization", "none"),
        threshold,
        info.get("head_layer"),
    )
