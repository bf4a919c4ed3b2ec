"""Whatever the files of a Run contain, it is compared, or refused with a message."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from example_runs import NAMES, SCORES, build_run
from fuzzing import ANY_TEXT, SETTINGS, VALUES
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_mrpc.api import compare_runs
from peft_mrpc.errors import UserError
from peft_mrpc.formatting import CONTROL_CHARACTER

FILES = ("run.json", "metrics.json", "predictions/test.jsonl")


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every entry of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    paths = []
    for key, entry in items:
        paths.append((*place, key))
        if isinstance(entry, dict | list):
            paths += places(entry, (*place, key))
    return paths


def replace_entry(value: Any, place: tuple[Any, ...], entry: Any) -> None:
    for key in place[:-1]:
        value = value[key]
    value[place[-1]] = entry


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("runs") / "run", SCORES["a"]).path


def copy_run(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run", dirs_exist_ok=True))


def assert_compared_or_refused(folder: Path, writes_page: bool = False) -> None:
    try:
        report = compare_runs([str(folder)])
        text = report.to_markdown()
        if writes_page:
            report.write_html(folder / "report.html")
    except UserError as error:
        assert 0 < len(error.lines()) <= 11
    else:
        assert not CONTROL_CHARACTER.search(text)


@SETTINGS
@given(data=st.data())
def test_an_edited_run_is_compared_or_refused(
    data: st.DataObject, run: Path, tmp_path: Path
) -> None:
    folder = copy_run(run, tmp_path)
    path = folder / data.draw(st.sampled_from(FILES))
    is_table = path.suffix == ".jsonl"
    texts = path.read_text().splitlines() if is_table else [path.read_text()]
    content = [json.loads(text) for text in texts]
    place = data.draw(st.sampled_from(places(content)))
    replace_entry(content, place, data.draw(VALUES))
    path.write_text("\n".join(json.dumps(value) for value in content))
    assert_compared_or_refused(folder)


@SETTINGS
@given(content=st.binary(), name=st.sampled_from(FILES))
def test_a_run_with_other_content_is_refused(
    content: bytes, name: str, run: Path, tmp_path: Path
) -> None:
    folder = copy_run(run, tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError):
        compare_runs([str(folder)])


@settings(SETTINGS, max_examples=8)
@given(name=ANY_TEXT.filter(str.strip), sentence=ANY_TEXT)
def test_a_report_shows_any_name_and_sentence_as_text(
    name: str, sentence: str, run: Path, tmp_path: Path
) -> None:
    folder = copy_run(run, tmp_path)
    for file in FILES:
        text = (folder / file).read_text().replace(f'"{NAMES[0]}"', json.dumps(name))
        (folder / file).write_text(text.replace('"sentence 0"', json.dumps(sentence)))
    assert_compared_or_refused(folder, writes_page=True)
