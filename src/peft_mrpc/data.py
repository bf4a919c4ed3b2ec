"""Sentence pairs: from the Hub, a GLUE directory, files of the user's own, or the built-in set.

A pair is one row with `idx`, `sentence1`, `sentence2` and `label` (an index into the label names,
-1 when unknown). Sources differ in columns and label spelling; after `load_pairs` they do not.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from peft_mrpc.config import DataConfig
from peft_mrpc.errors import UserError, closest, one_line, raise_faults
from peft_mrpc.tables import Table, parse_jsonl, read_table

SPLITS = ("train", "validation", "test")
BUILTIN_DATASETS = ("builtin:pairs",)
HUB_ALIASES = {"mrpc": "nyu-mll/glue:mrpc"}
PARAPHRASE_NAMES = ("not_equivalent", "equivalent")
UNKNOWN_LABEL = -1

# Column names that pair data sets use, tried in this order where no flag names one.
SENTENCE_COLUMNS = (
    ("sentence1", "sentence2"),
    ("#1 String", "#2 String"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
)
LABEL_COLUMNS = ("label", "Quality", "is_duplicate", "gold_label")


@dataclass(frozen=True)
class Pair:
    """One row: two sentences and, where known, the index of their label."""

    idx: int
    sentence1: str
    sentence2: str
    label: int = UNKNOWN_LABEL


@dataclass(frozen=True)
class PairData:
    """The splits of one data set, under one list of label names."""

    name: str
    label_names: tuple[str, ...]
    splits: Mapping[str, tuple[Pair, ...]]

    def fingerprint(self, split: str) -> str:
        """SHA-256 over the rows of a split, label names included: equal only for equal rows."""
        digest = hashlib.sha256()
        for pair in self.splits[split]:
            name = self.label_names[pair.label] if pair.label != UNKNOWN_LABEL else None
            row = [pair.idx, pair.sentence1, pair.sentence2, name]
            digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()


def load_pairs(config: DataConfig, seed: int = 42) -> PairData:
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
    data = _build_pairs(name, tables, names, config)
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
    columns = [config.sentence1_column, config.sentence2_column, config.label_column]
    named = [column for column in columns if column is not None]
    if len(set(named)) < len(named):
        faults.append(f"got the same column twice ({', '.join(named)}); expected different ones.")
    if config.class_names is not None:
        names = [name.strip() for name in config.class_names.split(",")]
        if len(names) < 2 or not all(names) or len(set(names)) < len(names):
            faults.append(
                f"--class_names: got {config.class_names!r}; expected two or more different names, "
                "comma-separated."
            )
    raise_faults(faults)


def _load_tables(
    dataset: str, label_column: str | None
) -> tuple[str, dict[str, Table], tuple[str, ...] | None]:
    if dataset == "files":
        raise UserError(
            "--dataset: got 'files' without --train_file, --validation_file or --test_file."
        )
    if dataset == "builtin:pairs":
        folder = resources.files("peft_mrpc") / "datasets" / "pairs"
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


def find_columns(table: Table, config: DataConfig) -> tuple[str, str, str | None]:
    """Names of the two sentence columns and of the label column, None where there is no label.

    Raises:
        UserError: If a named column is missing, or no usual pair of names is there.
    """
    faults = []
    for flag in ("sentence1_column", "sentence2_column", "label_column"):
        name = getattr(config, flag)
        if name is not None and name not in table.columns:
            faults.append(
                f"--{flag}: got {name!r}; {table.where} has {', '.join(table.columns)}."
                f"{closest(name, table.columns)}"
            )
    raise_faults(faults)
    usual = next(
        (pair for pair in SENTENCE_COLUMNS if set(pair) <= set(table.columns)), (None, None)
    )
    first, second = config.sentence1_column or usual[0], config.sentence2_column or usual[1]
    if first is None or second is None:
        raise UserError(
            f"{table.where}: found no sentence columns among {', '.join(table.columns)}; "
            "name them with --sentence1_column and --sentence2_column."
        )
    label = config.label_column or next((c for c in LABEL_COLUMNS if c in table.columns), None)
    return first, second, label


def _build_pairs(
    name: str,
    tables: Mapping[str, Table],
    names: tuple[str, ...] | None,
    config: DataConfig,
) -> PairData:
    columns = {split: find_columns(table, config) for split, table in tables.items()}
    if "train" in columns and columns["train"][2] is None:
        raise UserError(_no_label_column(tables["train"]))
    if config.class_names:
        names = tuple(name.strip() for name in config.class_names.split(","))
    # Numbers stand for positions in names that were given, never in names found in the rows.
    given = names is not None
    names = names or _infer_label_names(tables, columns)
    faults: list[str] = []
    splits = {
        split: tuple(_rows_to_pairs(tables[split], columns[split], names, split, faults, given))
        for split in SPLITS
        if split in tables
    }
    raise_faults(faults)
    return PairData(name, names, splits)


def _no_label_column(table: Table) -> str:
    return (
        f"{table.where}: found no label column ({', '.join(LABEL_COLUMNS)}); name it with "
        "--label_column, or the labels of unlabelled data with --class_names."
    )


def _infer_label_names(
    tables: Mapping[str, Table], columns: Mapping[str, tuple[str, str, str | None]]
) -> tuple[str, ...]:
    """Label names as the training rows have them: what they do not hold is not known later."""
    split = next((s for s in SPLITS if s in tables and columns[s][2] is not None), None)
    if split is None:
        raise UserError(_no_label_column(next(iter(tables.values()))))
    label_column = columns[split][2]
    values = {_label_text(row.get(str(label_column))) for row in tables[split].rows} - {"", "-1"}
    if values <= {"0", "1"} and label_column == "Quality":
        return PARAPHRASE_NAMES
    if values == set(PARAPHRASE_NAMES):
        return PARAPHRASE_NAMES
    if len(values) > 50 or any(_is_fraction(value) for value in values):
        some = ", ".join(sorted(values)[:3])
        raise UserError(
            f"{tables[split].where}: column {label_column!r} holds {len(values)} different values "
            f"({some}, ...); expected the names of a few classes. Name another with --label_column."
        )
    if len(values) < 2:
        raise UserError(
            f"{tables[split].where}: column {label_column!r} holds "
            f"{', '.join(map(repr, sorted(values))) or 'no label'}; expected at least two classes "
            "(-1 and empty mean unlabelled). Name them all with --class_names."
        )
    ordered = sorted(values, key=lambda v: (not v.isdigit(), int(v) if v.isdigit() else 0, v))
    if len(ordered) == 2 and _denies(ordered[1], ordered[0]):
        ordered.reverse()  # the positive class, of which ROC and precision speak, stands last
    return tuple(ordered)


def _denies(name: str, other: str) -> bool:
    """Whether a label is another with a `not`, `non`, `no`, `un` or `dis` before it."""
    pattern = r"(not|non|no|un|dis|in|ir)[\s_-]*" + re.escape(other)
    return re.fullmatch(pattern, name, flags=re.IGNORECASE) is not None


def _label_text(value: Any) -> str:
    """A label as text: 1, 1.0 and "1.0" are one label; None and NaN are none."""
    if isinstance(value, bool):
        return str(value).lower()
    text = "" if value is None or value != value else str(value).strip()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def _is_fraction(text: str) -> bool:
    try:
        return not float(text).is_integer()
    except ValueError:
        return False


def _rows_to_pairs(
    table: Table,
    columns: tuple[str, str, str | None],
    names: Sequence[str],
    split: str,
    faults: list[str],
    given: bool = False,
) -> Iterator[Pair]:
    index = {name: number for number, name in enumerate(names)}
    if (given or names == PARAPHRASE_NAMES) and not any(name.isdigit() for name in names):
        index |= {str(number): number for number in range(len(names))}
    for number, row in enumerate(table.rows):
        where = f"{table.where} row {number + 1}"
        sentences = []
        for column in columns[:2]:
            sentence = row.get(str(column))
            if not isinstance(sentence, str) or not sentence.strip():
                faults.append(f"{where}: got an empty {column!r}; expected a sentence.")
            sentences.append(str(sentence))
        value = None if columns[2] is None else row.get(columns[2])
        if isinstance(value, list | dict | bytes):
            faults.append(f"{where}: got label {value!r}; expected text or a number.")
            value = None
        text = _label_text(value)
        if text in ("", "-1") and text not in names:
            if split == "train":
                faults.append(f"{where}: got no label; every training pair needs one.")
            label = UNKNOWN_LABEL
        elif text in index:
            label = index[text]
        else:
            label = UNKNOWN_LABEL
            faults.append(
                f"{where}: got label {text!r}; expected one of {', '.join(names)}."
                f"{closest(text, names)}"
            )
        yield Pair(number, sentences[0], sentences[1], label)


def pairs_from_table(table: Table, config: DataConfig) -> list[Pair]:
    """The pairs of a table whose labels, if it has any, do not matter.

    Raises:
        UserError: For missing columns and empty sentences.
    """
    first, second, _ = find_columns(table, config)
    faults: list[str] = []
    pairs = list(_rows_to_pairs(table, (first, second, None), (), "predict", faults))
    raise_faults(faults)
    return pairs


def _limit(data: PairData, config: DataConfig, seed: int) -> PairData:
    splits = dict(data.splits)
    if config.max_train_samples and "train" in splits:
        order = np.random.default_rng(seed).permutation(len(splits["train"]))
        kept = sorted(order[: config.max_train_samples].tolist())
        splits["train"] = tuple(splits["train"][position] for position in kept)
    if config.max_eval_samples:
        for split in ("validation", "test"):
            if split in splits:
                splits[split] = splits[split][: config.max_eval_samples]
    return PairData(data.name, data.label_names, splits)


def reported_splits(data: PairData, wanted: str | None) -> list[str]:
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
    raise_faults(faults)
    return splits


def label_counts(pairs: Iterable[Pair], label_names: Sequence[str]) -> dict[str, int]:
    """How many pairs carry each label."""
    counts = dict.fromkeys(label_names, 0)
    for pair in pairs:
        if pair.label != UNKNOWN_LABEL:
            counts[label_names[pair.label]] += 1
    return counts
