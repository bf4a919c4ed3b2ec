"""Check the options of a hard prompt, before its data and before its model are loaded."""

from collections.abc import Sequence

from peft_mrpc.config import MAX_SEED, PromptConfig
from peft_mrpc.data.examples import UNKNOWN_LABEL, DataSplits
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import choice_faults, raise_faults
from peft_mrpc.models.loading import QUANTIZATIONS
from peft_mrpc.prompting.calibration import CALIBRATIONS
from peft_mrpc.prompting.demonstrations import DEMONSTRATION_CHOICES, label_uses
from peft_mrpc.prompting.endpoint import endpoint_faults
from peft_mrpc.prompting.templates import Template

CHOICES = {
    "quantization": QUANTIZATIONS,
    "calibration": CALIBRATIONS,
    "demonstrations": DEMONSTRATION_CHOICES,
    "label_prior": ("none", "uniform", "train"),
    "device_map": ("replica", "auto"),
}
MINIMUM = {
    "batch_size": 1,
    "batch_tokens": 1,
    "max_length": 8,
    "num_demonstrations": 0,
    "num_calibration_pairs": 4,
}
# Options of a model in this process, without effect on one behind an API.
LOCAL_OPTIONS = ("quantization", "device_map", "share_prefix", "batch_tokens")
# Fewer examples have no meaningful label frequencies.
MIN_BATCH_CALIBRATION = 8


def validate_options(config: PromptConfig) -> None:
    """Check everything that needs neither data nor templates.

    Raises:
        UserError: Naming every fault.
    """
    faults = [
        f"{name}: got {getattr(config, name)}; expected at least {minimum}."
        for name, minimum in MINIMUM.items()
        if getattr(config, name) < minimum
    ]
    if not 0 <= config.seed <= MAX_SEED:
        faults.append(f"seed: got {config.seed}; expected 0 to {MAX_SEED}.")
    if config.push_to_hub and not config.hub_model_id:
        faults.append("push_to_hub: got no hub_model_id; expected owner/name.")
    faults += choice_faults(config, CHOICES) + endpoint_faults(config.endpoint)
    if config.endpoint:
        faults += [
            f"{name}: got {getattr(config, name)} with an endpoint, where the server decides; "
            "drop it."
            for name in LOCAL_OPTIONS
            if getattr(config, name) != getattr(PromptConfig, name)
        ]
    if config.device_map == "auto" and process_state().num_processes > 1:
        faults.append(
            "device_map: got auto in a job of several processes, each of which would use every "
            "GPU; start one process, or use replica."
        )
    if config.demonstrations != "balanced" and not config.num_demonstrations:
        faults.append(
            f"demonstrations: got {config.demonstrations} without any; set num_demonstrations."
        )
    is_default = config.num_calibration_pairs == PromptConfig.num_calibration_pairs
    if config.calibration != "affine" and not is_default:
        faults.append(
            f"num_calibration_pairs: got {config.num_calibration_pairs}, but nothing is fitted; "
            "use calibration affine, or drop it."
        )
    if config.label_prior != "none" and config.calibration == "affine":
        faults.append(
            f"label_prior: got {config.label_prior}, but the affine fit includes the prior; drop "
            "it."
        )
    raise_faults(faults)


def validate_prompts(
    config: PromptConfig, templates: Sequence[Template], data: DataSplits, splits: Sequence[str]
) -> None:
    """Check the options together with the templates and the data.

    Raises:
        UserError: Naming every fault.
    """
    raise_faults([*_template_faults(config, templates), *_data_faults(config, data, splits)])


def _template_faults(config: PromptConfig, templates: Sequence[Template]) -> list[str]:
    faults = []
    channel = [template.name for template in templates if template.direction == "channel"]
    normalized = [template.name for template in templates if template.length_normalized]
    if channel and config.num_demonstrations:
        faults.append(
            f"num_demonstrations: got {config.num_demonstrations}, but {channel[0]} has direction "
            "channel, which has no demonstrations; drop it, or use another template."
        )
    if channel and config.calibration == "contextual":
        faults.append(
            f"calibration: got contextual, but {channel[0]} has direction channel, which has no "
            "content-free examples; use batch or affine."
        )
    # The scores of a label without words are not comparable with those of others.
    bare = [template.name for template in templates if not all(template.label_words.values())]
    is_mixed = 0 < len(channel) < len(templates)
    if (bare or is_mixed) and config.calibration == config.label_prior == "none":
        faults.append(
            f"template: {(bare or channel)[0]} has direction channel, whose raw scores give nearly "
            "every example the same label; use calibration batch or affine, or label_prior train."
        )
    if config.endpoint and channel:
        faults.append(
            f"endpoint: {channel[0]} has direction channel, which needs the probabilities of whole "
            "sentences, and the API returns those of the first token; use another template."
        )
    if config.endpoint and normalized:
        faults.append(
            f"endpoint: {normalized[0]} is length-normalized, and the API returns the "
            "probabilities of the first token only; use another template."
        )
    return faults


def _data_faults(config: PromptConfig, data: DataSplits, splits: Sequence[str]) -> list[str]:
    faults = [f"{data.name}: split {split} is empty." for split in splits if not data.splits[split]]
    if config.calibration == "batch" or config.label_prior != "none":
        faults += [
            f"{data.name}: split {split} has {len(data.splits[split])} examples; a calibration on "
            f"the scored examples needs at least {MIN_BATCH_CALIBRATION}."
            for split in splits
            if len(data.splits[split]) < MIN_BATCH_CALIBRATION
        ]
    if uses := label_uses(config):
        if "train" not in data.splits:
            faults.append(f"{uses[0]}: needs training examples; set train_file.")
        elif "train" in splits:
            faults.append(f"split: got train, which {uses[0]} samples from; expected other splits.")
        elif all(example.label == UNKNOWN_LABEL for example in data.splits["train"]):
            faults.append(f"{uses[0]}: needs labels, and the training examples have none.")
    return faults
