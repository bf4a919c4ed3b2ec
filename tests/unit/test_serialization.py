"""JSON and YAML 1.2: one dialect for recipes, search spaces, templates and option values."""

from pathlib import Path

import pytest

from peft_mrpc.errors import UserError
from peft_mrpc.serialization import (
    dump_yaml,
    is_true,
    load_yaml,
    parse_scalar,
    read_json_lines,
    read_yaml,
    write_json_lines,
)


def test_yaml_1_2_numbers_and_words() -> None:
    text = "rate: 2e-5\nsave_strategy: no\ncache: off\nflag: true\nepochs: 010\nnothing: ~\n"
    assert load_yaml(text) == {
        "rate": 2e-5,
        "save_strategy": "no",
        "cache": "off",
        "flag": True,
        "epochs": 10,
        "nothing": None,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("3", 3),
        ("yes", "yes"),
        ("nan_value", "nan_value"),
        ("[a, 1e2]", ["a", 100.0]),
        ("a: b: c", "a: b: c"),
        ("*query", "*query"),
        ("inf", float("inf")),
    ],
)
def test_one_value_of_a_command_line(text: str, value: object) -> None:
    assert parse_scalar(text) == value


def test_duplicate_keys_are_refused_with_their_line() -> None:
    with pytest.raises(ValueError, match="got the key 'r' twice, line 3"):
        load_yaml("r: 1\nmethod: lora\nr: 2\n")


def test_a_dumped_mapping_keeps_its_order_and_values() -> None:
    content = {"r": 4, "learning_rate": 2e-5, "save_strategy": "no", "word": "2e-5", "list": [1, 2]}
    text = dump_yaml(content)
    assert list(load_yaml(text)) == list(content)
    assert load_yaml(text) == content


def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(UserError, match="config: got .*; expected a readable YAML file"):
        read_yaml(path, "config", "`name: value` lines")
    path.write_text("- a\n- b\n")
    with pytest.raises(UserError, match="mine.yaml: expected `name: value` lines."):
        read_yaml(path, "config", "`name: value` lines")
    path.write_text("a: [1")
    with pytest.raises(UserError, match="mine.yaml: not valid YAML: .*, line 1"):
        read_yaml(path, "config", "`name: value` lines")


def test_json_lines_keep_line_separators_inside_a_text(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b"}, {"text": "c\nd"}]
    write_json_lines(tmp_path / "new" / "rows.jsonl", rows)
    assert read_json_lines(tmp_path / "new" / "rows.jsonl") == rows


def test_words_for_true() -> None:
    assert all(is_true(value) for value in (True, "true", "Yes", "y", "1"))
    assert not any(is_true(value) for value in (False, "no", "off", "0", None))
