"""Continue a training: after an interruption, or from the checkpoint of another one."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from peft_mrpc.config import config_record
from peft_mrpc.data.examples import DataSplits
from peft_mrpc.distributed import is_sharded
from peft_mrpc.errors import UserError
from peft_mrpc.training.checkpoints import newest_checkpoint, read_fingerprint
from peft_mrpc.training.job import ResolvedJob

logger = logging.getLogger(__name__)

# Options that a training step or the model selection depends on, besides the method's own. The
# number of steps, how they are computed, and what is saved and logged may change on resuming.
RESUME_CRITICAL_OPTIONS = (
    *("method", "model", "quantization", "pooling", "head_layer", "prompt_position", "max_length"),
    *("dropout", "swap_sentences", "neftune_noise_alpha", "seed", "data_seed"),
    *("class_weights", "focal_gamma", "label_smoothing_factor", "sam_rho", "max_grad_norm"),
    *("learning_rate", "head_learning_rate", "layer_decay", "weight_decay", "warmup_steps"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "optim_target_modules"),
    *("adam_beta1", "adam_beta2", "adam_epsilon"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy"),
    *("metric_for_best_model", "greater_is_better"),
)
# Ends of the names of PEFT's options that are paths or are written by PEFT.
IGNORED_OPTIONS = ("_name_or_path", "version", "revision", "auto_mapping", "inference_mode")


def unfinished_checkpoint(staging: Path, args: TrainingArguments) -> str | None:
    """Return the checkpoint from which a job continues that was interrupted; None to begin.

    Args:
        staging: The directory that the job writes.
        args: The Trainer's.
    """
    checkpoint = newest_checkpoint(staging / "checkpoints", is_sharded(args))
    if checkpoint is None:
        return None
    logger.info(
        "continuing the interrupted training at %s; to start again, delete %s",
        *(checkpoint.name, staging),
    )
    return str(checkpoint)


def warn_other_trainings(output_dir: Path, key: str) -> None:
    """Name the directories of other interrupted jobs with the same output directory.

    Args:
        output_dir: The directory of the Run.
        key: Of this job, as for `staged_directory`.
    """
    output_dir = output_dir.resolve()
    prefix = f".{output_dir.name}."
    for folder in sorted(output_dir.parent.iterdir()):
        is_staging = folder.name.startswith(prefix) and len(folder.name) == len(prefix + key)
        if is_staging and folder.name != prefix + key and (folder / "checkpoints").is_dir():
            logger.warning(
                "%s holds the checkpoints of an interrupted training with other options or data; "
                "repeat its command or delete it",
                folder,
            )


def training_fingerprint(resolved: ResolvedJob, data: DataSplits) -> dict[str, Any]:
    """Return what identifies a training, for the file `training.json` of its checkpoints.

    Args:
        resolved: The job.
        data: Its `train` is without the selection split.
    """
    record = config_record(resolved.config, resolved.training_args)
    options = {
        name: value
        for name, value in vars(resolved.method_options).items()
        if not name.endswith((*IGNORED_OPTIONS, "_config"))
    }
    flags = {**{name: record.get(name) for name in RESUME_CRITICAL_OPTIONS}, **options}
    flags["num_processes"] = resolved.training_args.world_size
    flags["model"] = "/".join(Path(resolved.config.model).parts[-2:])  # it may have moved
    fingerprint = {"flags": flags, "train": data.fingerprint("train")}
    plain: dict[str, Any] = json.loads(json.dumps(fingerprint, default=_to_json))
    return plain


def resume_faults(resolved: ResolvedJob, data: DataSplits) -> list[str]:
    """Return the differences between a job and the training that wrote the checkpoint.

    Optimizer and scheduler continue with the checkpoint's settings: another learning rate, say,
    would be recorded in the Run and not be used.

    Args:
        resolved: The job.
        data: Its `train` is without the selection split.
    """
    folder = resolved.training_args.resume_from_checkpoint
    if folder is None:
        return []
    if resolved.output_dir.resolve() in Path(folder).resolve().parents:
        return [
            f"output_dir: got {str(resolved.output_dir)!r}, which contains the checkpoint {folder} "
            "that resume_from_checkpoint names; expected another directory."
        ]
    try:
        before = read_fingerprint(Path(folder))
    except UserError as error:
        return list(error.faults)
    now = training_fingerprint(resolved, data)
    faults = [
        f"{name}: got {_format(now, name)}, but {folder} was trained with {_format(before, name)}; "
        "expected the same, or no resume_from_checkpoint."
        for name in sorted(before["flags"].keys() | now["flags"].keys())
        if _format(before, name) != _format(now, name)
    ]
    if before["train"] != now["train"]:
        faults.append(
            f"resume_from_checkpoint: got {folder!r}, which was trained on other examples than the "
            f"{len(data.splits['train']):,} of {data.name}; expected the same files, columns, "
            "max_train_samples and selection_fraction."
        )
    return faults


def _to_json(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _format(fingerprint: Mapping[str, Any], name: str) -> str:
    value = fingerprint["flags"].get(name)
    return "nothing" if value is None else json.dumps(value)
