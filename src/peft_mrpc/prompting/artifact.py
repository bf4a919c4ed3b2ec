"""The directory of a hard prompt: templates, demonstrations and calibration, saved and loaded."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft_mrpc.config import PromptConfig
from peft_mrpc.errors import UserError, raise_faults
from peft_mrpc.models.artifact import base_model_source, save_info
from peft_mrpc.models.hub import ModelSource
from peft_mrpc.models.loading import load_causal_lm, load_tokenizer
from peft_mrpc.prompting.calibration import Calibration
from peft_mrpc.prompting.demonstrations import build_show
from peft_mrpc.prompting.endpoint import EndpointEngine, address_faults
from peft_mrpc.prompting.local_model import Engine, LocalEngine, PromptClassifier
from peft_mrpc.prompting.prompt_encoder import Show
from peft_mrpc.prompting.template_files import build_template
from peft_mrpc.prompting.templates import Demonstration
from peft_mrpc.runs.run import ARTIFACT_FILE, POOL_FILE
from peft_mrpc.serialization import read_json_lines, write_json_lines


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
        label_names=classifier.labels,
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


def load_prompt(
    folder: Path, info: dict[str, Any], endpoint: str | None = None
) -> PromptClassifier:
    """Load a prompted causal LM as a classifier.

    Args:
        folder: The directory.
        info: Its description, as `models.artifact.read_info` returns it.
        endpoint: Address of the server, for a prompt that was evaluated with a served model.
    Raises:
        UserError: If the address is missing or has no use, or the model does not load.
    """
    raise_faults(address_faults(endpoint))
    is_served = bool(info.get("is_served") or info.get("endpoint"))
    if is_served and endpoint is None:
        raise UserError(
            f"endpoint: got none, but {folder} was evaluated with {info['model']} on a server; "
            "expected the server's address, http://HOST:PORT/v1."
        )
    if endpoint is not None and not is_served:
        raise UserError(f"endpoint: got {endpoint}, but {folder} uses no served model; drop it.")
    where = str(folder / ARTIFACT_FILE)
    calibration = info.get("calibration")
    return PromptClassifier(
        _load_engine(info, endpoint),
        [build_template(one, where) for one in info.get("templates") or [info["template"]]],
        info["label_names"],
        show=_load_demonstrations(folder, info),
        calibration=None if calibration is None else Calibration.from_record(calibration),
    )


def _load_engine(info: dict[str, Any], endpoint: str | None) -> Engine:
    if endpoint is not None:
        return EndpointEngine(endpoint, info["model"])
    source = base_model_source(info)
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
