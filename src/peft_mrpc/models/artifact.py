"""The folder that holds a trained classifier or a prompt: its way to disk and back."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from peft_mrpc.config import PromptConfig
from peft_mrpc.errors import UserError, one_line
from peft_mrpc.models.classifier import Classifier, Predictor
from peft_mrpc.models.external import (
    ADAPTER_FILE,
    describe_plain_adapter,
    describe_plain_model,
    rename_labels,
    tokenizer_source,
)
from peft_mrpc.models.hub import ModelSource, quiet_transformers, resolve_model
from peft_mrpc.models.loading import load_causal_lm, load_classifier, load_tokenizer
from peft_mrpc.prompting.calibration import Calibration
from peft_mrpc.prompting.demonstrations import build_show
from peft_mrpc.prompting.endpoint import EndpointEngine
from peft_mrpc.prompting.local_model import Engine, LocalEngine, PromptClassifier
from peft_mrpc.prompting.prompt_encoder import Show
from peft_mrpc.prompting.template_files import build_template
from peft_mrpc.prompting.templates import Demonstration
from peft_mrpc.runs.run import (
    ARTIFACT_FILE,
    ARTIFACT_FOLDERS,
    POOL_FILE,
    load_run,
)
from peft_mrpc.serialization import read_json, read_json_lines, write_json, write_json_lines


def save_info(folder: Path, source: ModelSource, **facts: Any) -> None:
    """Write what `transformers` and PEFT do not keep: how this folder classifies pairs.

    A model of the user's own disk is named by its Hub id, or not at all once it is published.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {"format_version": 1, "model": source.name, "base_model_id": source.hub_id} | facts
    write_json(folder / ARTIFACT_FILE, record)


def save_classifier(folder: Path, classifier: Classifier, source: ModelSource, method: str) -> None:
    """Save a model or an adapter, its tokenizer, and what is needed to classify as trained."""
    with quiet_transformers():
        classifier.model.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    save_info(
        folder,
        source,
        # A tokenizer that lost its file would be replaced by another without a word.
        files=sorted(p.name for p in folder.iterdir() if p.name != "README.md"),
        method=method,
        label_names=classifier.label_names,
        max_length=classifier.max_length,
        threshold=classifier.threshold,
        pooling=getattr(classifier.model.config, "pooling", "native"),
        head_layer=classifier.head_layer,
        prompt_position=getattr(classifier.model.config, "prompt_position", "before"),
        quantization=classifier.quantization,
    )
    adapter_config = folder / ADAPTER_FILE
    if adapter_config.is_file() and source.hub_id:
        # PEFT writes the path it was loaded from, which is good on this machine alone.
        config = json.loads(adapter_config.read_text("utf-8"))
        config["base_model_name_or_path"] = source.hub_id
        if config.get("tokenizer_name_or_path"):
            config["tokenizer_name_or_path"] = source.hub_id
        write_json(adapter_config, config)


def save_prompt(
    folder: Path,
    classifier: PromptClassifier,
    source: ModelSource,
    config: PromptConfig,
    shown: Sequence[Demonstration],
    calibrated_on: str,
) -> None:
    """Write all that asks the same questions again; the pool of nearest pairs in a file of its own.

    Args:
        folder: The artifact's.
        classifier: Templates and calibration.
        source: The model.
        config: How it was asked.
        shown: The demonstrations, or the pairs that the nearest are found among.
        calibrated_on: The split that the calibration was fitted to, where it looks at one.
    """
    calibration = classifier.calibration
    pairs = [asdict(one) for one in shown]
    save_info(
        folder,
        source,
        method="hard_prompt",
        label_names=classifier.label_names,
        max_length=config.max_length,
        batch_tokens=config.batch_tokens,
        device_map=config.device_map,
        quantization=config.quantization,
        # Not where: whoever made this would say whom texts and key are sent to.
        is_served=config.endpoint is not None,
        templates=[template.record() for template in classifier.templates],
        demonstrations={
            "count": config.num_demonstrations,
            "how": config.demonstrations,
            "shown": [] if config.demonstrations == "nearest" else pairs,
        },
        calibration=calibration and {**calibration.record(), "split": calibrated_on},
    )
    if pairs and config.demonstrations == "nearest":
        write_json_lines(folder / POOL_FILE, pairs)


def save_threshold(folder: Path, threshold: float) -> None:
    """Write the threshold that was chosen after the classifier was saved."""
    write_json(folder / ARTIFACT_FILE, read_json(folder / ARTIFACT_FILE) | {"threshold": threshold})


def find_artifact(name: str) -> Path:
    """The folder to load: a Run's, an adapter's or model's own, or one fetched from the Hub.

    Raises:
        UserError: If there is none.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        path = _download(name)
    if (path / "seeds").is_dir():
        path = load_run(path).model_run.path
    for folder in ARTIFACT_FOLDERS:
        if (path / folder / ARTIFACT_FILE).is_file():
            return path / folder
    return path


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"RUN: got {name!r}, which is no directory; expected a Run, an adapter or model "
            "directory, or owner/name on the Hub."
        )
    try:
        return Path(snapshot_download(name))
    except Exception as error:  # not found, no access, no network: each with the Hub's own words
        raise UserError(
            f"RUN: got {name!r}, which is no directory here and could not be fetched from the Hub: "
            f"{one_line(error)[:200]}"
        ) from error


def load_predictor(
    name: str, class_names: str | None = None, endpoint: str | None = None
) -> Predictor:
    """Load what a Run, a directory or a Hub repository holds.

    Args:
        name: Its name.
        class_names: Names of the labels, comma-separated, where another tool saved it.
        endpoint: Where the model is served that a hard prompt asks, if it is.
    Raises:
        UserError: If it holds nothing that classifies pairs.
    """
    folder = find_artifact(name)
    info = _describe(folder, name)
    if class_names is not None:
        if (folder / ARTIFACT_FILE).is_file():
            own = ", ".join(info["label_names"])
            raise UserError(f"--class_names: {name} names its labels itself ({own}); drop it.")
        info = rename_labels(info, class_names, name)
    is_served = bool(info.get("is_served") or info.get("endpoint"))
    if is_served and endpoint is None:
        raise UserError(
            f"--endpoint: got none, but {name} asks {info['model']} as it is served; expected "
            "the server's address, http://HOST:PORT/v1."
        )
    if endpoint is not None and not is_served:
        raise UserError(f"--endpoint: got {endpoint}, but {name} asks no served model; drop it.")
    info["endpoint"] = endpoint  # of whoever labels, never of whoever made it
    loader = next(
        load for file, load in LOADERS.items() if file is None or (folder / file).is_file()
    )
    return loader(folder, info)


def _describe(folder: Path, name: str) -> dict[str, Any]:
    """How a folder classifies pairs, as we or another tool wrote it."""
    if (folder / ARTIFACT_FILE).is_file():
        info = read_json(folder / ARTIFACT_FILE)
        missing = [file for file in info.get("files", ()) if not (folder / file).is_file()]
        if missing:
            raise UserError(f"{folder}: damaged: {', '.join(missing)} is missing.")
        return dict(info)
    if (folder / ADAPTER_FILE).is_file():
        return describe_plain_adapter(folder)
    if (folder / "config.json").is_file():
        return describe_plain_model(folder)
    raise UserError(
        f"RUN: got {name!r}, which holds neither {ARTIFACT_FILE} nor an {ADAPTER_FILE} nor a "
        "model's config.json; expected a Run, or what one published."
    )


def _base_source(info: dict[str, Any]) -> ModelSource:
    """The base model under its local name if it is here, under its Hub id if not."""
    try:
        return resolve_model(info["model"], info["base_model_id"])
    except UserError:
        if info["base_model_id"] in (None, info["model"]):
            raise
        return resolve_model(info["base_model_id"])


def _load_adapter(folder: Path, info: dict[str, Any]) -> Predictor:
    from peft import PeftModel

    source = replace(_base_source(info), head_layer=info.get("head_layer"))
    tokenizer = load_tokenizer(tokenizer_source(folder, source))
    quantization = info.get("quantization", "none")
    base = load_classifier(
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


def _load_model(folder: Path, info: dict[str, Any]) -> Predictor:
    source = ModelSource(str(folder), str(folder), None)
    tokenizer = load_tokenizer(source)
    model = load_classifier(source, info["label_names"], tokenizer, trained=True)
    return _pair_classifier(model, tokenizer, info)


def _pair_classifier(model: Any, tokenizer: Any, info: dict[str, Any]) -> Classifier:
    threshold = float(info.get("threshold", 0.5))  # another tool's model has none
    return Classifier(
        model,
        tokenizer,
        info["label_names"],
        info["max_length"],
        info.get("quantization", "none"),
        threshold,
        info.get("head_layer"),
    )


def _load_prompt(folder: Path, info: dict[str, Any]) -> Predictor:
    where = str(folder / ARTIFACT_FILE)
    calibration = info.get("calibration")
    return PromptClassifier(
        _load_engine(info),
        [build_template(one, where) for one in info.get("templates") or [info["template"]]],
        info["label_names"],
        show=_load_demonstrations(folder, info),
        calibration=None if calibration is None else Calibration.from_record(calibration),
    )


def _load_engine(info: dict[str, Any]) -> Engine:
    if info.get("endpoint"):
        return EndpointEngine(info["endpoint"], info["model"])
    source = _base_source(info)
    device_map = info.get("device_map", "replica")
    model = load_causal_lm(source, info["quantization"], device_map)
    tokenizer = load_tokenizer(source)
    return LocalEngine(model, tokenizer, info["max_length"], info.get("batch_tokens"))


def _load_demonstrations(folder: Path, info: dict[str, Any]) -> Show:
    """What shows each pair the demonstrations that it was scored with."""
    about = info.get("demonstrations") or {"count": 0, "how": "", "shown": []}
    is_nearest = about["count"] and about["how"] == "nearest"
    rows = read_json_lines(folder / POOL_FILE) if is_nearest else about["shown"]
    shown = [Demonstration(**row) for row in rows]
    return build_show(about["how"], about["count"], shown, info["label_names"])


# What marks each kind of folder; the last is what remains.
LOADERS: dict[str | None, Callable[[Path, dict[str, Any]], Predictor]] = {
    ADAPTER_FILE: _load_adapter,
    "config.json": _load_model,
    None: _load_prompt,
}
