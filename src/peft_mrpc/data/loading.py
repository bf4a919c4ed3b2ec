"""Load data sets: from the Hub, a GLUE directory, files, memory, or the built-in data.

Sources differ in columns and in the spelling of labels. After `load_data` they do not.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TypeVar

import numpy as np

from peft_mrpc.config import IN_MEMORY, DataConfig
from peft_mrpc.data.columns import PARAPHRASE_NAMES, class_name_faults
from peft_mrpc.data.examples import (
    SPLITS,
    UNKNOWN_LABEL,
    DataSplits,
    Example,
    Inputs,
    as_table,
    build_splits,
    name_class_labels,
    normalized_texts,
)
from peft_mrpc.data.files import Table, parse_jsonl, read_table
from peft_mrpc.errors import UserError, closest, collect_faults, one_line, raise_faults
from peft_mrpc.serialization import user_path

logger = logging.getLogger(__name__)

# Names of the built-in data sets, and of their labels; the files are in builtin_data/.
BUILTIN_DATASETS = {"builtin:pairs": PARAPHRASE_NAMES}
HUB_ALIASES = {"mrpc": "nyu-mll/glue:mrpc"}
# Names of the validation split in the order of preference; the first one that is present is used.
VALIDATION_NAMES = (
    *("validation", "dev", "val", "validation_matched", "validation_mismatched"),
    *("dev_matched", "dev_mismatched"),
)

Source = TypeVar("Source")


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
        split: user_path(path)
        for split in SPLITS
        if (path := getattr(data, f"{split}_file")) is not None
    }
    splits = _build_from_files("files", files, data) if files else _load_data_set(data)
    return _subsample(splits, data, seed)


def _build_from_files(name: str, files: Mapping[str, Path], config: DataConfig) -> DataSplits:
    """Read one file per split; the faults of all files are raised together."""
    tables: dict[str, Table] = {}
    faults: list[str] = []
    for split, path in files.items():
        with collect_faults(faults):
            tables[split] = name_class_labels(read_table(path))
    return build_splits(name, tables, None, config, faults)


def _load_from_memory(inputs: Mapping[str, Inputs]) -> DataSplits:
    selected = select_splits(inputs, "data")
    tables: dict[str, Table] = {}
    faults: list[str] = []
    for split, (name, rows) in selected.items():
        with collect_faults(faults):
            tables[split] = as_table(rows, f"data[{name!r}]")
            if not tables[split].rows:
                raise UserError(f"data[{name!r}]: got no row; expected at least one.")
    return build_splits(IN_MEMORY, tables, None, DataConfig(), faults)


def select_splits(source: Mapping[str, Source], where: str) -> dict[str, tuple[str, Source]]:
    """Find train, validation and test among the splits of a source.

    Args:
        source: Splits by their names in the source.
        where: Names the source in error messages.
    Returns:
        Of each split that is present, its name in the source and its content.
    Raises:
        UserError: If there is none.
    """
    names = {"train": ("train",), "validation": VALIDATION_NAMES, "test": ("test",)}
    present = {split: [n for n in known if n in source] for split, known in names.items()}
    if not any(present.values()):
        raise UserError(
            f"{where}: got the splits {', '.join(map(str, source)) or 'none'}; expected some of "
            f"{', '.join(SPLITS)} (also named {', '.join(VALIDATION_NAMES[1:])})."
        )
    if others := present["validation"][1:]:
        logger.warning(
            "%s: the validation split is %r; %s is not used",
            *(where, present["validation"][0], ", ".join(others)),
        )
    return {split: (names[0], source[names[0]]) for split, names in present.items() if names}


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


def _load_data_set(config: DataConfig) -> DataSplits:
    """Load a built-in data set, a directory or a Hub data set."""
    dataset = config.dataset
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
        return build_splits(dataset, tables, BUILTIN_DATASETS[dataset], config)
    path = user_path(dataset)
    if path.is_dir():
        files = select_splits({file.stem: file for file in sorted(path.glob("*.tsv"))}, "dataset")
        return _build_from_files(
            path.resolve().name, {split: file for split, (_, file) in files.items()}, config
        )
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
    return build_splits(dataset, _load_from_hub(dataset), None, config)


def _load_from_hub(dataset: str) -> dict[str, Table]:
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
    splits = select_splits(loaded, dataset)
    return {split: as_table(rows, f"{dataset} {name}") for split, (name, rows) in splits.items()}


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
    return replace(data, splits=splits)


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
