"""Load data sets: from the Hub, a GLUE directory, files, memory, or the built-in data.

Sources differ in columns and in the spelling of labels. After `load_data` they do not.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from peft_mrpc.config import DataConfig
from peft_mrpc.data.columns import LABEL_COLUMNS, PARAPHRASE_NAMES, class_name_faults
from peft_mrpc.data.examples import (
    SPLITS,
    UNKNOWN_LABEL,
    DataSplits,
    Example,
    Inputs,
    as_table,
    build_splits,
    normalized_texts,
)
from peft_mrpc.data.files import Table, parse_jsonl, read_table
from peft_mrpc.errors import UserError, closest, one_line, raise_faults

logger = logging.getLogger(__name__)

# Names of the built-in data sets, and of their labels; the files are in builtin_data/.
BUILTIN_DATASETS = {"builtin:pairs": PARAPHRASE_NAMES}
HUB_ALIASES = {"mrpc": "nyu-mll/glue:mrpc"}
# Name of a data set that was given as a mapping.
IN_MEMORY = "in_memory"


def load_data(data: DataConfig | Mapping[str, Inputs], seed: int = 42) -> DataSplits:
    """Load every split of a data set.

    Args:
        data: Source, columns and sample limits; or a mapping from split names to labelled inputs:
            tuples `(sentence1, sentence2, label)`, a `datasets.Dataset` or a pandas `DataFrame`.
        seed: Selects the examples of `max_train_samples`.
    Raises:
        UserError: With every fault: an unknown data set, a missing or empty file, a missing
            column, an unknown label, an empty sentence.
    """
    if isinstance(data, Mapping):
        return _load_from_memory(data)
    _validate_data_config(data)
    files = {
        split: Path(path).expanduser()
        for split in SPLITS
        if (path := getattr(data, f"{split}_file")) is not None
    }
    names = None
    if files:
        name, tables = "files", {split: read_table(path) for split, path in files.items()}
    else:
        name, tables, names = _load_tables(data.dataset, data.label_column)
    return _subsample(build_splits(name, tables, names, data), data, seed)


def _load_from_memory(inputs: Mapping[str, Inputs]) -> DataSplits:
    unknown = [str(split) for split in inputs if split not in SPLITS]
    if unknown or not inputs:
        raise UserError(
            f"data: got the splits {', '.join(unknown) or 'none'}; expected some of "
            f"{', '.join(SPLITS)}."
        )
    tables = {split: as_table(rows, f"data[{split!r}]") for split, rows in inputs.items()}
    raise_faults(
        [f"{t.where}: got no row; expected at least one." for t in tables.values() if not t.rows]
    )
    names = _class_label_names(inputs.values(), None)
    return build_splits(IN_MEMORY, tables, names, DataConfig())


def _validate_data_config(config: DataConfig) -> None:
    files = [split for split in SPLITS if getattr(config, f"{split}_file") is not None]
    faults = [
        f"{name}: got {getattr(config, name)}; expected at least 1."
        for name in ("max_train_samples", "max_eval_samples")
        if getattr(config, name) is not None and getattr(config, name) < 1
    ]
    if files and config.dataset not in ("files", DataConfig.dataset):
        faults.append(f"dataset: got {config.dataset!r} and {files[0]}_file; expected one of them.")
    raise_faults(faults + class_name_faults(config.class_names))


def _load_tables(
    dataset: str, label_column: str | None
) -> tuple[str, dict[str, Table], Sequence[str] | None]:
    if dataset == "files":
        raise UserError(
            "dataset: got 'files' without a file. Set train_file, validation_file or test_file."
        )
    if dataset in BUILTIN_DATASETS:
        folder = resources.files("peft_mrpc") / "builtin_data" / dataset.partition(":")[2]
        tables = {
            split: parse_jsonl((folder / f"{split}.jsonl").read_text("utf-8"), f"{dataset} {split}")
            for split in SPLITS
        }
        return dataset, tables, BUILTIN_DATASETS[dataset]
    path = Path(dataset).expanduser()
    if path.is_dir():
        return path.resolve().name, _load_glue_directory(path), None
    is_path = dataset.startswith((".", "/", "~")) or ("/" in dataset and path.parent.is_dir())
    if path.exists() or is_path:
        raise UserError(
            f"dataset: got {dataset!r}; expected a directory in GLUE's layout. For single files "
            "set train_file, validation_file and test_file."
        )
    if dataset.startswith("builtin:") or ("/" not in dataset and dataset not in HUB_ALIASES):
        known = [*HUB_ALIASES, *BUILTIN_DATASETS]
        raise UserError(
            f"dataset: got {dataset!r}; expected {', '.join(known)}, owner/name[:config] on the "
            f"Hub, or a directory in GLUE's layout.{closest(dataset, known)}"
        )
    return _load_from_hub(dataset, label_column)


def _load_glue_directory(path: Path) -> dict[str, Table]:
    files = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
    present = {split: path / name for split, name in files.items() if (path / name).is_file()}
    if not present:
        raise UserError(
            f"dataset: got {str(path)!r}; expected a directory in GLUE's layout, with "
            f"{', '.join(files.values())}."
        )
    return {split: read_table(file) for split, file in present.items()}


def _load_from_hub(
    dataset: str, label_column: str | None
) -> tuple[str, dict[str, Table], Sequence[str] | None]:
    import datasets

    repo_id, _, config_name = HUB_ALIASES.get(dataset, dataset).partition(":")
    mode = contextlib.nullcontext() if _is_hub_reachable(repo_id) else _datasets_offline()
    try:
        with mode:
            loaded = datasets.load_dataset(repo_id, config_name or None)
    except Exception as error:  # datasets raises many types; all mean that it cannot be loaded
        raise UserError(
            f"dataset: got {dataset!r}, which could not be loaded from the Hub "
            f"({type(error).__name__}: {one_line(error)[:200]}). Without a network use "
            "builtin:pairs, a directory in GLUE's layout, or files."
        ) from error
    tables = {
        split: as_table(rows, f"{dataset} {split}")
        for split, rows in loaded.items()
        if split in SPLITS
    }
    if not tables:
        raise UserError(
            f"dataset: {dataset!r} has the splits {', '.join(loaded)}; expected some of "
            f"{', '.join(SPLITS)}."
        )
    return dataset, tables, _class_label_names(loaded.values(), label_column)


def _class_label_names(inputs: Iterable[Inputs], label_column: str | None) -> Sequence[str] | None:
    """The label names in the features of a `datasets.Dataset`, if it has them."""
    for rows in inputs:
        features = getattr(rows, "features", None) or {}
        for column in (label_column, *LABEL_COLUMNS):
            if names := getattr(features.get(column), "names", None):
                return tuple(names)
    return None


def _is_hub_reachable(repo_id: str) -> bool:
    """Whether the Hub answers, be it with an error."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        huggingface_hub.HfApi().dataset_info(repo_id, timeout=10)
    except (HfHubHTTPError, HFValidationError):
        return True
    except Exception:  # without a network there are many types of connection errors
        return False
    return True


@contextlib.contextmanager
def _datasets_offline() -> Iterator[None]:
    """Load from the cache only; otherwise `load_dataset` retries for half a minute first."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _subsample(data: DataSplits, config: DataConfig, seed: int) -> DataSplits:
    splits = dict(data.splits)
    if config.max_train_samples and "train" in splits:
        order = np.random.default_rng(seed).permutation(len(splits["train"]))
        rows = sorted(order[: config.max_train_samples].tolist())
        # Renumbered: `idx` of the predictions is the row number in the split.
        splits["train"] = tuple(
            replace(splits["train"][row], idx=idx) for idx, row in enumerate(rows)
        )
    if config.max_eval_samples:
        for split in ("validation", "test"):
            if split in splits:
                splits[split] = splits[split][: config.max_eval_samples]
    return DataSplits(data.name, data.label_names, splits)


def warn_unknown_labels(data: DataSplits, splits: Sequence[str]) -> None:
    """Warn of splits with unlabelled examples or with one label only."""
    for split in splits:
        labels = [e.label for e in data.splits[split] if e.label != UNKNOWN_LABEL]
        num_examples = len(data.splits[split])
        if labels and len(labels) < num_examples:
            logger.warning(
                "%s: %d of %d examples have no label; the metrics ignore them",
                *(split, num_examples - len(labels), num_examples),
            )
        if len({*labels}) == 1:
            logger.warning(
                "%s: every label is %r; accuracy is not informative and ROC-AUC is undefined",
                *(split, data.label_names[labels[0]]),
            )


def warn_train_test_overlap(data: DataSplits, splits: Sequence[str]) -> None:
    """Warn of splits that share examples with train."""
    for split in splits:
        if count := data.num_leaked.get(split):
            logger.warning(
                "%s: %d of %d examples also occur in the training set; the metrics overestimate "
                "performance on unseen examples",
                *(split, count, len(data.splits[split])),
            )


def warn_conflicting_labels(examples: Sequence[Example]) -> None:
    """Warn of training examples that occur again with another label."""
    first: dict[int, Example] = {}
    conflicts = []
    for example in examples:
        # Hashes as keys: the texts of a large data set are not stored twice.
        if first.setdefault(hash(normalized_texts(example)), example).label != example.label:
            conflicts.append(example)
    if conflicts:
        logger.warning(
            "train: %d of %d examples also occur with a different label, e.g. %r",
            *(len(conflicts), len(examples), conflicts[0].sentence1[:60]),
        )


def reported_splits(data: DataSplits, wanted: str | None) -> list[str]:
    """The splits to evaluate.

    Args:
        data: The data set.
        wanted: Split names, comma-separated; None for validation and test, if present.
    Raises:
        UserError: If a split is not in the data, or there is none to evaluate.
    """
    if wanted is None:
        splits = [split for split in ("validation", "test") if split in data.splits]
        if not splits:
            raise UserError(
                f"{data.name}: has no validation or test split. Set validation_file, or split to "
                "another split."
            )
        return splits
    splits = [split.strip() for split in wanted.split(",")]
    faults = [
        f"split: got {split!r}; {data.name} has {', '.join(data.splits)}."
        f"{closest(split, data.splits)}"
        for split in splits
        if split not in data.splits
    ]
    faults += [
        f"split: got {split!r} twice; expected each split once."
        for split in sorted({split for split in splits if splits.count(split) > 1})
    ]
    raise_faults(faults)
    return splits
