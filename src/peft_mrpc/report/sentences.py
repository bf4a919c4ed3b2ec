"""The sentences that Runs answered, found again: in the Runs, or where their data came from."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_mrpc.config import DataConfig
from peft_mrpc.data.loading import BUILTIN_DATASETS, load_data
from peft_mrpc.errors import UserError
from peft_mrpc.runs.run import Run
from peft_mrpc.serialization import read_json_lines

Sentences = Mapping[int, tuple[str, str]]


def find_sentences(runs: Sequence[Run], split: str) -> Sentences | None:
    """The two sentences of each row of a split.

    Runs hold them beside their answers. Of one that does not, written by an earlier version, the
    data is read again where it lies on this machine, and taken if it is the same by fingerprint.

    Returns:
        Row numbers and sentences; None where no Run leads to them.
    """
    for run in runs:
        path = run.model_run.path / "predictions" / f"{split}.jsonl"
        rows = read_json_lines(path)
        if all("sentence1" in row and "sentence2" in row for row in rows):
            return {row["idx"]: (row["sentence1"], row["sentence2"]) for row in rows}
    return next(filter(None, (_read_again(run, split) for run in runs)), None)


def _read_again(run: Run, split: str) -> Sentences | None:
    config = _data_config(run.record["config"])
    has_files = any(getattr(config, f"{name}_file") for name in ("train", "validation", "test"))
    is_here = config.dataset in BUILTIN_DATASETS or Path(config.dataset).expanduser().is_dir()
    if not has_files and not is_here:
        return None  # on the Hub: a comparison needs no network
    try:
        data = load_data(config, run.record["seed"])
    except UserError:
        return None
    wanted = run.record["data"]["splits"][split]["fingerprint"]
    if split not in data.splits or data.fingerprint(split) != wanted:
        return None
    return {pair.idx: (pair.sentence1, pair.sentence2) for pair in data.splits[split]}


def _data_config(recorded: Mapping[str, Any]) -> DataConfig:
    known = {field.name for field in dataclasses.fields(DataConfig)}
    return DataConfig(**{name: value for name, value in recorded.items() if name in known})
