"""Adapt a pretrained model to sentence pairs, evaluate it, and write a Run."""

import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from transformers import Trainer, set_seed

from peft_mrpc.cli.app import run_cli
from peft_mrpc.cli.progress import progress_bars
from peft_mrpc.config import config_record
from peft_mrpc.data.examples import DataSplits
from peft_mrpc.data.loading import (
    load_data,
    reported_splits,
    warn_train_test_overlap,
    warn_unknown_labels,
)
from peft_mrpc.distributed import prepare_processes, process_state
from peft_mrpc.methods.layer_freeze import warn_layers_never_unfrozen
from peft_mrpc.models.architecture import describe_parameters
from peft_mrpc.models.artifact import save_classifier, save_threshold
from peft_mrpc.models.classifier import Classifier
from peft_mrpc.models.hub import ModelSource, resolve_model
from peft_mrpc.precision import trainer_precision, warn_slow_bf16
from peft_mrpc.runs.publishing import check_access, check_base, publish
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.runs.staging import check_output_dir, staged_directory
from peft_mrpc.runs.writer import data_line, describe_data, summary, write_run
from peft_mrpc.training.activation_cache.store import ActivationCache
from peft_mrpc.training.build_model import build_classifier
from peft_mrpc.training.build_trainer import (
    build_activation_cache,
    build_trainer,
    check_activation_cache,
    check_against_data,
    settle_order,
    trained_model,
)
from peft_mrpc.training.head_layer import describe_reading
from peft_mrpc.training.model_selection import choose_threshold, describe_selection, say_chosen
from peft_mrpc.training.request import TrainJob, parse_request
from peft_mrpc.training.resuming import check_resumed
from peft_mrpc.training.seeds import train_seeds
from peft_mrpc.training.selection import hold_out_selection, say_held_out


def main(argv: Sequence[str]) -> None:
    prepare_processes()  # before TrainingArguments, which look for devices
    request = parse_request(argv)
    warn_slow_bf16(request.arguments)
    with progress_bars(not request.arguments.disable_tqdm):
        train(request)


def train(request: TrainJob) -> Run | None:
    """Train, evaluate and write the Run; every check that can fail comes before the training.

    Returns:
        The Run, on the main process, whose machine alone may hold it; None after `--dry_run`.
    """
    check_output_dir(request.output_dir, request.config.overwrite)
    if request.publish:
        check_access(str(request.arguments.hub_model_id))
    source = resolve_model(request.config.model, request.config.base_model_id)
    if request.publish and request.method.is_peft:
        check_base(source.name, source.hub_id)
    pairs = load_data(request.data, request.arguments.seed)
    splits = reported_splits(pairs, request.data.split)
    data = hold_out_selection(request.config, request.arguments, splits, pairs)
    check_against_data(request.config, request.arguments, data)
    say_held_out(data)
    warn_unknown_labels(data, splits)
    warn_train_test_overlap(data, splits)
    set_seed(request.arguments.seed)
    classifier = build_classifier(request, source, data)
    settle_order(request.config, data)
    trains = request.method.freeze(classifier.model, request.options)
    check_activation_cache(request.config, request.arguments, classifier.model)
    warn_layers_never_unfrozen(request.options, request.arguments)
    check_resumed(request, data)
    if request.config.dry_run:
        _print_plan(request, data, splits, classifier, trains)
        return None
    state = process_state()
    if request.config.seeds:
        del classifier  # it was a check: each seed begins with its own
        cache = build_activation_cache(request, len(request.config.seeds))

        def train_one(one: TrainJob, staging: Path | None) -> None:
            own = hold_out_selection(one.config, one.arguments, splits, pairs)
            set_seed(one.arguments.seed)
            fresh = build_classifier(one, source, own)
            _train_into(staging, one, source, own, splits, fresh, cache)

        with cache:
            train_seeds(request, data, train_one)
    elif state.is_main_process:
        with staged_directory(request.output_dir) as staging:
            _train_into(staging, request, source, data, splits, classifier)
    else:
        _train_into(None, request, source, data, splits, classifier)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    run = load_run(request.output_dir)
    sys.stdout.write(summary(run) + "\n")
    if request.publish:
        private = bool(request.arguments.hub_private_repo)
        publish(run, str(request.arguments.hub_model_id), private)
    return run


def _train_into(
    staging: Path | None,
    request: TrainJob,
    source: ModelSource,
    data: DataSplits,
    splits: Sequence[str],
    classifier: Classifier,
    activation_cache: ActivationCache | None = None,
) -> None:
    """Train and score on every process; the one that has a staging directory writes."""
    holder = [str(staging) if staging else None]
    broadcast_object_list(holder)
    trainer, num_cut = build_trainer(request, data, classifier, str(holder[0]), activation_cache)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=request.arguments.resume_from_checkpoint)
    train_seconds = time.perf_counter() - started
    selection = describe_selection(request.config, request.arguments, data, trainer.state)
    say_chosen(selection)
    classifier.model = trained_model(trainer).eval()  # PEFT computes the prompt that it saves
    folder = staging and staging / ("adapter" if request.method.is_peft else "model")
    if folder is not None:  # first of all: nothing that fails later shall cost the training
        save_classifier(folder, classifier, source, request.config.method)
    if request.config.threshold == "auto":
        classifier.threshold = choose_threshold(request.arguments, data, classifier)
        if folder is not None:
            save_threshold(folder, classifier.threshold)
    probabilities: dict[str, NDArray[np.float64]] = {}
    started = time.perf_counter()
    for split in splits:
        probabilities[split] = classifier.predict_proba(
            data.splits[split], request.arguments.per_device_eval_batch_size
        )
    score_seconds = time.perf_counter() - started
    if staging is None:
        return
    if not request.keep_checkpoints:
        shutil.rmtree(staging / "checkpoints", ignore_errors=True)
    with contextlib.suppress(OSError):
        (staging / "checkpoints").rmdir()  # empty with --save_strategy no
    # The Trainer's own rate takes every batch to have --per_device_train_batch_size pairs.
    num_seen = (trainer.state.epoch or 0) * len(data.splits["train"])
    num_scored = sum(len(rows) for rows in probabilities.values())
    timing = {
        "train_seconds": train_seconds,
        "train_pairs_per_second": num_seen / train_seconds,
        "score_seconds": score_seconds,
        "score_pairs_per_second": num_scored / score_seconds,
    }
    record = describe_training(request, source, data, splits, classifier, trainer)
    record |= {"selection": selection, "truncated_train_pairs": num_cut, "timing": timing}
    write_run(staging, record, data, probabilities, classifier.threshold)


def describe_training(
    request: TrainJob,
    source: ModelSource,
    data: DataSplits,
    splits: Sequence[str],
    classifier: Classifier,
    trainer: Trainer,
) -> dict[str, Any]:
    """What was trained, on what and how, for `run.json`."""
    return {
        "strategy": "train",
        "method": request.config.method,
        "model": source.name,
        "base_model_id": source.hub_id,
        "seed": request.arguments.seed,
        "num_processes": process_state().num_processes,
        "threshold": classifier.threshold,
        "data": describe_data(data, ["train", *(s for s in splits if s != "train")]),
        "trainable": describe_parameters(classifier.model),
        "log_history": trainer.state.log_history,
        "method_options": dict(request.given_options),
        "config": config_record(request.config, request.data, request.arguments),
        "precision": trainer_precision(request.arguments),
    }


def _print_plan(
    request: TrainJob,
    data: DataSplits,
    splits: Sequence[str],
    classifier: Classifier,
    trains: str,
) -> None:
    decay = request.config.layer_decay
    reads = describe_reading(request.config.pooling, request.config.head_layer)
    lines = [
        data_line(data, splits),
        f"model: {request.config.model}, {request.config.method}, "
        f"at most {classifier.max_length} tokens a pair, {reads}",
        f"learning rate: {request.arguments.learning_rate:g}, "
        f"the head's {request.config.head_learning_rate or request.arguments.learning_rate:g}"
        + (f", each layer's {decay:g} of that above it" if decay is not None else ""),
        f"trains: {trains}",
        f"output: {request.output_dir}",
        "dry run: nothing was trained, nothing was written",
    ]
    if process_state().is_main_process:
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(run_cli(main))
