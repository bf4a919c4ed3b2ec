import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from example_runs import PERFECT, SCORES, TRUTH, build_run, build_three_label_run, change_record

from peft_mrpc.api import compare_runs
from peft_mrpc.errors import UserError
from peft_mrpc.report.html import MAX_CHARACTERS, browser_data
from peft_mrpc.report.tables import escape_markdown
from peft_mrpc.runs.run import Run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """A multi-seed Run with accuracies 0.8, 0.8 and 1, and another Run."""
    seeds = [
        build_run(tmp_path / f"s{seed}", scores, "lora", seed=seed)
        for seed, scores in enumerate((SCORES["a"], SCORES["b"], PERFECT), start=1)
    ]
    return [*seeds, build_run(tmp_path / "o", SCORES["b"], "full")]


def test_a_report_has_metrics_and_markdown(runs: list[Run], capsys: object) -> None:
    report = compare_runs([str(run.path) for run in runs])
    assert set(report.metrics) == {"lora · model-x", "full · model-x"}
    assert report.metrics["full · model-x"]["accuracy"] == 0.8
    markdown = report.to_markdown()
    assert "# toy: test split" in markdown and "| lora · model-x" in markdown
    assert "0.867 ± 0.115" in markdown and "± is the standard deviation" in markdown
    assert "p value of the exact McNemar test of equal accuracy" in markdown
    assert "![" not in markdown
    assert capsys.readouterr().out == ""  # type: ignore[attr-defined]


def test_the_files_of_a_report(runs: list[Run], tmp_path: Path) -> None:
    compare_runs(runs).write(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.html", "report.md", "report.json", "plots"}
    for name in ("confusion_matrices", "roc_curves", "costs", "learning_curves"):
        for suffix in (".png", ".svg"):
            assert (tmp_path / "out" / "plots" / f"{name}{suffix}").stat().st_size > 5000
    text = (tmp_path / "out" / "report.md").read_text()
    assert "(plots/confusion_matrices.png)" in text
    with pytest.raises(UserError, match="already holds a report"):
        compare_runs(runs).write(tmp_path / "out")
    compare_runs(runs, aggregate_seeds=False).write(tmp_path / "out", overwrite=True)
    assert "| lora · model-x (s3)" in (tmp_path / "out" / "report.md").read_text()


def test_the_json_follows_its_schema(runs: list[Run]) -> None:
    asset = resources.files("peft_mrpc") / "assets" / "report.schema.json"
    schema = json.loads(asset.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    content = json.loads(json.dumps(compare_runs(runs).to_json()))
    jsonschema.validate(content, schema)
    for key in ("rows", "analysis", "format_version"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in content.items() if k != key}, schema)
    del content["analysis"]["differences"][0]["holm"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


def test_a_report_of_a_single_label_has_no_nan(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / name, SCORES[name], name, truth=[1] * 5) for name in ("a", "b")]
    report = compare_runs(runs)
    assert "NaN" not in json.dumps(report.to_json())
    report.write_html(tmp_path / "report.html")


def test_a_report_of_three_labels(tmp_path: Path) -> None:
    text = compare_runs([build_three_label_run(tmp_path / "a")]).to_text()
    assert "F1 contradiction" in text and "0.333" in text


def test_invalid_options_are_refused_together(runs: list[Run]) -> None:
    with pytest.raises(UserError) as raised:
        compare_runs(runs, equivalence_margin=0, max_examples=-1)
    assert [line.split(";")[0] for line in raised.value.lines()] == [
        "equivalence_margin: got 0",
        "max_examples: got -1",
    ]


def test_the_labels_keep_their_capitals(tmp_path: Path) -> None:
    run = build_run(tmp_path / "a", SCORES["a"])
    for name in ("metrics.json", "predictions/test.jsonl"):
        path = run.path / name
        path.write_text(path.read_text().replace('"equivalent"', '"Same Meaning"'))
    run = change_record(
        run, lambda r: r["data"].update(label_names=["not_equivalent", "Same Meaning"])
    )
    assert "Always predicting “Same Meaning” has" in compare_runs([run]).to_markdown()


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    name = "<b>*x*</b> [a](b) `c` | d_e _f_"
    escaped = r"&lt;b>\*x\*&lt;/b> \[a\](b) \`c\` \| d_e \_f\_"
    assert escape_markdown(name) == escaped
    runs = [build_run(tmp_path / n, SCORES[n], name if n == "a" else n) for n in ("a", "b")]
    report = compare_runs(runs)
    text = report.to_markdown()
    assert f"| {escaped} · model-x" in text and "<b>" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.split(r"(?<!\\)\|", row)) - 2 for row in rows} == {9, 10}
    report.write_html(tmp_path / "report.html")
    assert "&lt;b&gt;*x*&lt;/b&gt;" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "\x1b[31mred\x07", "a\ud800b", "l" * 3000]
)
def test_foreign_names_are_text_in_every_file(name: str, tmp_path: Path) -> None:
    run = build_run(tmp_path / "a", SCORES["a"])
    for file in ("metrics.json", "predictions/test.jsonl"):
        path = run.path / file
        path.write_text(path.read_text().replace('"equivalent"', json.dumps(name)))

    def change(record: Any) -> None:
        record["data"].update(label_names=["not_equivalent", name], name=name)
        record.update(model=name)

    report = compare_runs([change_record(run, change)])
    report.write(tmp_path / "out")
    for text in (report.to_text(), (tmp_path / "out" / "report.md").read_text()):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]", text)
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", page) and "<script>alert" not in page


class Audit(HTMLParser):
    """The tags and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "action")]


def test_the_page_has_no_external_resources_and_escapes_the_data(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script>"
    run = build_run(tmp_path / "a", SCORES["a"], method=attack, sentence=attack)
    compare_runs([run]).write_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    audit = Audit()
    audit.feed(page)
    assert audit.tags.count("script") == 2  # the data, and the script of the page
    assert "alert(1)</script>" not in page and "&lt;script&gt;" in page
    assert all(
        address.startswith(("data:image/svg+xml;base64,", "#")) for address in audit.addresses
    )
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy and policy[1].startswith("default-src 'none'; img-src data:;")
    for name in ("script", "style"):
        (text,) = re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy[1].replace("&#39;", "'")


def test_a_page_without_examples(tmp_path: Path) -> None:
    run = build_run(tmp_path / "a", SCORES["a"])
    compare_runs([run], max_examples=0).write_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "examples-title" not in page and page.count("<script") == 1


def test_examples_with_errors_come_first_and_long_texts_are_cut(tmp_path: Path) -> None:
    run = build_run(tmp_path / "a", SCORES["a"], sentence="long " * 1000)
    comparison = compare_runs([run]).comparison
    data = browser_data(comparison, max_examples=5000)
    assert data["truth"] == TRUTH and data["predictions"] == [[1, 1, 1, 1, 0]]
    assert data["confidences"] == [[900, 800, 600, 700, 900]]
    assert data["labels"] == ["not equivalent", "equivalent"]
    assert {len(text) for text in data["sentence1"]} == {MAX_CHARACTERS}
    assert data["sentence2"][1] == "other 1"
    few = browser_data(comparison, max_examples=2)
    assert len(few["idx"]) == 2 and 3 in few["idx"] and few["total"] == 5
    assert few["idx"] == sorted(few["idx"])
