"""The report in a browser."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peft_mrpc.compare import main as compare
from peft_mrpc.hard_prompt import main as hard_prompt
from peft_mrpc.train import main as train

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

ATTACK = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
DATASET = Path(__file__).parents[2] / "src" / "peft_mrpc" / "builtin_data" / "pairs"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, tiny_llama: str) -> Path:
    """A comparison of real Runs, with an example that attacks pages without escaping."""
    folder = tmp_path_factory.mktemp("report")
    rows = [json.loads(line) for line in (DATASET / "test.jsonl").read_text().splitlines()][:40]
    rows.append({"sentence1": ATTACK, "sentence2": "It was a quiet day.", "label": "equivalent"})
    test = folder / "test.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--train_file", str(DATASET / "train.jsonl"), "--test_file", str(test)]
    data += ["--max_train_samples", "64", "--class_names", "not_equivalent,equivalent"]
    common = ["--model", "builtin:minilm", *data, "--num_train_epochs", "1", "--split", "test"]
    runs = [str(folder / name) for name in ("probe", "prefix", "prompt")]
    train([*common, "--method", "linear_probe", "--seeds", "1,2,3", "--output_dir", runs[0]])
    train([*common, "--method", "prefix_tuning", "--output_dir", runs[1]])
    prompt = ["--model", tiny_llama, *data, "--split", "test", "--quantization", "none"]
    hard_prompt([*prompt, "--output_dir", runs[2]])
    compare([*runs, "--output_dir", str(folder / "out")])
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The opened report, which may not fetch anything or write to the console."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    fetched, messages = [], []
    opened.on("request", lambda request: fetched.append(request.url))
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.goto(report.as_uri())
    yield opened
    assert [url for url in fetched if not url.startswith("data:")] == [report.as_uri()]
    assert messages == []
    context.close()


def column(page: Any, table: str, number: int) -> list[str]:
    cells = page.locator(f"{table} tbody tr > :nth-child({number})")
    return [str(text).strip() for text in cells.all_inner_texts()]


def count(page: Any) -> int:
    text = page.locator("#count").inner_text()
    return 0 if text.startswith("No example matches") else int(text.split()[0])


def test_the_first_screen_names_the_best_run(page: Any, report: Path) -> None:
    content = json.loads((report.parent / "report.json").read_text())
    best = max(content["rows"][1:], key=lambda row: row["accuracy"])
    headline = page.locator("h1").inner_text()
    assert best["name"] in headline and f"{best['accuracy']:.1%} on 41 examples" in headline
    box = page.locator(".tiles").bounding_box()
    assert box["y"] + box["height"] < 900
    assert page.locator(".tile").count() >= 4


def test_tables_sort_by_number_and_by_name(page: Any) -> None:
    table = "#results > .scroll"
    head = page.locator(f"{table} thead th")
    before = column(page, table, 2)
    head.nth(1).get_by_role("button").click()
    values = [float(text.split()[0]) for text in column(page, table, 2)]
    assert values == sorted(values, reverse=True) and len(values) == len(before) == 4
    assert head.nth(1).get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")  # on the focused button
    values = [float(text.split()[0]) for text in column(page, table, 2)]
    assert values == sorted(values) and head.nth(1).get_attribute("aria-sort") == "ascending"
    head.nth(0).get_by_role("button").click()
    names = column(page, table, 1)
    assert names == sorted(names, key=str.lower) and head.nth(1).get_attribute("aria-sort") is None
    head.nth(6).get_by_role("button").click()
    assert column(page, table, 7)[-1] == "-"  # missing numbers stay last
    page.keyboard.press("Enter")
    assert column(page, table, 7)[-1] == "-"


def test_all_metrics_have_intervals_in_a_folded_table(page: Any, report: Path) -> None:
    content = json.loads((report.parent / "report.json").read_text())
    cell = page.locator("#results details tbody tr:first-child td:nth-last-child(2)")
    assert cell.is_hidden()
    page.get_by_text("All metrics with 95% intervals").click()
    best = max(content["rows"][1:], key=lambda row: row["accuracy"])
    (ends,) = (i["brier"] for i in content["analysis"]["intervals"] if i["name"] == best["name"])
    assert cell.inner_text() == f"{best['brier']:.3f} ({ends[0]:.3f} to {ends[1]:.3f})"
    page.get_by_text("Differences in other metrics, in points").click()
    differences = content["analysis"]["differences"]
    assert page.locator("#differences details tbody tr").count() == len(differences) == 3


def test_the_most_accurate_run_is_first(page: Any) -> None:
    values = column(page, "#results > .scroll", 2)[1:]
    shares = [float(text.split()[0]) for text in values]
    assert shares == sorted(shares, reverse=True) and page.locator("tr.baseline").count() == 1
    assert (
        "linear_probe: only a new head is trained" in page.locator("#results dl.terms").inner_text()
    )


def test_filters_agree_with_the_prediction_files(page: Any, report: Path) -> None:
    folder = report.parents[1]
    runs = [folder / "probe" / "seed_1", folder / "prefix", folder / "prompt"]
    predictions = [
        [json.loads(line) for line in (run / "predictions" / "test.jsonl").open()] for run in runs
    ]
    right = [[row["label"] == row["prediction"] for row in rows] for rows in predictions]
    rows = list(zip(*right, strict=True))
    assert count(page) == 41
    page.select_option("#outcome", "wrong")
    assert count(page) == sum(not all(row) for row in rows)
    page.select_option("#run", "1")
    assert count(page) == sum(not row[1] for row in rows)
    page.select_option("#outcome", "0,1")  # not_equivalent predicted as equivalent
    labels = [(row["label"], row["prediction"]) for row in predictions[1]]
    assert count(page) == labels.count(("not_equivalent", "equivalent"))
    page.select_option("#outcome", "")
    page.select_option("#agreement", "alone-right")
    assert count(page) == sum(row == (False, True, False) for row in rows)
    page.select_option("#agreement", "alone-wrong")
    assert count(page) == sum(row == (True, False, True) for row in rows)
    page.select_option("#run", "")
    for choice, holds in (("split", lambda n: 0 < n < 3), ("none", lambda n: n == 0),
                          ("all", lambda n: n == 3)):  # fmt: skip
        page.select_option("#agreement", choice)
        assert count(page) == sum(holds(sum(row)) for row in rows)
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function("document.querySelector('#count').textContent.startsWith('41')")


def test_the_search_treats_markup_as_text(page: Any) -> None:
    page.fill("#text", "<SCRIPT>")
    assert count(page) == 1
    text = page.locator(".example").inner_text()
    assert ATTACK in text and "It was a quiet day." in text
    assert page.title() != "owned" and page.locator(".example img").count() == 0
    page.fill("#text", "#7")
    assert page.locator(".example h3").inner_text().startswith("#7,")
    page.fill("#text", "not in any sentence")
    assert page.locator("#count").inner_text().startswith("No example matches")


def test_words_of_one_sentence_only_are_marked(page: Any, report: Path) -> None:
    line = json.loads((report.parents[1] / "test.jsonl").read_text().splitlines()[0])
    page.fill("#text", "#0")
    first, second = page.locator(".example .sentence").all_inner_texts()
    assert (first, second) == (line["sentence1"], line["sentence2"])
    left = []
    for number in (0, 1):
        sentence = page.locator(".example .sentence").nth(number)
        marked = sentence.locator("mark").all_inner_texts()
        text = sentence.inner_text()
        for part in marked:
            text = text.replace(part, " ", 1)
        left.append(re.findall(r"[\w'’.,]+", text.lower()))
    assert left[0] == left[1] and left[0]


def test_examples_are_sorted_by_confidence_and_more_are_shown(page: Any) -> None:
    page.select_option("#run", "0")
    page.select_option("#order", "sure")
    texts = page.locator(".example .predictions li:first-child .predicted").all_inner_texts()
    shares = [int(re.search(r"(\d+) %", text)[1]) for text in texts]
    assert shares == sorted(shares, reverse=True) and len(shares) == 20
    page.get_by_role("button", name="Show more").press("Enter")
    assert page.locator(".example").count() == 40
    assert page.evaluate("document.activeElement === document.querySelectorAll('.example')[20]")
    page.get_by_role("button", name="Show more").click()
    assert page.locator(".example").count() == 41 and page.locator("#more").is_hidden()


def test_the_page_turns_dark_and_prints_light(page: Any) -> None:
    def plot_filter() -> str:
        plot = page.locator("figure.roc_curves img")
        return str(plot.evaluate("image => getComputedStyle(image).filter"))

    assert plot_filter() == "none"
    page.get_by_role("button", name="Dark theme").click()
    assert plot_filter() == "invert(1) hue-rotate(180deg)"
    page.emulate_media(media="print")
    assert plot_filter() == "none"
    assert page.locator("#filters").is_hidden()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violations(browser: Any, report: Path, width: int, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme)
    opened = context.new_page()
    opened.goto(report.as_uri())
    violations = axe.Axe().run(opened).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in violations] == []
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    context.close()


def test_without_javascript_only_the_example_browser_is_missing(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(report.as_uri())
    assert opened.locator("#results > .scroll tbody tr").count() == 4
    assert "needs JavaScript" in opened.content()
    context.close()


def test_the_page_is_small(report: Path) -> None:
    assert report.stat().st_size < 3e6
