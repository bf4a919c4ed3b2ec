"""Sentence pairs: from the Hub, a GLUE directory, files of the user's own, or the built-in set.

A pair is one row with `idx`, `sentence1`, `sentence2` and `label` (an index into the label names,
-1 when unknown). Sources differ in columns and label spelling; after `load_data` they do not.
"""

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from peft_mrpc.config import DataConfig
from peft_mrpc.data.columns import LABEL_COLUMNS, PARAPHRASE_NAMES, build_pairs, class_name_faults
from peft_mrpc.data.examples import SPLITS, UNKNOWN_LABEL, DataSplits, Example, folded
from peft_mrpc.data.files import Table, parse_jsonl, read_table
from peft_mrpc.errors import UserError, closest, logger, one_line, raise_faults

BUILTIN_DATASETS = ("builtin:pairs",)
HUB_ALIASES = {"mrpc": "nyu-mll/glue:mrpc"}


def load_data(config: DataConfig, seed: int = 42) -> DataSplits:
    """Load every split that the data set has.

    Args:
        config: Source, columns and sample limits.
        seed: Draws the rows kept by `max_train_samples`.
    Raises:
        UserError: Naming every fault found: an unknown data set, a missing or empty file, a
            missing column, a label outside the known names, an empty sentence.
    """
    _check_data_config(config)
    own_files = {
        split: Path(path).expanduser()
        for split in SPLITS
        if (path := getattr(config, f"{split}_file")) is not None
    }
    if own_files:
        name, tables = "files", {split: read_table(path) for split, path in own_files.items()}
        names = None
    else:
        name, tables, names = _load_tables(config.dataset, config.label_column)
    data = build_pairs(name, tables, names, config)
    return _limit(data, config, seed)


def _check_data_config(config: DataConfig) -> None:
    files = [split for split in SPLITS if getattr(config, f"{split}_file") is not None]
    faults = [
        f"--{flag}: got {getattr(config, flag)}; expected at least 1."
        for flag in ("max_train_samples", "max_eval_samples")
        if getattr(config, flag) is not None and getattr(config, flag) < 1
    ]
    if files and config.dataset not in ("files", DataConfig.dataset):
        faults.append(f"--dataset: got {config.dataset!r} beside --{files[0]}_file; give one.")
    raise_faults(faults + class_name_faults(config.class_names))


def _load_tables(
    dataset: str, label_column: str | None
) -> tuple[str, dict[str, Table], tuple[str, ...] | None]:
    if dataset == "files":
        raise UserError(
            "--dataset: got 'files' without --train_file, --validation_file or --test_file."
        )
    if dataset == "builtin:pairs":
        folder = resources.files("peft_mrpc") / "builtin_data" / "pairs"
        tables = {
            split: parse_jsonl((folder / f"{split}.jsonl").read_text("utf-8"), f"{dataset} {split}")
            for split in SPLITS
        }
        return dataset, tables, PARAPHRASE_NAMES
    path = Path(dataset).expanduser()
    if path.is_dir():
        return path.resolve().name, _load_glue_directory(path), None
    is_path = dataset.startswith((".", "/", "~")) or ("/" in dataset and path.parent.is_dir())
    if path.exists() or is_path:
        raise UserError(
            f"--dataset: got {dataset!r}; expected a directory in GLUE's layout. "
            "For single files use --train_file, --validation_file, --test_file."
        )
    if dataset.startswith("builtin:") or ("/" not in dataset and dataset not in HUB_ALIASES):
        known = [*HUB_ALIASES, *BUILTIN_DATASETS]
        raise UserError(
            f"--dataset: got {dataset!r}; expected {', '.join(known)}, owner/name[:config] on the "
            f"Hub, or a directory in GLUE's layout.{closest(dataset, known)}"
        )
    return _load_from_hub(dataset, label_column)


def _load_glue_directory(path: Path) -> dict[str, Table]:
    files = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
    present = {split: path / name for split, name in files.items() if (path / name).is_file()}
    if not present:
        raise UserError(
            f"--dataset: got {str(path)!r}, which holds none of {', '.join(files.values())}; "
            "expected a directory in GLUE's layout."
        )
    return {split: read_table(file) for split, file in present.items()}


def _load_from_hub(
    dataset: str, label_column: str | None
) -> tuple[str, dict[str, Table], tuple[str, ...] | None]:
    import datasets

    repo_id, _, config_name = HUB_ALIASES.get(dataset, dataset).partition(":")
    _ask_hub(repo_id)
    try:
        loaded = datasets.load_dataset(repo_id, config_name or None)
    except Exception as error:  # datasets raises many kinds; all mean that it could not be had
        raise UserError(
            f"--dataset: got {dataset!r}, which could not be loaded from the Hub "
            f"({type(error).__name__}: {one_line(error)[:200]}). Without a network use "
            "builtin:pairs, a directory in GLUE's layout, or your own files."
        ) from error
    tables = {
        split: Table(f"{dataset} {split}", rows.column_names, rows.to_list())
        for split, rows in loaded.items()
        if split in SPLITS
    }
    if not tables:
        raise UserError(
            f"--dataset: {dataset!r} has the splits {', '.join(loaded)}; expected some of "
            f"{', '.join(SPLITS)}."
        )
    names = None
    for rows in loaded.values():
        columns = (label_column, *LABEL_COLUMNS)
        feature = next((rows.features[c] for c in columns if c in rows.features), None)
        names = tuple(getattr(feature, "names", None) or names or ()) or None
    return dataset, tables, names


def _ask_hub(repo_id: str) -> None:
    """One quick question; where the Hub cannot be reached, go on from the local cache alone.

    `load_dataset` by itself would retry for half a minute before it looks there.
    """
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        huggingface_hub.HfApi().dataset_info(repo_id, timeout=10)
    except (HfHubHTTPError, HFValidationError):
        pass  # it answered: load_dataset says what is wrong
    except Exception:  # offline shows as many kinds of connection error
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True


def _limit(data: DataSplits, config: DataConfig, seed: int) -> DataSplits:
    splits = dict(data.splits)
    if config.max_train_samples and "train" in splits:
        order = np.random.default_rng(seed).permutation(len(splits["train"]))
        kept = sorted(order[: config.max_train_samples].tolist())
        # Numbered anew: predictions are rows 0, 1, ... of what was scored.
        splits["train"] = tuple(
            replace(splits["train"][position], idx=row) for row, position in enumerate(kept)
        )
    if config.max_eval_samples:
        for split in ("validation", "test"):
            if split in splits:
                splits[split] = splits[split][: config.max_eval_samples]
    return DataSplits(data.name, data.label_names, splits)


def warn_unknown_labels(data: DataSplits, splits: Sequence[str]) -> None:
    """Say of which splits a figure is of some pairs, or of one label."""
    for split in splits:
        pairs = data.splits[split]
        labels = [pair.label for pair in pairs if pair.label != UNKNOWN_LABEL]
        if labels and len(labels) < len(pairs):
            logger.warning(
                "%s: %d of its %d pairs have no label: its figures are of the others",
                *(split, len(pairs) - len(labels), len(pairs)),
            )
        if len({*labels}) == 1:
            logger.warning(
                "%s: every labelled pair is %r: its accuracy says little, and there is no ROC-AUC",
                *(split, data.label_names[labels[0]]),
            )


def warn_train_test_overlap(data: DataSplits, splits: Sequence[str]) -> None:
    """Say of which splits a figure is in part, or all, of pairs that were learned by heart."""
    for split in splits:
        if count := data.num_leaked.get(split):
            logger.warning(
                "%s: %d of its %d pairs are training pairs too: its figures say the less of others",
                *(split, count, len(data.splits[split])),
            )


def warn_conflicting_labels(pairs: Sequence[Example]) -> None:
    """Say how many training pairs stand there once more with another label."""
    first: dict[int, Example] = {}
    found = []
    for pair in pairs:
        # By their hash: of many pairs the sentences would be held twice.
        if first.setdefault(hash(folded(pair)), pair).label != pair.label:
            found.append(pair)
    if found:
        logger.warning(
            "train: %d of its %d pairs stand there with another label as well, such as %r: neither "
            "can be learned",
            *(len(found), len(pairs), found[0].sentence1[:60]),
        )


def reported_splits(data: DataSplits, wanted: str | None) -> list[str]:
    """The splits to score: those asked for, or else all but train.

    Raises:
        UserError: If a split is not in the data, or there is none to score.
    """
    if wanted is None:
        found = [split for split in ("validation", "test") if split in data.splits]
        if not found:
            raise UserError(
                f"{data.name}: has no validation or test split to report; give --validation_file, "
                "or name one with --split."
            )
        return found
    splits = [split.strip() for split in wanted.split(",")]
    faults = [
        f"--split: got {split!r}; {data.name} has {', '.join(data.splits)}."
        f"{closest(split, data.splits)}"
        for split in splits
        if split not in data.splits
    ]
    faults += [
        f"--split: got {split!r} twice; name each split once."
        for split in sorted({split for split in splits if splits.count(split) > 1})
    ]
    raise_faults(faults)
    return splits
