"""Train one job with several seeds: an ordinary Run for each, in `OUTPUT_DIR/seed_N`.

`load_run` aggregates the Runs when it reads `OUTPUT_DIR`.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from peft_mrpc.distributed import process_state
from peft_mrpc.environment import reset_peak_memory
from peft_mrpc.errors import UserError
from peft_mrpc.runs.run import REPORTING_OPTIONS, RUN_FILE, SEED_FOLDER, Run, load_run
from peft_mrpc.runs.staging import check_output_dir, exclusive
from peft_mrpc.serialization import read_json
from peft_mrpc.training.job import ResolvedJob, TrainJob

logger = logging.getLogger(__name__)


def train_seeds(
    resolved: ResolvedJob,
    record: Mapping[str, Any],
    train_seed: Callable[[TrainJob], Run | None],
    on_seed: Callable[[Run, int, int], None] | None = None,
) -> Run | None:
    """Train a job once per seed; finished seeds of the same job are skipped.

    Args:
        resolved: The job, with two or more seeds.
        record: The entries of `run.json` that identify the job.
        train_seed: Trains a job with one seed on every process and returns its Run on the main one.
        on_seed: Called on the main process after each seed with its Run, its position from 1 and
            the number of seeds.
    Returns:
        The multi-seed Run, on the main process.
    Raises:
        UserError: If the output directory holds anything else, or another process writes it.
    """
    seeds, output_dir = resolved.job.seeds, resolved.output_dir
    is_main = process_state().is_main_process
    with exclusive(output_dir) if is_main else contextlib.nullcontext():
        holder: list[Any] = [finished_seeds(resolved, record) if is_main else None]
        broadcast_object_list(holder)
        finished: list[int] = holder[0]
        if is_main and not finished:
            _remove_run(output_dir)
        try:
            for number, seed in enumerate(seeds, start=1):
                folder = output_dir / SEED_FOLDER.format(seed)
                if seed in finished:
                    logger.info("seed %d: finished before", seed)
                    run = load_run(folder) if is_main else None
                else:
                    gc.collect()
                    reset_peak_memory()
                    run = train_seed(_job_of_seed(resolved.job, seed, folder))
                if run is not None and on_seed is not None:
                    on_seed(run, number, len(seeds))
        except BaseException as error:
            if is_main:
                _add_note(error, output_dir)
            raise
        return load_run(output_dir) if is_main else None


def _job_of_seed(job: TrainJob, seed: int, folder: Path) -> TrainJob:
    """Return the job that trains with one seed only."""
    return dataclasses.replace(
        job,
        config=dataclasses.replace(job.config, seeds=None, overwrite=False),
        training_arguments={**job.training_arguments, "seed": seed},
        output_dir=folder,
    )


def finished_seeds(resolved: ResolvedJob, record: Mapping[str, Any]) -> list[int]:
    """Check the output directory of a multi-seed job and return the seeds that it holds.

    Args:
        resolved: The job.
        record: The entries of `run.json` that identify the job.
    Raises:
        UserError: If the directory holds anything else than Runs of this job.
    """
    output_dir, overwrite = resolved.output_dir, resolved.job.config.overwrite
    entries = _visible(output_dir)
    folders = [path for path in entries if fnmatch(path.name, SEED_FOLDER.format("*"))]
    if len(folders) < len(entries) or not (folders or any(output_dir.glob(".seed_*"))):
        check_output_dir(output_dir, overwrite)
        return []
    finished = {int(folder.name.partition("_")[2]): folder for folder in folders}
    if overwrite and finished.keys() >= set(resolved.job.seeds):
        return []
    for seed, folder in finished.items():
        if differences := _differences(read_json(folder / RUN_FILE), record, seed):
            if overwrite:
                return []
            raise UserError(
                f"output_dir: got {str(output_dir)!r}, where {folder.name} is a Run of another job "
                f"(with another {', '.join(differences[:3])}); expected another directory, or "
                "overwrite."
            )
    return sorted(finished)


def _visible(output_dir: Path) -> list[Path]:
    """The entries of a directory without unfinished seeds and locks, which have hidden names."""
    return [path for path in output_dir.glob("*") if not path.name.startswith(".")]


def _remove_run(output_dir: Path) -> None:
    """Remove the Run of a directory, which is to be overwritten; unfinished seeds stay."""
    for path in _visible(output_dir):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _differences(stored: Mapping[str, Any], record: Mapping[str, Any], seed: int) -> list[str]:
    """Return the names of the options and entries in which a Run and a job differ."""
    expected = json.loads(json.dumps(record, default=str))
    expected["config"]["seed"] = seed
    differences = []
    for entry, value in expected.items():
        if entry in ("config", "method_options"):
            other = stored[entry]
            names = {*value, *other} - REPORTING_OPTIONS
            differences += [name for name in names if value.get(name) != other.get(name)]
        elif entry == "data":
            differences += [] if _comparable(value) == _comparable(stored[entry]) else [entry]
        elif value != stored[entry]:
            differences.append(entry)
    return sorted(differences)


def _comparable(data: Mapping[str, Any]) -> dict[str, Any]:
    """The entry `data` without train's fingerprint: its selection split depends on the seed."""
    train = {n: v for n, v in data["splits"]["train"].items() if n != "fingerprint"}
    return {**data, "splits": {**data["splits"], "train": train}}


def _add_note(error: BaseException, output_dir: Path) -> None:
    with contextlib.suppress(OSError):
        output_dir.rmdir()  # if no seed is finished
    finished = sorted(path.parent.name for path in output_dir.glob(f"*/{RUN_FILE}"))
    if finished:
        error.add_note(
            f"Finished seeds ({', '.join(finished)}) are in {output_dir}; the same command "
            "continues with the others."
        )
