import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from example_runs import SCORES, build_run

from peft_mrpc.cli.app import run_cli
from peft_mrpc.compare import compare, main
from peft_mrpc.data.examples import DataSplits, Example
from peft_mrpc.report.comparison import load_comparison
from peft_mrpc.runs.model_card import build_card
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.runs.writer import describe_data, write_run


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Run]:
    return [
        build_run(tmp_path / "a", SCORES["a"], "layer_freeze"),
        build_run(tmp_path / "b", SCORES["b"], "prompt_tuning"),
    ]


def test_the_table_holds_the_baseline_and_each_runs_own_metrics(
    two_runs: list[Run], tmp_path: Path
) -> None:
    said = compare([str(run.path) for run in two_runs], tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    baseline, first, second = report["rows"]
    assert baseline["name"] == "always “equivalent”"
    assert baseline["accuracy"] == pytest.approx(0.6)
    assert baseline["f1"] == pytest.approx({"not_equivalent": 0, "equivalent": 2 * 0.6 / 1.6})
    assert (first["accuracy"], second["accuracy"]) == (0.8, 0.8)
    assert first["roc_auc"] == pytest.approx(5 / 6)
    assert second["roc_auc"] == pytest.approx(5 / 6)
    assert "layer_freeze · model-x" in said and str(tmp_path / "out" / "report.html") in said
    for name in ("confusion_matrices.png", "roc_curves.png"):
        assert (tmp_path / "out" / "plots" / name).stat().st_size > 5000
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "| layer_freeze · model-x" in markdown and "0.800" in markdown


def test_runs_with_another_label_order_are_aligned_by_name(tmp_path: Path) -> None:
    first = build_run(tmp_path / "a", SCORES["a"])
    other = build_run(tmp_path / "b", SCORES["a"], names=("equivalent", "not_equivalent"))
    rows = load_comparison([first, other], "test").predictions
    assert (rows[0].references == rows[1].references).all()
    assert (rows[0].predictions == rows[1].predictions).all()
    assert np.allclose(rows[0].probabilities, rows[1].probabilities)


def test_runs_on_other_rows_are_refused_with_the_reason(
    two_runs: list[Run], trained_run: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    said = fails(main, str(two_runs[0].path), str(trained_run), "--output_dir", str(tmp_path / "o"))
    assert "share no labelled split" in said
    record = json.loads((two_runs[1].path / "run.json").read_text())
    record["data"]["splits"]["test"]["fingerprint"] = "0" * 64
    (two_runs[1].path / "run.json").write_text(json.dumps(record))
    said = fails(main, *(str(r.path) for r in two_runs), "--output_dir", str(tmp_path / "o"))
    assert (
        "was scored on other rows of 'test'" in said and "toy, 5 rows against toy, 5 rows" in said
    )
    assert not (tmp_path / "o").exists()


def test_runs_with_other_labels_are_refused_with_both(
    two_runs: list[Run], tmp_path: Path, fails: Callable[..., str]
) -> None:
    one, other = (run.path for run in two_runs)
    for name in ("run.json", "metrics.json", "predictions/test.jsonl"):
        text = (other / name).read_text()
        (other / name).write_text(text.replace('"equivalent"', '"same"'))
    said = fails(main, str(one), str(other), "--output_dir", str(tmp_path / "o"))
    assert (
        f"{other}: has the labels not_equivalent, same; expected those of {one}, not_equivalent, "
        "equivalent. Compare Runs of one data set." in said
    )


def test_bad_arguments_are_refused(
    two_runs: list[Run], tmp_path: Path, fails: Callable[..., str]
) -> None:
    run, out = str(two_runs[0].path), str(tmp_path / "o")
    assert "has no labelled split 'dev'" in fails(main, run, "--split", "dev", "--output_dir", out)
    assert "is no directory" in fails(main, str(tmp_path / "gone"), "--output_dir", out)
    assert "required" in fails(main, "--output_dir", out)
    assert "twice; name each Run once" in fails(main, run, run, "--output_dir", out)
    assert "holds what is no report's" in fails(main, run, "--output_dir", run, "--overwrite")
    main([run, "--output_dir", out])
    before = (Path(out) / "report.html").read_bytes()
    assert "already holds a report" in fails(main, run, "--output_dir", out)
    assert (Path(out) / "report.html").read_bytes() == before
    main([run, "--output_dir", out, "--overwrite"])


def test_runs_of_one_name_are_told_apart_by_their_path(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / seed / "run", SCORES["a"]) for seed in ("s1", "s2")]
    names = load_comparison(runs, "test").names
    assert len(set(names)) == 2 and "s1" in names[0] and "s2" in names[1]
    compare([str(run.path) for run in runs], tmp_path / "out")


class Audit(HTMLParser):
    """What a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "action")]


def test_the_report_needs_nothing_else_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script>"
    run = build_run(tmp_path / "a", SCORES["a"], method=attack, sentence=attack)
    compare([str(run.path)], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    audit = Audit()
    audit.feed(page)
    assert audit.tags.count("script") == 2  # the data and our own
    assert "alert(1)</script>" not in page and "&lt;script&gt;" in page
    assert all(
        address.startswith(("data:image/svg+xml;base64,", "#")) for address in audit.addresses
    )
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy and policy[1].startswith("default-src 'none'; img-src data:;")
    for kind, name in (("script", "script"), ("style", "style")):
        (text,) = re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1].replace("&#39;", "'")


def test_three_classes_compare_too(tmp_path: Path) -> None:
    names = ("contradiction", "entailment", "neutral")
    pairs = tuple(Example(i, f"s{i}", f"t{i}", i % 3) for i in range(9))
    data = DataSplits("nli", names, {"test": pairs})
    rng = np.random.default_rng(0)
    (tmp_path / "r" / "model").mkdir(parents=True)
    record = {
        **{"method": "full", "model": "m", "base_model_id": None, "seed": 1, "config": {}},
        "data": describe_data(data, ["test"]),
        "timing": {"score_pairs_per_second": 1.0},
    }
    run = write_run(tmp_path / "r", record, data, {"test": rng.dirichlet(np.ones(3), 9)})
    said = compare([str(run.path)], tmp_path / "out")
    assert "F1 contradiction" in said and "0.333" in said


def test_the_card_carries_the_figures_and_no_path(two_runs: list[Run], tmp_path: Path) -> None:
    card = build_card(load_run(two_runs[0].path), "owner/name")
    assert "value: 0.8" in card and "base_model: some/model-x" in card
    assert "| test | 5 | 0.600 | 0.800 |" in card
    assert str(tmp_path) not in card


def test_figures_of_pairs_that_were_trained_on_are_marked(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / n, SCORES[n], learned=2 * (n == "a")) for n in ("a", "b")]
    cards = [build_card(run, "owner/name") for run in runs]
    assert "2 of the 5 test pairs are training pairs too." in cards[0]
    assert "training pairs too" not in cards[1]
    verdict = compare([str(run.path) for run in runs], tmp_path / "out").splitlines()[0]
    assert verdict.count("trained on 2 of these pairs") == 1 and "5 of these pairs" not in verdict


def test_a_lead_is_called_sure_only_where_it_is(tmp_path: Path) -> None:
    truth = [0, 1] * 20
    sure = [0.9 if label else 0.1 for label in truth]
    # Of 40 rows 15 wrong: McNemar 15 to 0, p 6e-5; of 2 wrong: p 0.5.
    for wrong, words in ((15, "more than chance would give"), (2, "which may be chance")):
        worse = [1 - p if n < wrong else p for n, p in enumerate(sure)]
        runs = [
            build_run(tmp_path / f"{wrong}{m}", scores, m, truth=truth)
            for m, scores in (("full", sure), ("lora", worse))
        ]
        said = compare([str(run.path) for run in runs], tmp_path / f"out{wrong}")
        assert f"leads lora · model-x by {100 * wrong / 40:.1f} points, {words}" in said.replace(
            "which is more", "more"
        )


def test_differences_are_those_of_the_rows(two_runs: list[Run], tmp_path: Path) -> None:
    paths = [str(run.path) for run in two_runs]
    main([*paths, "--output_dir", str(tmp_path / "report")])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    (difference,) = report["evidence"]["differences"]
    right = [run.predictions(report["split"]) for run in two_runs]
    alone = [
        int(((a.predictions == a.references) & (b.predictions != b.references)).sum())
        for a, b in (right, right[::-1])
    ]
    assert sorted(alone) == sorted(
        [difference["only_first_right"], difference["only_second_right"]]
    )
    low, high = difference["interval"]
    assert low <= difference["accuracy"] <= high
    assert "are as accurate as each other: right on 80.0%" in report["headline"]
    page = (tmp_path / "report" / "report.md").read_text()
    assert "## Differences" in page and "p (Holm)" in page


def test_a_bar_that_is_missed_ends_in_exit_code_3(
    two_runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(run.path) for run in two_runs]
    split = next(iter(two_runs[0].metrics))
    flags = [*paths, "--output_dir", str(tmp_path / "report"), "--overwrite", "--split", split]
    accuracies = [run.metrics[split]["accuracy"] for run in two_runs]
    assert run_cli(main, [*flags, "--fail_under", f"accuracy={min(accuracies)}"]) == 0
    assert run_cli(main, [*flags, "--fail_under", f"accuracy={min(accuracies) + 0.01}"]) == 3
    assert f"is under {min(accuracies) + 0.01:g}" in capsys.readouterr().err
    assert (tmp_path / "report" / "report.html").is_file()
    better, worse = (paths[accuracies.index(pick(accuracies))] for pick in (max, min))
    gap = max(accuracies) - min(accuracies)
    assert run_cli(main, [*flags, "--baseline", worse]) == 0
    assert run_cli(main, [*flags, "--baseline", better, "--no_worse_than", str(gap)]) == 0
    if gap:
        assert run_cli(main, [*flags, "--baseline", better, "--no_worse_than", str(gap / 2)]) == 3
    for bad, said in (
        (["--fail_under", "acuracy=1"], "--fail_under: got 'acuracy'; expected one of accuracy"),
        (
            ["--fail_under", "accuracy"],
            "--fail_under: got 'accuracy'; expected METRIC=NUMBER, 0 to 1.",
        ),
        (["--baseline", "elsewhere"], "--baseline: got 'elsewhere'; expected one of the Runs"),
        (["--no_worse_than", "0.1"], "--no_worse_than: got no --baseline"),
    ):
        capsys.readouterr()
        assert run_cli(main, [*flags, *bad]) == 2
        assert said in capsys.readouterr().err
