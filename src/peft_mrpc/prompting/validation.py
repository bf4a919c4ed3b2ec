"""What of a hard prompt's flags does not stand together, before a model is loaded."""

from collections.abc import Sequence

from peft_mrpc import config as cfg
from peft_mrpc.data.examples import UNKNOWN_LABEL, DataSplits
from peft_mrpc.prompting.templates import Template

# Fewer pairs than this have no shares to speak of.
FEWEST = 8


def prompt_faults(
    config: cfg.PromptConfig,
    templates: Sequence[Template],
    data: DataSplits,
    splits: Sequence[str],
) -> list[str]:
    """What of these flags does not stand together, or not with these pairs."""
    empty = [f"{data.name}: split {split} is empty." for split in splits if not data.splits[split]]
    return [
        *empty,
        *_channel_faults(config, templates),
        *_demonstration_faults(config),
        *_calibration_faults(config, templates),
        *_endpoint_faults(config, templates),
        *_pair_faults(config, data, splits),
    ]


def _channel_faults(config: cfg.PromptConfig, templates: Sequence[Template]) -> list[str]:
    """What the noisy channel does not give."""
    faults = []
    channels = [one.name for one in templates if one.direction == "channel"]
    if config.num_demonstrations and channels:
        faults.append(
            f"--num_demonstrations: got {config.num_demonstrations}, but {channels[0]} reads the "
            "noisy channel, which shows none; drop it, or use another --template."
        )
    if config.calibration == "contextual" and channels:
        faults.append(
            f"--calibration: got contextual, but {channels[0]} reads the noisy channel, and there "
            "is nothing to read of a pair without content; use batch or affine."
        )
    mute = [one.name for one in templates if not all(one.label_words.values())]
    is_raw = config.calibration == "none" and config.label_prior == "none"
    if is_raw and (mute or 0 < len(channels) < len(templates)):
        name = (mute or channels)[0]
        faults.append(
            f"--template: {name} reads the noisy channel, whose raw scores say one label of nearly "
            "every pair; add --calibration batch (or affine), or --label_prior train."
        )
    if config.scoring == "generate" and len(channels) == len(templates):
        faults.append(
            f"--scoring: got generate, but {channels[0]} reads the noisy channel, which asks "
            "nothing; add a --template that does."
        )
    return faults


def _demonstration_faults(config: cfg.PromptConfig) -> list[str]:
    faults = []
    if config.calibration == "contextual" and config.demonstrations == "nearest":
        faults.append(
            "--calibration: got contextual, but --demonstrations nearest gives each pair a context "
            "of its own; use batch or affine."
        )
    if config.demonstrations != "balanced" and not config.num_demonstrations:
        faults.append(
            f"--demonstrations: got {config.demonstrations} and none to show; add "
            "--num_demonstrations."
        )
    return faults


def _calibration_faults(config: cfg.PromptConfig, templates: Sequence[Template]) -> list[str]:
    faults = []
    if config.combine == "best" and len(templates) < 2:
        faults.append("--combine: got best of one template; expected several in --template.")
    is_fitted = config.calibration == "affine" or config.combine == "best"
    if config.num_calibration_pairs != cfg.PromptConfig.num_calibration_pairs and not is_fitted:
        faults.append(
            f"--num_calibration_pairs: got {config.num_calibration_pairs}, which nothing is fitted "
            "to; add --calibration affine or --combine best, or drop it."
        )
    if config.label_prior != "none" and config.calibration == "affine":
        faults.append(
            f"--label_prior: got {config.label_prior}, but the affine fit knows the labels' "
            "shares; drop it."
        )
    return faults


def _endpoint_faults(config: cfg.PromptConfig, templates: Sequence[Template]) -> list[str]:
    """What an API does not give."""
    faults = []
    channels = [one.name for one in templates if one.direction == "channel"]
    if config.endpoint and channels:
        faults.append(
            f"--endpoint: {channels[0]} reads the probabilities of the pair itself, and of a "
            "served model the answer's first token alone is asked for; use another --template."
        )
    normalized = [one.name for one in templates if one.length_normalized]
    if config.endpoint and normalized:
        faults.append(
            f"--endpoint: {normalized[0]} is length-normalized, and of a served model the answer's "
            "first token alone is asked for; use another --template."
        )
    return faults


def _pair_faults(config: cfg.PromptConfig, data: DataSplits, splits: Sequence[str]) -> list[str]:
    """What these pairs do not give."""
    faults = []
    if config.calibration == "batch" or config.label_prior != "none":
        faults += [
            f"{data.name}: split {split} has {len(data.splits[split])} pairs; a calibration over "
            f"the pairs themselves needs at least {FEWEST}."
            for split in splits
            if len(data.splits[split]) < FEWEST
        ]
    if uses := train_uses(config):
        if "train" not in data.splits:
            faults.append(f"{uses[0]}: needs training pairs; give --train_file.")
        elif "train" in splits:
            faults.append(f"--split: got train, which {uses[0]} draws from; expected other splits.")
        elif not any(pair.label != UNKNOWN_LABEL for pair in data.splits["train"]):
            faults.append(f"{uses[0]}: needs labels, and the training pairs have none.")
    return faults


def train_uses(config: cfg.PromptConfig) -> list[str]:
    """Which flags make use of the labels of training pairs."""
    uses = {
        f"--num_demonstrations {config.num_demonstrations}": config.num_demonstrations > 0,
        "--calibration affine": config.calibration == "affine",
        "--label_prior train": config.label_prior == "train",
        "--combine best": config.combine == "best",
    }
    return [flag for flag, is_used in uses.items() if is_used]
