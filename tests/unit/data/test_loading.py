import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from conftest import MRPC, ROWS, requires_mrpc, write_csv

from peft_mrpc.config import DataConfig
from peft_mrpc.data.examples import SPLITS
from peft_mrpc.data.loading import (
    load_data,
    reported_splits,
    warn_conflicting_labels,
    warn_unknown_labels,
)
from peft_mrpc.errors import UserError
from peft_mrpc.runs.writer import describe_data

HEADER = ("sentence1", "sentence2", "label")
DROP = " Set drop_invalid_rows to drop such rows."


def faults_of(config: DataConfig) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        load_data(config)
    return caught.value.faults


@requires_mrpc
def test_loads_mrpc_in_glue_layout() -> None:
    data = load_data(DataConfig(dataset=str(MRPC)))
    assert {split: len(pairs) for split, pairs in data.splits.items()} == {
        "train": 3668,
        "validation": 408,
    }
    assert sum(pair.label for pair in data.splits["train"]) == 2474
    assert sum(pair.label for pair in data.splits["validation"]) == 279
    assert data.label_names == ("not_equivalent", "equivalent")


def test_tsv_is_unquoted(tmp_path: Path) -> None:
    lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    lines += ['1\t1\t2\t"He said so\tHe said that', '0\t3\t4\tNo" quote\t"Another']
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    train = load_data(DataConfig(dataset=str(tmp_path))).splits["train"]
    assert [pair.sentence1 for pair in train] == ['"He said so', 'No" quote']
    assert [pair.label for pair in train] == [1, 0]


def test_csv_cells_are_text(tmp_path: Path) -> None:
    rows = [("null", "NA", "yes"), ('a "quoted", cell', "two\nlines", "no")]
    path = write_csv(tmp_path / "train.csv", rows, HEADER)
    data = load_data(DataConfig(train_file=str(path)))
    assert [(p.sentence1, p.sentence2) for p in data.splits["train"]] == [row[:2] for row in rows]
    assert data.label_names == ("no", "yes")


def test_all_file_types_give_equal_examples(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    records = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    csv_path = write_csv(tmp_path / "a.csv", ROWS, HEADER)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    expected = load_data(DataConfig(train_file=str(csv_path)))
    for name in ("a.jsonl", "a.parquet"):
        data = load_data(DataConfig(train_file=str(tmp_path / name)))
        assert data.splits == expected.splits
        assert data.fingerprint("train") == expected.fingerprint("train")


def test_reports_every_invalid_row(tmp_path: Path) -> None:
    rows = [*ROWS, ("", "b", "equivalent"), ("a", "  ", "equivalent"), ("a", "b", "equivalnt")]
    names = "not_equivalent,equivalent"
    path = write_csv(tmp_path / "train.csv", rows, HEADER)
    faults = faults_of(DataConfig(train_file=str(path), class_names=names))
    assert faults == (
        f"{path}: got an empty 'sentence1' in row 10; expected a sentence.{DROP}",
        f"{path}: got an empty 'sentence2' in row 11; expected a sentence.{DROP}",
        f"{path}: got label 'equivalnt' in row 12; expected one of not_equivalent, equivalent. "
        "Did you mean 'equivalent'?",
    )


def test_rejects_a_label_that_train_does_not_have(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", ROWS, HEADER)
    other = write_csv(tmp_path / "test.csv", [("a", "b", "maybe")], HEADER)
    (fault,) = faults_of(DataConfig(train_file=str(train), test_file=str(other)))
    assert "got label 'maybe' in row 1; expected one of not_equivalent, equivalent." in fault


@pytest.mark.parametrize(
    ("dataset", "fault"),
    [
        ("mprc", "Did you mean 'mrpc'?"),
        ("builtin:pair", "Did you mean 'builtin:pairs'?"),
        ("./nowhere", "expected a directory in GLUE's layout"),
        ("files", "without a file. Set train_file"),
    ],
)
def test_rejects_unknown_data_sets(dataset: str, fault: str) -> None:
    assert fault in faults_of(DataConfig(dataset=dataset))[0]


def test_rejects_missing_empty_and_malformed_files(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("sentence1,sentence2,label\n")
    (tmp_path / "wide.csv").write_text("sentence1,sentence2,label\na,b,1\na,b,1,c\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "broken.jsonl").write_text('{"sentence1": "a"}\n{oops\n')
    messages = {
        name: faults_of(DataConfig(train_file=str(tmp_path / name)))[0]
        for name in ("no.csv", "empty.csv", "header.csv", "wide.csv", "binary.csv", "broken.jsonl")
    }
    assert messages["no.csv"].endswith("no such file.")
    assert "got an empty file" in messages["empty.csv"]
    assert "header.csv: got a header and no row; expected" in messages["header.csv"]
    assert "row 2: got 4 fields; expected 3" in messages["wide.csv"]
    assert "is not UTF-8 text" in messages["binary.csv"]
    assert "line 2: not valid JSON" in messages["broken.jsonl"]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [("a", "b", "x"), ("c", "d", "y")], ("left", "right", "y"))
    (fault,) = faults_of(DataConfig(train_file=str(path)))
    assert "got the columns left, right, y; expected one of the usual pairs" in fault
    columns = {"sentence1_column": "left", "sentence2_column": "right"}
    (fault,) = faults_of(DataConfig(train_file=str(path), **columns))
    assert "got no label column" in fault
    (fault,) = faults_of(DataConfig(train_file=str(path), **columns, label_column="Y"))
    assert fault.startswith("label_column: got 'Y'")
    data = load_data(DataConfig(train_file=str(path), **columns, label_column="y"))
    assert data.label_names == ("x", "y")


def test_explains_another_delimiter(tmp_path: Path) -> None:
    semicolons = tmp_path / "semicolons.csv"
    semicolons.write_text("sentence1;sentence2;label\na;b;1\n")
    (fault,) = faults_of(DataConfig(train_file=str(semicolons)))
    assert "a comma in .csv" in fault
    (fault,) = faults_of(DataConfig(train_file=str(semicolons), sentence1_column="sentence1"))
    assert fault.startswith("sentence1_column: got 'sentence1'")
    assert "a comma in .csv" in fault


def test_reports_another_delimiter_among_commas_once(tmp_path: Path) -> None:
    path = tmp_path / "semicolons.csv"
    path.write_text("sentence1;sentence2;label\na, b;c;1\nd;e, f, g;0\nh;i;0\n")
    (fault,) = faults_of(DataConfig(train_file=str(path)))
    assert "got one column, 'sentence1;sentence2;label'" in fault and "not ';'" in fault


def test_finds_usual_columns_in_any_case(tmp_path: Path) -> None:
    for header in (("Sentence1", " sentence2", "LABEL"), ("text_a", "text_b", "label")):
        train = str(write_csv(tmp_path / "train.csv", ROWS, header))
        assert [
            (p.sentence1, p.sentence2)
            for p in load_data(DataConfig(train_file=train)).splits["train"]
        ] == [row[:2] for row in ROWS]
    both = ("Sentence1", "sentence1", "sentence2", "label")
    rows = [("no", *row) for row in ROWS]
    train = str(write_csv(tmp_path / "train.csv", rows, both))
    assert load_data(DataConfig(train_file=train)).splits["train"][0].sentence1 == ROWS[0][0]


def test_rejects_labels_that_differ_only_in_case(tmp_path: Path) -> None:
    rows = [("a", "b", "yes"), ("c", "d", "no"), ("e", "f", "Yes")]
    train = str(write_csv(tmp_path / "train.csv", rows, HEADER))
    (fault,) = faults_of(DataConfig(train_file=train))
    assert "column 'label': got 'Yes' and 'yes', which differ only in case" in fault
    named = DataConfig(train_file=train, class_names="no,yes,Yes")
    assert [pair.label for pair in load_data(named).splits["train"]] == [1, 0, 2]


@pytest.mark.parametrize("missing", ["NaN", "nan"])
def test_reports_the_row_of_a_missing_label(missing: str, tmp_path: Path) -> None:
    rows = [("a", "b", "yes"), ("c", "d", "no"), ("e", "f", missing)]
    train = str(write_csv(tmp_path / "train.csv", rows, HEADER))
    (fault,) = faults_of(DataConfig(train_file=train))
    expected = f"{train}: got no label in row 3; expected a label in each training row."
    assert fault == expected + DROP


def test_warns_of_missing_and_conflicting_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("a", "b", "yes"), ("c", "d", "no"), ("A", " b", "no"), ("b", "a", "no")]
    train = str(write_csv(tmp_path / "train.csv", rows, HEADER))
    held = str(write_csv(tmp_path / "dev.csv", [("a", "b", "yes"), ("c", "d", "")], HEADER))
    data = load_data(DataConfig(train_file=train, validation_file=held))
    warn_unknown_labels(data, ["train"])
    assert not caplog.messages
    warn_unknown_labels(data, ["validation"])
    warn_conflicting_labels(data.splits["train"])
    assert caplog.messages == [
        "validation: 1 of 2 examples have no label; the metrics ignore them",
        "validation: every label is 'yes'; accuracy is not informative and ROC-AUC is undefined",
        "train: 1 of 4 examples also occur with a different label, e.g. 'A'",
    ]


@pytest.mark.parametrize(
    ("columns", "got"),
    [
        ({"sentence1_column": "label"}, "'label', 'sentence2' and 'label'"),
        ({"label_column": "sentence2"}, "'sentence1', 'sentence2' and 'sentence2'"),
        ({"sentence1_column": "sentence2"}, "'sentence2', 'sentence2' and 'label'"),
    ],
)
def test_rejects_one_column_for_two_purposes(
    columns: dict[str, str], got: str, pair_files: dict[str, str]
) -> None:
    (fault,) = faults_of(DataConfig(train_file=pair_files["train"], **columns))
    assert f"got {got} for the sentences and the label; expected different columns" in fault


def test_rejects_a_number_as_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    path.write_text('{"sentence1": 5, "sentence2": "b", "label": 1}\n')
    fault = faults_of(DataConfig(train_file=str(path), class_names="no,yes"))[0]
    assert "got a value of type int in 'sentence1' in row 1; expected text." in fault


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1, 2], ("1", "2")),
        ([1.0, 0], ("0", "1")),
        ([True, False], ("false", "true")),
        (["equivalent", "not equivalent"], ("not equivalent", "equivalent")),
        (["duplicate", "not_duplicate"], ("not_duplicate", "duplicate")),
        (["c", "a", "b"], ("a", "b", "c")),
    ],
)
def test_orders_labels_with_the_negated_one_first(
    values: list[object], names: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"sentence1": "a", "sentence2": "b", "label": value} for value in values]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert load_data(DataConfig(train_file=str(path))).label_names == names


def test_numbers_are_indices_into_stated_names_only(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "t.csv", [("a", "b", "1"), ("c", "d", "2")], HEADER)
    other = write_csv(tmp_path / "v.csv", [("a", "b", "0")], HEADER)
    (fault,) = faults_of(DataConfig(train_file=str(train), validation_file=str(other)))
    assert "got label '0' in row 1; expected one of 1, 2." in fault
    named = DataConfig(validation_file=str(other), class_names="no,yes")
    assert load_data(named).splits["validation"][0].label == 0


@pytest.mark.parametrize("names", ["a", "a,a", "a,,b", ""])
def test_rejects_invalid_class_names(names: str, pair_files: dict[str, str]) -> None:
    (fault,) = faults_of(DataConfig(train_file=pair_files["train"], class_names=names))
    assert fault.startswith(f"class_names: got {names!r}; expected two or more different names")


def test_rejects_duplicate_columns_and_two_sources(
    tmp_path: Path, pair_files: dict[str, str]
) -> None:
    path = write_csv(tmp_path / "t.csv", [("a", "b", "1", "0")], (*HEADER, "label"))
    (fault,) = faults_of(DataConfig(train_file=str(path)))
    assert fault == f"{path}: got column 'label' twice; rename one."
    train = pair_files["train"]
    (fault,) = faults_of(DataConfig(train_file=train, dataset="builtin:pairs"))
    assert "and train_file; expected one of them" in fault


def test_counts_examples_that_occur_in_train(tmp_path: Path) -> None:
    train = [("A cat  sat.", "a dog", "yes"), ("a cow", "a hen", "no")]
    other = [
        *(("a dog", "a cat sat.", "no"), ("A COW", " a hen", "no")),  # turned round; as written
        *(("a cow", "a cow", "yes"), ("a cat sat.", "a hen", "no")),  # neither is a training pair
    ]
    files = {
        f"{split}_file": str(write_csv(tmp_path / f"{split}.csv", rows, HEADER))
        for split, rows in (("train", train), ("validation", other), ("test", other[2:]))
    }
    data = load_data(DataConfig(**files))
    assert data.num_leaked == {"validation": 2, "test": 0}
    assert describe_data(data, list(SPLITS))["splits"]["validation"]["num_leaked"] == 2
    del files["train_file"]
    assert load_data(DataConfig(**files)).num_leaked == {"validation": 0, "test": 0}


@requires_mrpc
def test_mrpc_and_the_builtin_data_have_no_leaked_examples() -> None:
    for dataset in (str(MRPC), "builtin:pairs"):
        assert not any(load_data(DataConfig(dataset=dataset)).num_leaked.values())


def test_selects_the_splits_to_evaluate(pair_files: dict[str, str]) -> None:
    data = load_data(DataConfig(validation_file=pair_files["validation"]))
    assert reported_splits(data, None) == ["validation"]
    with pytest.raises(UserError, match="split: got 'valdation'.*Did you mean 'validation'"):
        reported_splits(data, "valdation")
    with pytest.raises(UserError, match="no validation or test split"):
        reported_splits(load_data(DataConfig(train_file=pair_files["train"])), None)


def test_the_builtin_data_is_diverse_and_hard() -> None:
    data = load_data(DataConfig(dataset="builtin:pairs"))
    pairs = [pair for split in SPLITS for pair in data.splits[split]]
    assert len(pairs) >= 400
    sentences = [s.lower() for pair in pairs for s in (pair.sentence1, pair.sentence2)]
    assert len(set(sentences)) == len(sentences)
    # No frame behind more than a few rows: the first three words open few pairs.
    openings = Counter(tuple(pair.sentence1.lower().split()[:3]) for pair in pairs)
    assert openings.most_common(1)[0][1] <= 6

    def overlap(pair: object) -> float:
        first, second = (
            set(s.lower().strip(".?").split()) for s in (pair.sentence1, pair.sentence2)
        )  # type: ignore[attr-defined]
        return len(first & second) / len(first | second)

    by_label = [[overlap(p) for p in pairs if p.label == label] for label in (0, 1)]
    means = [sum(values) / len(values) for values in by_label]
    assert means[0] > means[1]  # word overlap misleads: it is higher where meanings differ


def test_sample_limits_keep_the_order_and_depend_on_the_seed(pair_files: dict[str, str]) -> None:
    config = DataConfig(
        train_file=pair_files["train"],
        validation_file=pair_files["validation"],
        max_train_samples=5,
        max_eval_samples=3,
    )
    first, again, other = (load_data(config, seed=seed) for seed in (1, 1, 2))
    assert [p.idx for p in first.splits["validation"]] == [0, 1, 2]
    idx = [p.idx for p in first.splits["train"]]
    assert len(idx) == 5 and idx == sorted(idx)
    assert first.splits == again.splits != other.splits


def test_a_hub_data_set_has_its_own_label_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(repo_id: str, config_name: str | None) -> datasets.DatasetDict:
        """The network's part alone: what the Hub's GLUE gives, with its columns and features."""
        asked.append((repo_id, config_name))
        names = datasets.ClassLabel(names=["not_equivalent", "equivalent"])
        text = datasets.Value("string")
        features = {"sentence1": text, "sentence2": text, "label": names}
        features |= {"idx": datasets.Value("int32")}
        columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1, 0], "idx": [7, 9]}
        split = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        unlabelled = datasets.Dataset.from_dict(
            {**columns, "label": [-1, -1]}, features=datasets.Features(features)
        )
        return datasets.DatasetDict(train=split, validation=split, test=unlabelled)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_data(DataConfig())
    assert asked == [("nyu-mll/glue", "mrpc")]
    assert data.label_names == ("not_equivalent", "equivalent")
    assert [pair.label for pair in data.splits["train"]] == [1, 0]
    assert [pair.label for pair in data.splits["test"]] == [-1, -1]
    load_data(DataConfig(dataset="owner/name:config"))
    assert asked[-1] == ("owner/name", "config")


def class_label_dataset(names: list[str], positions: list[int]) -> Any:
    import datasets

    text = datasets.Value("string")
    features = {"sentence1": text, "sentence2": text, "label": datasets.ClassLabel(names=names)}
    texts = [f"position {position}" for position in positions]
    columns = {"sentence1": texts, "sentence2": texts, "label": positions}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_parquet_files_of_datasets_keep_their_label_names(tmp_path: Path) -> None:
    paths = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "validation")}
    class_label_dataset(["1", "0"], [0, 1, 1]).to_parquet(paths["train"])
    class_label_dataset(["0", "1"], [0, 1, -1]).to_parquet(paths["validation"])  # another order
    config = DataConfig(train_file=paths["train"], validation_file=paths["validation"])
    data = load_data(config)
    assert data.label_names == ("1", "0")
    assert [example.label for example in data.splits["train"]] == [0, 1, 1]
    assert [example.label for example in data.splits["validation"]] == [1, 0, -1]


def test_a_position_without_a_name_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    class_label_dataset(["no", "yes"], [0, 1]).to_parquet(path)
    table = pyarrow.parquet.read_table(path)
    columns = [*(table.column(name) for name in ("sentence1", "sentence2")), pyarrow.array([0, 2])]
    schema = table.schema  # with the names
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), path)
    with pytest.raises(UserError, match=r"row 2: got 2 in 'label'; expected at most 1"):
        load_data(DataConfig(train_file=str(path), validation_file=str(path)))


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"info": 1}', b'{"info": {"features": {"a": 1}}}'])
def test_other_metadata_of_parquet_files_is_ignored(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    table = pyarrow.table({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": ["x", "y"]})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": text}), path)
    data = load_data(DataConfig(train_file=str(path), validation_file=str(path)))
    assert data.label_names == ("x", "y")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The splits of every data set on the Hub, to be filled."""
    import datasets
    import huggingface_hub

    splits: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(splits))
    return splits


@pytest.mark.parametrize(
    "names", [sorted(map(str, range(11))), ["1", "0"], list("12345"), ["1.0", "1", " b"]]
)
def test_class_label_positions_are_positions_and_names_are_names(
    names: list[str], hub: dict[str, Any]
) -> None:
    hub["train"] = class_label_dataset(names, [*range(len(names))])
    hub["validation"] = class_label_dataset(names[::-1], [*range(len(names))])  # another order
    data = load_data(DataConfig(dataset="some/numbers"))
    assert data.label_names == tuple(names)
    assert [example.label for example in data.splits["train"]] == [*range(len(names))]
    assert [e.label for e in data.splits["validation"]] == [*range(len(names))][::-1]


@pytest.mark.parametrize(
    ("class_names", "labels"),
    [
        ("different,same", [0, 1]),  # other names, by position
        ("equivalent,not_equivalent", [1, 0]),  # the same names in another order
    ],
)
def test_class_names_rename_or_reorder_a_class_label(
    class_names: str, labels: list[int], hub: dict[str, Any]
) -> None:
    hub["train"] = class_label_dataset(["not_equivalent", "equivalent"], [0, 1])
    data = load_data(DataConfig(dataset="some/pairs", class_names=class_names))
    assert data.label_names == tuple(class_names.split(","))
    assert [example.label for example in data.splits["train"]] == labels


@pytest.mark.parametrize("class_names", ["a,b", "yes,maybe,no", "1,2,3,4"])
def test_rejects_class_names_that_do_not_fit_a_class_label(
    class_names: str, hub: dict[str, Any]
) -> None:
    hub["train"] = class_label_dataset(["no", "maybe", "yes", "-"], [0, 1, 2, 3])
    config = DataConfig(dataset="some/nli", class_names=class_names, drop_invalid_rows=True)
    if class_names == "yes,maybe,no":
        data = load_data(config)
        assert [example.label for example in data.splits["train"]] == [2, 1, 0]
        return
    (fault,) = faults_of(config)
    assert "some/nli train: got the label names no, maybe, yes; expected those" in fault


def test_splits_with_other_class_label_names_are_refused(hub: dict[str, Any]) -> None:
    hub["train"] = class_label_dataset(["no", "yes"], [0, 1])
    hub["validation"] = class_label_dataset(["0", "1"], [0, 1])
    (fault,) = faults_of(DataConfig(dataset="some/set"))
    assert fault.startswith("some/set validation: got the label names 0, 1; expected those")
    data = load_data(DataConfig(dataset="some/set", class_names="a,b"))
    assert [example.label for example in data.splits["validation"]] == [0, 1]


@pytest.mark.parametrize("names", ["a,-", "a,-1,b", "nan,b"])
def test_class_names_are_not_spellings_of_no_label(names: str) -> None:
    (fault,) = faults_of(DataConfig(class_names=names))
    assert "means no label; expected names of classes" in fault


@pytest.mark.parametrize("missing", ["-", -1, None, "", "-1", float("nan")])
def test_training_rows_without_a_label_are_dropped_on_request(
    missing: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "gold_label": v} for v in ("x", missing, "y")]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (fault,) = faults_of(DataConfig(train_file=str(path)))
    expected = f"{path}: got no label in row 2; expected a label in each training row."
    assert fault == expected + DROP
    files = {"train_file": str(path), "validation_file": str(path)}
    data = load_data(DataConfig(**files, drop_invalid_rows=True))
    assert data.label_names == ("x", "y")
    assert [(e.idx, e.label) for e in data.splits["train"]] == [(0, 0), (1, 1)]
    assert [e.label for e in data.splits["validation"]] == [0, -1, 1]
    assert data.dropped == {"train": {"no label": 1}}
    assert "train: dropped 1 of 3 rows: 1 with no label" in caplog.messages
    assert describe_data(data, ["train"])["splits"]["train"]["dropped"] == {"no label": 1}


def test_invalid_rows_of_every_split_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [*ROWS, ("", "b", "equivalent"), ("a", " ", "equivalent"), ("a", "", "only here")]
    path = str(write_csv(tmp_path / "t.csv", rows, HEADER))
    data = load_data(DataConfig(train_file=path, test_file=path, drop_invalid_rows=True))
    reasons = {"an empty 'sentence1'": 1, "an empty 'sentence2'": 2}
    assert data.dropped == {"train": reasons, "test": reasons}
    assert data.label_names == ("not_equivalent", "equivalent")
    assert len(data.splits["test"]) == len(ROWS)
    empty = str(write_csv(tmp_path / "e.csv", [("", "b", "equivalent")], HEADER))
    (fault,) = faults_of(DataConfig(train_file=path, test_file=empty, drop_invalid_rows=True))
    assert fault == f"{empty}: got no valid row; expected at least one."
    unknown = str(write_csv(tmp_path / "u.csv", [("a", "b", "maybe")], HEADER))
    (fault,) = faults_of(DataConfig(train_file=path, test_file=unknown, drop_invalid_rows=True))
    assert "got label 'maybe' in row 1" in fault  # not silently dropped


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("kind", ["tuples", "frame", "file"])
def test_a_lone_surrogate_is_refused_or_dropped(kind: str, place: int, tmp_path: Path) -> None:
    bad = tuple("a \ud800" if column == place else "no" for column in range(3))
    rows = [("a", "b", "no"), ("c", "d", "yes"), bad]
    expected = f"got a lone surrogate in {HEADER[place]!r} in row 3; expected Unicode text."
    if kind != "file":
        frame = pandas.DataFrame(rows, columns=list(HEADER), dtype=object)
        with pytest.raises(UserError) as caught:
            load_data({"train": rows if kind == "tuples" else frame})
        assert caught.value.faults == (f"data['train']: {expected}",)
        return
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(dict(zip(HEADER, row, strict=True))) for row in rows))
    assert faults_of(DataConfig(train_file=str(path))) == (f"{path}: {expected}{DROP}",)
    data = load_data(DataConfig(train_file=str(path), drop_invalid_rows=True))
    assert len(data.splits["train"]) == 2


def test_reports_the_faults_of_all_files(tmp_path: Path) -> None:
    header = write_csv(tmp_path / "columns.csv", ROWS, ("left", "right", "label"))
    rows = write_csv(tmp_path / "rows.csv", [("", "b", "yes")], HEADER)
    files = {"train_file": str(tmp_path / "no.csv"), "validation_file": str(header)}
    faults = faults_of(DataConfig(**files, test_file=str(rows)))
    assert [fault.split(":")[0] for fault in faults] == [
        str(tmp_path / name) for name in ("no.csv", "columns.csv", "rows.csv")
    ]


@pytest.mark.parametrize("name", ["dev", "val", "validation_matched", "validation_mismatched"])
def test_the_validation_split_has_several_names(
    name: str, hub: dict[str, Any], tmp_path: Path
) -> None:
    rows = class_label_dataset(["no", "yes"], [0, 1, 1])
    hub |= {"train": rows, name: rows, "test_matched": rows}
    data = load_data(DataConfig(dataset="some/set"))
    assert list(data.splits) == ["train", "validation"] and len(data.splits["validation"]) == 3
    assert list(load_data({"train": rows, name: rows}).splits) == ["train", "validation"]
    for stem in ("train", name):
        rows.to_csv(tmp_path / f"{stem}.tsv", sep="\t", index=False)
    data = load_data(DataConfig(dataset=str(tmp_path)))
    assert list(data.splits) == ["train", "validation"]


def test_of_two_validation_splits_the_first_is_used(
    hub: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    hub["validation_mismatched"] = class_label_dataset(["no", "yes"], [0])
    hub["validation_matched"] = class_label_dataset(["no", "yes"], [0, 1])
    data = load_data(DataConfig(dataset="some/set"))
    assert len(data.splits["validation"]) == 2
    assert caplog.messages == [
        "some/set: the validation split is 'validation_matched'; validation_mismatched is not used"
    ]


def test_an_unreachable_hub_leaves_the_process_online(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    offline = []

    def load_dataset(*_: object) -> datasets.DatasetDict:
        offline.append(datasets.config.HF_HUB_OFFLINE)
        rows = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": ["x", "y"]}
        return datasets.DatasetDict(train=datasets.Dataset.from_dict(rows))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    before = datasets.config.HF_HUB_OFFLINE
    load_data(DataConfig(dataset="owner/name"))
    assert offline == [True]  # from the cache only, without half a minute of retries
    assert before == datasets.config.HF_HUB_OFFLINE


def in_memory(kind: str, rows: list[tuple[object, ...]]) -> object:
    import datasets

    frame = pandas.DataFrame(rows, columns=list(HEADER[: len(rows[0])]))
    made = {"tuples": rows, "frame": frame, "dataset": datasets.Dataset.from_pandas(frame)}
    return made[kind]


@pytest.mark.parametrize("kind", ["tuples", "frame", "dataset"])
def test_data_in_memory_equals_data_in_files(kind: str, tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "rows.csv", ROWS, HEADER))
    expected = load_data(DataConfig(train_file=path, validation_file=path))
    rows = [tuple(row) for row in ROWS]
    data = load_data({"train": in_memory(kind, rows), "validation": in_memory(kind, rows)})
    assert data.splits == expected.splits and data.label_names == expected.label_names


@pytest.mark.parametrize("kind", ["tuples", "frame", "dataset"])
def test_integer_labels_in_memory_are_names(kind: str) -> None:
    rows = [("a", "b", 2), ("c", "d", 1)]
    data = load_data({"train": in_memory(kind, rows)})
    assert data.label_names == ("1", "2")
    assert [example.label for example in data.splits["train"]] == [1, 0]


def test_a_dataset_in_memory_has_its_own_label_names() -> None:
    import datasets

    features = datasets.Features(
        {
            "sentence1": datasets.Value("string"),
            "sentence2": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    rows = {"sentence1": ["a"], "sentence2": ["b"], "label": [1]}
    data = load_data({"train": datasets.Dataset.from_dict(rows, features=features)})
    assert data.label_names == ("no", "yes") and data.splits["train"][0].label == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data: got the splits none; expected some of train, validation, test (also"),
        ({"devel": [("a", "b", 1)]}, "data: got the splits devel; expected some of train"),
        ({"train": []}, "data['train']: got no row; expected at least one."),
        ({"train": "text"}, "data['train']: got str; expected a list of tuples"),
        ({"train": [("a",)]}, "data['train'] row 1: got ('a',); expected (sentence1, sentence2)"),
        ({"train": [("a", "b")]}, "data['train']: got no label column"),
    ],
)
def test_rejects_invalid_data_in_memory(data: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_data(data)
    assert caught.value.faults[0].startswith(message)
