"""The directory of a hard prompt: templates, demonstrations and calibration, saved and loaded."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft_mrpc.config import PromptConfig
from peft_mrpc.errors import UserError, raise_faults
from peft_mrpc.formatting import mask_credentials
from peft_mrpc.models.artifact import base_model_source, save_info
from peft_mrpc.models.loading import load_causal_lm, load_tokenizer
from peft_mrpc.models.sources import NO_TRUST, ModelSource, Trust
from peft_mrpc.prompting.calibration import Calibration
from peft_mrpc.prompting.classifier import Encoder, Engine, PromptClassifier
from peft_mrpc.prompting.endpoint import EndpointEngine, endpoint_faults
from peft_mrpc.prompting.loglikelihood import LocalEngine
from peft_mrpc.prompting.prompt_encoder import PromptEncoder, max_prompt_length
from peft_mrpc.prompting.templates import Demonstration, build_template
from peft_mrpc.runs.run import ARTIFACT_FILE


def save_prompt(
    folder: Path,
    classifier: PromptClassifier,
    source: ModelSource,
    config: PromptConfig,
    calibrated_on: str,
) -> None:
    """Write everything that builds the same prompts again.

    Args:
        folder: The artifact's directory.
        classifier: Templates, demonstrations and calibration.
        source: The model.
        config: Options of the model and the prompts.
        calibrated_on: The split that the calibration was fitted to, if it uses one.
    """
    calibration = classifier.calibration
    save_info(
        folder,
        source,
        method="hard_prompt",
        label_names=classifier.labels,
        max_length=config.max_length,
        batch_tokens=config.batch_tokens,
        device_map=config.device_map,
        quantization=config.quantization,
        # Without its address: that would disclose where texts and the key are sent.
        is_served=config.endpoint is not None,
        templates=[template.to_dict() for template in classifier.templates],
        demonstrations={
            "count": config.num_demonstrations,
            "how": config.demonstrations,
            "shown": [asdict(shot) for shot in classifier.demonstrations],
        },
        calibration=calibration and {**calibration.to_dict(), "split": calibrated_on},
    )


def load_prompt(
    folder: Path,
    info: Mapping[str, Any],
    endpoint: str | None = None,
    trust: Trust = NO_TRUST,
) -> PromptClassifier:
    """Load a saved prompt classifier with its model.

    Args:
        folder: The artifact's directory.
        info: Its description, as `models.artifact.read_info` returns it.
        endpoint: Address of the server, for a prompt that was evaluated with a served model.
        trust: What may run while the model is loaded.
    Raises:
        UserError: If the address is missing or has no use, or the model does not load.
    """
    raise_faults(endpoint_faults(endpoint))
    is_served = bool(info.get("is_served") or info.get("endpoint"))
    if is_served and endpoint is None:
        raise UserError(
            f"endpoint: got none, but {folder} was evaluated with {info['model']} on a server; "
            "expected the server's address, http://HOST:PORT/v1."
        )
    if endpoint is not None and not is_served:
        address = mask_credentials(endpoint)
        raise UserError(f"endpoint: got {address}, but {folder} uses no served model; drop it.")
    labels = list(info["label_names"])
    encoder: Encoder
    engine: Engine
    if endpoint is not None:
        encoder = engine = EndpointEngine(endpoint, info["model"], labels)
    else:
        source = base_model_source(info, trust)
        tokenizer = load_tokenizer(source)
        model = load_causal_lm(source, info["quantization"], info.get("device_map", "replica"))
        max_length = max_prompt_length(model.config, info["max_length"])
        encoder = PromptEncoder(tokenizer, labels, max_length)
        engine = LocalEngine(model, tokenizer.pad_token_id or 0, info.get("batch_tokens"))
    calibration = info.get("calibration")
    return PromptClassifier(
        encoder,
        engine,
        [build_template(keys, str(folder / ARTIFACT_FILE)) for keys in info["templates"]],
        labels,
        [Demonstration(**shot) for shot in (info.get("demonstrations") or {"shown": ()})["shown"]],
        None if calibration is None else Calibration.from_dict(calibration),
    )
