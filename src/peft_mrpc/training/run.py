"""Train a job and write its Run: load, resolve, validate, build, train, save, score, write."""

import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from transformers import Trainer, set_seed

from peft_mrpc.config import config_record, record_key
from peft_mrpc.data.examples import DataSplits, label_counts
from peft_mrpc.data.loading import (
    load_data,
    reported_splits,
    warn_conflicting_labels,
    warn_train_test_overlap,
    warn_unknown_labels,
)
from peft_mrpc.distributed import is_sharded, prepare_processes, process_state
from peft_mrpc.errors import UserError
from peft_mrpc.models.architecture import describe_parameters
from peft_mrpc.models.artifact import save_classifier, save_threshold
from peft_mrpc.models.classifier import Classifier
from peft_mrpc.precision import trainer_precision, warn_slow_bf16
from peft_mrpc.runs.publishing import check_access, check_base, publish
from peft_mrpc.runs.run import REPORTING_OPTIONS, Run, load_run
from peft_mrpc.runs.staging import check_output_dir, staged_directory
from peft_mrpc.runs.summary import data_line
from peft_mrpc.runs.writer import describe_data, write_run
from peft_mrpc.training.activation_cache.store import ActivationCache
from peft_mrpc.training.build import (
    build_classifier,
    build_trainer,
    describe_training_parameters,
    unwrap_trained_model,
)
from peft_mrpc.training.checkpoints import (
    checkpoint_epoch,
    is_last_checkpoint,
    unfinished_checkpoint,
    warn_other_trainings,
)
from peft_mrpc.training.job import ResolvedJob, TrainJob
from peft_mrpc.training.model_selection import (
    describe_selection,
    log_best_checkpoint,
    log_training_data,
    select_threshold,
)
from peft_mrpc.training.resolve import BaseModel, describe_head, load_base_model, resolve
from peft_mrpc.training.seeds import finished_seeds, train_seeds
from peft_mrpc.training.validation import limit_faults, prepare_data, validate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobInputs:
    """What a job names: the base model without its weights, and the data.

    Attributes:
        base: The base model.
        data: All splits; nothing is carved from train.
        reported: The splits that the Run reports.
    """

    base: BaseModel
    data: DataSplits
    reported: list[str]


@dataclass(frozen=True)
class Training:
    """A training that can begin: every option is decided, job and data are checked.

    Attributes:
        resolved: The job.
        base: The base model without its weights.
        data: The splits; if the job selects anything, `selection` is carved from `train`.
        reported: The splits that the Run reports.
    """

    resolved: ResolvedJob
    base: BaseModel
    data: DataSplits
    reported: list[str]


@dataclass(frozen=True)
class TrainingPlan:
    """What a dry run returns: the training that would run, in lines of text."""

    resolved: ResolvedJob
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def run_training(
    job: TrainJob, on_seed: Callable[[Run, int, int], None] | None = None
) -> Run | TrainingPlan | None:
    """Train a job, evaluate the model and write the Run.

    Everything that can fail is checked before the training starts. With several seeds, each one
    becomes a Run in a subdirectory of the output directory; seeds that the same job has finished
    are skipped.

    Args:
        job: What to train.
        on_seed: Called after each seed with its Run, its position from 1 and the number of seeds.
    Returns:
        The Run; a plan for a dry run; None on the other processes of a distributed training.
    Raises:
        UserError: If the job is invalid.
        TrainingDiverged: If the scores are not finite.
    """
    prepare_processes()  # before TrainingArguments, which look for devices
    inputs = load_inputs(job)
    training = prepare_training(job, inputs)
    resolved, args = training.resolved, training.resolved.training_args
    if resolved.push_to_hub:
        check_access(str(args.hub_model_id))
        if resolved.method.is_peft:
            check_base(resolved.source.name, resolved.source.hub_id)
    if not job.seeds:
        check_output_dir(resolved.output_dir, job.config.overwrite)
    elif job.config.dry_run:
        finished_seeds(resolved, job_record(training))
    if job.config.dry_run:
        return plan_training(training)
    if job.seeds:
        cache = ActivationCache()
        run = train_seeds(
            resolved,
            job_record(training),
            lambda seed_job: train_once(prepare_training(seed_job, inputs), cache),
            on_seed,
        )
    else:
        run = train_once(training)
    if run is not None and resolved.push_to_hub:
        publish(run, str(args.hub_model_id), bool(args.hub_private_repo))
    return run


def load_inputs(job: TrainJob) -> JobInputs:
    """Load the base model's configuration and tokenizer, and the data.

    Raises:
        UserError: If one of them cannot be loaded.
    """
    base = load_base_model(job.config)
    data = load_data(job.data, job.seed)
    split = getattr(job.data, "split", None)
    return JobInputs(base, data, reported_splits(data, split))


def prepare_training(job: TrainJob, inputs: JobInputs) -> Training:
    """Resolve a job for its inputs, check it, and carve the selection split.

    Raises:
        UserError: With all faults.
    """
    try:
        resolved = resolve(job, inputs.base, inputs.data.label_names)
    except UserError as error:
        others = limit_faults({**job.training_arguments, **vars(job.config)})
        raise UserError(*dict.fromkeys([*error.faults, *others])) from error
    validate(resolved)
    data = prepare_data(resolved, inputs.data, inputs.reported)
    return Training(resolved, inputs.base, data, inputs.reported)


def plan_training(training: Training) -> TrainingPlan:
    """Build the model of a training, and describe what would be trained."""
    resolved, classifier = training.resolved, _build_model(training)
    config, args = resolved.config, resolved.training_args
    rate, head_rate = args.learning_rate, config.head_learning_rate
    decay = "" if config.layer_decay is None else f", layer decay {config.layer_decay:g}"
    head = describe_head(config.pooling, config.head_layer)
    lines = (
        data_line(training.data, training.reported),
        f"model: {config.model}, {config.method}, at most {resolved.max_length} tokens, {head}",
        f"learning rate: {rate:g}, head {head_rate or rate:g}{decay}",
        f"trainable: {describe_training_parameters(resolved, classifier.model)}",
        f"output: {resolved.output_dir}",
        "dry run: nothing was trained or written",
    )
    return TrainingPlan(resolved, lines)


def train_once(training: Training, activation_cache: ActivationCache | None = None) -> Run | None:
    """Train with one seed and write the Run.

    Args:
        training: The training.
        activation_cache: A cache to share with other trainings; by default a new one.
    Returns:
        The Run, on the main process.
    """
    resolved, state = training.resolved, process_state()
    output_dir, key = resolved.output_dir, job_key(training)
    staging = staged_directory(output_dir, resolved.config.overwrite, key=key)
    with staging if state.is_main_process else contextlib.nullcontext() as folder:
        if folder is not None:
            warn_other_trainings(output_dir, key)
        classifier = _build_model(training)
        _train_into(folder, training, classifier, activation_cache)
    state.wait_for_everyone()
    return load_run(resolved.output_dir) if state.is_main_process else None


def _build_model(training: Training) -> Classifier:
    """Log what is notable about the data, and build the model with its head and the method."""
    resolved, data = training.resolved, training.data
    warn_slow_bf16(resolved.training_args)
    warn_conflicting_labels(data.splits["train"])
    log_training_data(data)
    warn_unknown_labels(data, training.reported)
    warn_train_test_overlap(data, training.reported)
    counts = label_counts(data.splits["train"], data.label_names)
    if absent := [name for name, count in counts.items() if not count]:
        logger.warning("%s: no training example has the label %s", data.name, " or ".join(absent))
    set_seed(resolved.training_args.seed)
    return build_classifier(resolved, training.base.tokenizer, data.label_names)


def _train_into(
    staging: Path | None,
    training: Training,
    classifier: Classifier,
    activation_cache: ActivationCache | None,
) -> None:
    """Train and score on every process; the process with a staging directory writes."""
    resolved, data = training.resolved, training.data
    args = resolved.training_args
    holder: list[str | None] = [None, None]
    if staging is not None:
        holder = [str(staging), unfinished_checkpoint(staging, args)]
    broadcast_object_list(holder)
    checkpoint = holder[1] or args.resume_from_checkpoint
    trainer, num_truncated = build_trainer(
        resolved,
        data,
        classifier,
        str(holder[0]),
        checkpoint=checkpoint,
        activation_cache=activation_cache,
    )
    first_epoch = checkpoint_epoch(checkpoint) if checkpoint else 0
    started = time.perf_counter()
    if holder[1] and is_last_checkpoint(holder[1]) and not is_sharded(args):
        trainer.load_result(holder[1])
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    train_seconds = time.perf_counter() - started
    selection = describe_selection(resolved.config, args, data, trainer.state)
    log_best_checkpoint(selection)
    classifier.model = unwrap_trained_model(trainer).eval()
    folder = staging and staging / ("adapter" if resolved.method.is_peft else "model")
    if folder is not None:  # before anything else can fail
        save_classifier(
            folder, classifier, resolved.source, resolved.model_config, resolved.config.method
        )
    if resolved.config.threshold == "auto":
        classifier.threshold = select_threshold(args, data, classifier)
        if folder is not None:
            save_threshold(folder, classifier.threshold)
    probabilities: dict[str, NDArray[np.float64]] = {}
    started = time.perf_counter()
    for split in training.reported:
        probabilities[split] = classifier.predict_proba(
            data.splits[split], args.per_device_eval_batch_size
        )
    score_seconds = time.perf_counter() - started
    if staging is None:
        return
    # The Trainer's own rate counts the last, smaller batches as full ones.
    num_trained = ((trainer.state.epoch or 0) - first_epoch) * len(data.splits["train"])
    num_scored = sum(len(rows) for rows in probabilities.values())
    record = {
        **describe_training(training, classifier, trainer),
        "selection": selection,
        "truncated_train_pairs": num_truncated,
        "timing": {
            "train_seconds": train_seconds,
            "train_pairs_per_second": num_trained / train_seconds,
            "score_seconds": score_seconds,
            "score_pairs_per_second": num_scored / score_seconds,
        },
    }
    write_run(staging, record, data, probabilities, classifier.threshold)
    if not resolved.keep_checkpoints:
        shutil.rmtree(staging / "checkpoints", ignore_errors=True)
    with contextlib.suppress(OSError):
        (staging / "checkpoints").rmdir()  # empty if nothing was saved


def describe_training(
    training: Training, classifier: Classifier, trainer: Trainer
) -> dict[str, Any]:
    """Return the entries of `run.json` about the training."""
    resolved = training.resolved
    return {
        "strategy": "train",
        "method": resolved.config.method,
        "model": resolved.source.name,
        "base_model_id": resolved.source.hub_id,
        "seed": resolved.training_args.seed,
        "threshold": classifier.threshold,
        "trainable": describe_parameters(classifier.model),
        "log_history": trainer.state.log_history,
        **job_record(training),
    }


def job_key(training: Training) -> str:
    """Identify the trainings that may continue each other: equal but for reporting options."""
    record = job_record(training)
    config = {k: v for k, v in record["config"].items() if k not in REPORTING_OPTIONS}
    return record_key(record | {"config": config})


def job_record(training: Training) -> dict[str, Any]:
    """Return the entries of `run.json` that two Runs of one job have in common."""
    resolved = training.resolved
    config = dataclasses.replace(resolved.config, seeds=None)
    reported = [split for split in training.reported if split != "train"]
    return {
        "num_processes": process_state().num_processes,
        "data": describe_data(training.data, ["train", *reported]),
        "method_options": dict(resolved.explicit_options),
        "config": config_record(config, resolved.data, resolved.training_args),
        "precision": trainer_precision(resolved.training_args),
    }
