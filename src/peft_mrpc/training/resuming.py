"""Whether a training may go on from a checkpoint: only as the training that wrote it would have."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_mrpc.config import config_record
from peft_mrpc.data.examples import DataSplits
from peft_mrpc.errors import UserError, raise_faults
from peft_mrpc.training.checkpoints import read_about
from peft_mrpc.training.request import TrainJob

# What a step of training depends on, and what is chosen by, beside the method's own options. How
# many steps there are, how they are computed, and what is kept and logged may be another.
DECIDING = (
    *("method", "model", "quantization", "pooling", "head_layer", "prompt_position", "max_length"),
    *("dropout", "swap_sentences", "neftune_noise_alpha", "seed", "data_seed"),
    *("class_weights", "focal_gamma", "label_smoothing_factor", "sam_rho", "max_grad_norm"),
    *("learning_rate", "head_learning_rate", "layer_decay", "weight_decay", "warmup_steps"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "optim_target_modules"),
    *("adam_beta1", "adam_beta2", "adam_epsilon"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy"),
    *("dataloader_drop_last", "metric_for_best_model", "greater_is_better"),
)
# Of PEFT's options: where things lie, and what it writes down for itself.
ELSEWHERE = ("_name_or_path", "version", "revision", "auto_mapping", "inference_mode", "_config")


def training_fingerprint(request: TrainJob, data: DataSplits) -> dict[str, Any]:
    """What each of its checkpoints says of a training, JSON-ready.

    Args:
        request: The training, with everything settled that was left to a rule.
        data: Its pairs, without those that are held out.
    """
    record = config_record(request.config, request.arguments)
    options = {n: v for n, v in vars(request.options).items() if not n.endswith(ELSEWHERE)}
    flags = {**{name: record.get(name) for name in DECIDING}, **options}
    flags["num_processes"] = request.arguments.world_size
    flags["model"] = "/".join(Path(request.config.model).parts[-2:])  # which may have moved
    about = {"flags": flags, "train": data.fingerprint("train")}
    plain: dict[str, Any] = json.loads(json.dumps(about, default=_plain))
    return plain


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def check_resumed(request: TrainJob, data: DataSplits) -> None:
    """Refuse a checkpoint that another training wrote.

    Optimizer and schedule are the checkpoint's: a rate that is given beside it would stand in the
    Run and not be heeded.

    Raises:
        UserError: With every flag that was another; if the pairs were; if replacing the output
            would remove the checkpoint.
    """
    folder = request.arguments.resume_from_checkpoint
    if folder is None:
        return
    if request.output_dir.resolve() in Path(folder).resolve().parents:
        raise UserError(
            f"--output_dir: got {str(request.output_dir)!r}, which --overwrite would replace, with "
            f"{folder}, which --resume_from_checkpoint goes on from; name another."
        )
    wrote, asks = read_about(Path(folder)), training_fingerprint(request, data)
    faults = [
        f"--{name}: got {_value(asks, name)}, but {folder} was trained with "
        f"{_value(wrote, name)}; expected the same, or no --resume_from_checkpoint."
        for name in sorted(wrote["flags"].keys() | asks["flags"].keys())
        if _value(wrote, name) != _value(asks, name)
    ]
    if wrote["train"] != asks["train"]:
        faults.append(
            f"--resume_from_checkpoint: got {folder!r}, which was trained on other pairs than the "
            f"{len(data.splits['train']):,} of {data.name} that are to train now; expected the "
            "same files, columns, --max_train_samples and held-out part."
        )
    raise_faults(faults)


def _value(about: Mapping[str, Any], name: str) -> str:
    value = about["flags"].get(name)
    return "nothing" if value is None else json.dumps(value)
