"""Checkpoints that restore exactly the model that was saved, whatever the method.

PEFT saves the output of a prompt encoder and not its weights. The Trainer therefore resumes from
(or ends with) another model for p-tuning and fails for projected prefix tuning
(github.com/huggingface/peft/issues/2256). So each checkpoint also holds all trained parameters.
"""

import json
import logging
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_mrpc.config import config_record
from peft_mrpc.data.examples import DataSplits
from peft_mrpc.distributed import is_sharded
from peft_mrpc.errors import UserError, one_line
from peft_mrpc.interop.transformers_internals import (
    early_stopping_patience,
    training_has_ended,
)
from peft_mrpc.training.job import ResolvedJob

logger = logging.getLogger(__name__)

TRAINED_FILE = "trained.safetensors"
FINGERPRINT_FILE = "training.json"
STATE_FILE = "trainer_state.json"
# Options that a training step or the model selection depends on, besides the method's own. The
# number of steps, how they are computed, and what is saved and logged may change on resuming.
RESUME_CRITICAL_OPTIONS = (
    *("method", "model", "quantization", "pooling", "head_layer", "prompt_position", "max_length"),
    *("dropout", "swap_sentences", "neftune_noise_alpha", "seed", "data_seed"),
    *("class_weights", "label_smoothing_factor", "sam_rho", "max_grad_norm"),
    *("learning_rate", "head_learning_rate", "layer_decay", "weight_decay", "warmup_steps"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "optim_target_modules"),
    *("adam_beta1", "adam_beta2", "adam_epsilon"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy"),
    *("metric_for_best_model", "greater_is_better"),
)
# Ends of the names of PEFT's options that are paths or are written by PEFT.
IGNORED_OPTIONS = ("_name_or_path", "version", "revision", "auto_mapping", "inference_mode")


def checkpoint_faults(
    folder: Path, arguments: TrainingArguments, patience: int | None
) -> list[str]:
    """Errors in the files of a checkpoint to resume from.

    Args:
        folder: The checkpoint.
        arguments: Of the training that resumes.
        patience: Its early stopping patience; None for no early stopping.
    """
    faults = [
        f"resume_from_checkpoint: got {str(folder)!r}, {defect}; expected a complete checkpoint, "
        "saved without save_only_model."
        for defect in _defects(folder, is_sharded(arguments))
    ]
    if faults:
        return faults
    state = json.loads((folder / STATE_FILE).read_text("utf-8"))
    step, epoch = int(state["global_step"]), float(state["epoch"])
    if 0 < arguments.max_steps < step:
        faults.append(f"max_steps: got {arguments.max_steps}, but {folder} is at step {step}.")
    if arguments.max_steps <= 0 and epoch > arguments.num_train_epochs:
        faults.append(
            f"num_train_epochs: got {arguments.num_train_epochs:g}, but {folder} is at epoch "
            f"{epoch:g}; expected as many or more."
        )
    before = early_stopping_patience(state)
    if patience is not None and patience != before:
        faults.append(
            f"early_stopping_patience: got {patience}, but {folder} was trained with "
            f"{before or 'none'}; expected the same."
        )
    return faults


def newest_checkpoint(folder: Path, is_sharded: bool) -> Path | None:
    """Return the newest checkpoint from which the training in a directory can continue.

    Incomplete ones, which a killed process was writing or deleting, are removed and logged: the
    Trainer would count them as checkpoints.

    Args:
        folder: The directory of the checkpoints.
        is_sharded: Whether FSDP or DeepSpeed wrote them.
    """
    complete = []
    for path in folder.glob("checkpoint-*"):
        if defects := _defects(path, is_sharded):
            logger.warning("%s: %s; removed, earlier checkpoints are used", path, defects[0])
            shutil.rmtree(path, ignore_errors=True)
        else:
            complete.append(path)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def is_last_checkpoint(folder: str | Path) -> bool:
    """Return whether the training that wrote a complete checkpoint ended with it."""
    return training_has_ended(json.loads((Path(folder) / STATE_FILE).read_text("utf-8")))


def checkpoint_epoch(folder: str | Path) -> float:
    """Return the epoch of a complete checkpoint."""
    return float(json.loads((Path(folder) / STATE_FILE).read_text("utf-8"))["epoch"])


def _defects(folder: Path, is_sharded: bool) -> list[str]:
    """Return the missing and truncated files of a checkpoint, as clauses."""
    if not (folder / STATE_FILE).is_file():  # written last
        return [f"which has no {STATE_FILE}"]
    names = () if is_sharded else (TRAINED_FILE, "optimizer.pt", "scheduler.pt")
    defects = [f"which has no {name}" for name in names if not (folder / name).is_file()]
    try:
        state = json.loads((folder / STATE_FILE).read_text("utf-8"))
        int(state["global_step"]), float(state["epoch"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        defects.append(f"whose {STATE_FILE} is damaged ({one_line(error)})")
    # The table of a zip archive is at its end.
    for path in sorted([*folder.glob("*.pt"), *folder.glob("*.pth")]):
        if not zipfile.is_zipfile(path):
            defects.append(f"whose {path.name} is damaged (not a complete archive)")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            defects.append(f"whose {path.name} is damaged ({one_line(error)})")
    return defects


def read_fingerprint(folder: Path) -> dict[str, Any]:
    """The fingerprint of the training that wrote a checkpoint.

    Raises:
        UserError: If the checkpoint has none.
    """
    try:
        fingerprint: dict[str, Any] = json.loads((folder / FINGERPRINT_FILE).read_text("utf-8"))
        if not {"flags", "train"} <= fingerprint.keys():
            raise ValueError("not the fingerprint of a training")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: has no {FINGERPRINT_FILE}; expected a checkpoint written by this peft-mrpc."
        ) from error
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(
            f"resume_from_checkpoint: got {str(folder)!r}, whose {FINGERPRINT_FILE} is damaged "
            f"({one_line(error)}); expected a complete checkpoint."
        ) from error
    return fingerprint


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
        checkpoint.name,
        staging,
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


def save_trained(model: nn.Module, names: Sequence[str], folder: Path) -> None:
    """Write the parameters of these names."""
    parameters = dict(model.named_parameters())
    tensors = {name: parameters[name].detach().cpu().contiguous() for name in names}
    save_file(tensors, folder / TRAINED_FILE)


def load_trained(model: nn.Module, names: Sequence[str], folder: Path) -> None:
    """Load the parameters of these names from a checkpoint.

    Raises:
        UserError: If it has those of another method or model.
    """
    stored = load_file(folder / TRAINED_FILE)
    wanted = set(names)
    parameters = {name: p for name, p in model.named_parameters() if name in wanted}
    differing = sorted(
        name
        for name in {*parameters, *stored}
        if _shape(parameters.get(name)) != _shape(stored.get(name))
    )
    if differing:
        raise UserError(
            f"{folder}: was written by another method, model or option ({differing[0]} differs); "
            "expected a checkpoint of the same training."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])


def _shape(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else (tensor.shape, tensor.dtype)


class CheckpointMetadata(TrainerCallback):
    """Write the fingerprint of the training into each checkpoint.

    Args:
        build_fingerprint: Computes it; called only when a checkpoint is saved.
    """

    def __init__(self, build_fingerprint: Callable[[], Mapping[str, Any]]) -> None:
        self.build_fingerprint = build_fingerprint

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.should_save:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            text = json.dumps(self.build_fingerprint(), indent=1) + "\n"
            (folder / FINGERPRINT_FILE).write_text(text, encoding="utf-8")


class RelocateBestCheckpoint(TrainerCallback):
    """Find the best checkpoint of a resumed training beside the checkpoint that it resumes from.

    The state holds its path in the staging directory of the Run, which has moved since. The
    Trainer ignores a best checkpoint that does not exist and ends with the last model instead.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        resumed = args.resume_from_checkpoint
        if not (args.load_best_model_at_end and resumed and state.best_global_step):
            return
        if state.best_model_checkpoint is not None:
            return
        beside = Path(resumed).parent / f"checkpoint-{state.best_global_step}"
        if not beside.is_dir():
            raise UserError(
                f"resume_from_checkpoint: got {resumed!r}, whose best checkpoint {beside.name} is "
                "not in the same directory; expected both."
            )
        state.best_model_checkpoint = str(beside)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            logger.warning(
                "load_best_model_at_end: the training ended before its first evaluation, with the "
                "last model; lower eval_delay"
            )
