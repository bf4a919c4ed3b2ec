"""One Run over several seeds: a sub-run for each, and what they say together."""

import contextlib
import copy
import dataclasses
import fcntl
import gc
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from peft_mrpc.config import config_record, record_key
from peft_mrpc.data.examples import DataSplits
from peft_mrpc.distributed import process_state
from peft_mrpc.environment import describe_environment, reset_peak_memory
from peft_mrpc.errors import UserError
from peft_mrpc.evaluation.plot_style import on_page, save_picture
from peft_mrpc.evaluation.seed_aggregation import combine_metrics, seeds_record
from peft_mrpc.precision import trainer_precision
from peft_mrpc.report.run_plots import plot_seeds
from peft_mrpc.runs.model_card import build_card
from peft_mrpc.runs.run import CARD_FILE, METRICS_FILE, RUN_FILE, Run, load_run
from peft_mrpc.runs.staging import move_into_place
from peft_mrpc.runs.writer import describe_data, seed_line
from peft_mrpc.serialization import write_json
from peft_mrpc.training.request import TrainJob


def train_seeds(
    request: TrainJob, data: DataSplits, train_one: Callable[[TrainJob, Path | None], None]
) -> None:
    """Train once with each seed and write the Run of them all.

    Args:
        request: With two or more seeds.
        data: The pairs, the same for every seed.
        train_one: Trains with one seed, on every process, and writes an ordinary Run into the
            directory that the main process is given.
    """
    seeds = [int(seed) for seed in request.config.seeds or ()]
    is_main = process_state().is_main_process
    place = kept_directory(request.output_dir, _command_key(request, data))
    with place if is_main else contextlib.nullcontext() as folder:
        holder: list[Any] = [_finished_seeds(folder) if folder else None]
        broadcast_object_list(holder)
        for number, seed in enumerate(seeds, start=1):
            if seed not in holder[0]:
                left = len({*seeds[number - 1 :]} - {*holder[0]})
                one = dataclasses.replace(request, num_trainings=left)
                _train_seed(one, seed, folder, train_one)
            if folder:
                run = load_run(folder / "seeds" / str(seed))
                known = ", finished before" if seed in holder[0] else ""
                line = f"seed {seed} ({number} of {len(seeds)}{known}): {seed_line(run)}\n"
                sys.stdout.write(line)
                sys.stdout.flush()
        if folder:
            write_seeds_run(folder, seeds)


def _train_seed(
    request: TrainJob,
    seed: int,
    folder: Path | None,
    train_one: Callable[[TrainJob, Path | None], None],
) -> None:
    """Train as `train --seed` would, with nothing left over from the seed before."""
    gc.collect()
    reset_peak_memory()
    arguments = copy.copy(request.arguments)
    arguments.seed = seed
    one = dataclasses.replace(
        request,
        config=dataclasses.replace(request.config, seeds=None),
        arguments=arguments,
        options=copy.deepcopy(request.options),
    )
    unfinished = folder / "unfinished" if folder else None
    if unfinished:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
    train_one(one, unfinished)
    if folder and unfinished:
        unfinished.rename(folder / "seeds" / str(seed))


def _command_key(request: TrainJob, data: DataSplits) -> str:
    """The same for two commands only if they would write the same Run."""
    asked = {
        **config_record(request.config, request.data, request.arguments),
        "precision": trainer_precision(request.arguments),
        "method_options": dict(request.given_options),
        "data": describe_data(data, list(data.splits)),
        "num_processes": process_state().num_processes,
        "versions": describe_environment()["versions"],
    }
    return record_key(asked)


def _finished_seeds(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "seeds").iterdir())


@contextlib.contextmanager
def kept_directory(output_dir: Path, key: str) -> Iterator[Path]:
    """Build a Run over seeds beside its place, whole or not at all, but lose no finished seed.

    Args:
        output_dir: Where the Run will be.
        key: Names the command: the same one finds its finished seeds again.
    Yields:
        A directory with a directory `seeds`. When the block ends well it becomes `output_dir`.
        When it fails with a seed finished, it stays, and the error says so.
    Raises:
        UserError: If another process is at work on the same command.
    """
    folder = output_dir.absolute().parent / f".{output_dir.name}.seeds-{key}"
    (folder / "seeds").mkdir(parents=True, exist_ok=True)
    lock = folder / "lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"--output_dir: got {str(output_dir)!r}, which another process is writing with "
                "the same command; wait for it."
            ) from error
        try:
            yield folder
        except BaseException as error:
            shutil.rmtree(folder / "unfinished", ignore_errors=True)
            finished = _finished_seeds(folder)
            if finished:
                error.add_note(
                    f"Finished seeds ({', '.join(map(str, finished))}) are kept in {folder}: the "
                    "same command goes on with the others."
                )
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        lock.unlink()
    move_into_place(folder, output_dir)


def write_seeds_run(folder: Path, seeds: Sequence[int]) -> Run:
    """Write what the sub-runs say together: record, metrics, card and a picture."""
    runs = [load_run(folder / "seeds" / str(seed)) for seed in seeds]
    write_json(folder / RUN_FILE, seeds_record([run.record for run in runs], seeds))
    splits = list(runs[0].metrics)
    metrics = {
        split: combine_metrics([run.metrics[split] for run in runs], seeds) for split in splits
    }
    write_json(folder / METRICS_FILE, metrics)
    run = load_run(folder)
    if splits:
        figures = {}
        values = [one.metrics[splits[-1]] for one in runs]
        for name in ("accuracy", "roc_auc"):
            if all(value[name] is not None for value in values):
                figures[name.replace("roc_auc", "ROC-AUC")] = [value[name] for value in values]
        for name in run.label_names:
            figures[f"F1 {name.replace('_', ' ')}"] = [value["f1"][name] for value in values]
        title = f"{run.name}\n{run.record['data']['name']} {splits[-1]}, {len(seeds)} seeds"
        majority = values[0]["majority_accuracy"]
        (folder / "plots").mkdir(exist_ok=True)
        with on_page():
            save_picture(plot_seeds(figures, seeds, majority, title), folder / "plots/seeds.png")
    (folder / CARD_FILE).write_text(build_card(run), encoding="utf-8")
    return run
