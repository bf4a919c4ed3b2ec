import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from example_runs import SCORES, TRUTH, build_run

from peft_mrpc.compare import compare, main, open_comparison
from peft_mrpc.config import CompareConfig
from peft_mrpc.data.examples import DataSplits, Example
from peft_mrpc.data.loading import load_data
from peft_mrpc.report.analysis import describe_evidence
from peft_mrpc.report.comparison import load_comparison
from peft_mrpc.report.examples import MAX_CHARACTERS, explorer_data
from peft_mrpc.report.plots import build_pictures
from peft_mrpc.report.seed_groups import join_seeds
from peft_mrpc.report.sentences import find_sentences
from peft_mrpc.report.summary import build_verdict
from peft_mrpc.report.text import markdown_text
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.runs.writer import describe_data, write_run

THREE_SEEDS = (SCORES["a"], SCORES["b"], [0.9, 0.8, 0.6, 0.2, 0.1])  # right: 4, 4, 5 of 5


@pytest.fixture
def seed_runs(tmp_path: Path) -> list[Run]:
    return [
        build_run(tmp_path / f"s{seed}", scores, "lora", seed=seed, config={"r": 4, "seed": seed})
        for seed, scores in enumerate(THREE_SEEDS, start=1)
    ]


def test_runs_that_differ_by_their_seed_are_one(seed_runs: list[Run], tmp_path: Path) -> None:
    other = build_run(tmp_path / "o", SCORES["a"], "lora", seed=4, config={"r": 8, "seed": 4})
    twin = build_run(tmp_path / "t", SCORES["a"], "lora", seed=1, config={"r": 4, "seed": 1})
    joined, alone, again = join_seeds([seed_runs[2], seed_runs[0], other, seed_runs[1], twin])
    values = joined.metrics["test"]
    assert values["accuracy"] == pytest.approx((0.8 + 0.8 + 1) / 3)
    assert values["std"]["accuracy"] == pytest.approx(np.std([0.8, 0.8, 1.0], ddof=1))
    assert [run.record["seed"] for run in joined.seed_runs] == [1, 2, 3]
    assert joined.model_run is not joined and joined.record["seeds"] == [1, 2, 3]
    assert alone is other and again is twin


def test_the_report_joins_seeds_unless_told_not_to(seed_runs: list[Run], tmp_path: Path) -> None:
    paths = [str(run.path) for run in seed_runs]
    out = tmp_path / "out"
    main([*paths, "--output_dir", str(out)])
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert len(rows) == 2 and rows[1]["seeds"] == [1, 2, 3]
    assert (out / "plots" / "seed_spread.svg").is_file()
    main([*paths, "--output_dir", str(out), "--overwrite", "--join_seeds", "false"])
    assert len(json.loads((out / "report.json").read_text())["rows"]) == 4
    assert not (out / "plots" / "seed_spread.svg").exists()


def test_over_seeds_a_row_is_right_by_the_share_of_seeds(
    seed_runs: list[Run], tmp_path: Path
) -> None:
    # Labels 1 1 1 0 0. By row right: seeds 1 1 1 0 1, 1 0 1 1 1, 1 1 1 1 1; the other 1 1 1 0 1.
    other = build_run(tmp_path / "o", SCORES["a"], "full")
    comparison = load_comparison([*seed_runs, other], None, join_seeds)
    evidence = describe_evidence(comparison)
    (difference,) = evidence["differences"]
    assert difference["accuracy"] == pytest.approx(13 / 15 - 4 / 5)
    assert difference["test"] == "permutation"
    # The gaps are -1/3 and 2/3 on two rows: of four signs the sums are +-1/3 and +-1, all as large.
    assert difference["p"] == 1.0
    assert (difference["only_first_right"], difference["only_second_right"]) == (0, 0)
    low, high = evidence["intervals"][0]["accuracy"]
    assert low < 13 / 15 < high


def test_every_figure_has_its_difference_and_interval(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / n, SCORES[n], n, truth=TRUTH) for n in ("a", "b")]
    comparison = load_comparison(runs, None)
    (found,) = describe_evidence(comparison)["differences"]
    first, second = (
        next(run for run, name in zip(runs, comparison.names, strict=True) if name == found[side])
        for side in ("first", "second")
    )
    ours, theirs = first.metrics["test"], second.metrics["test"]
    for name in ("macro_f1", "mcc", "roc_auc", "average_precision", "brier"):
        gap = found["others"][name]
        assert gap["difference"] == pytest.approx(ours[name] - theirs[name])
        assert gap["interval"][0] <= gap["difference"] <= gap["interval"][1]
    for label in ("not_equivalent", "equivalent"):
        gap = found["others"]["f1"][label]
        assert gap["difference"] == pytest.approx(ours["f1"][label] - theirs["f1"][label])


def test_a_split_of_one_label_has_no_area_and_still_a_report(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / n, SCORES[n], n, truth=[1] * 5) for n in ("a", "b")]
    compare([str(run.path) for run in runs], tmp_path / "out")
    text = (tmp_path / "out" / "report.json").read_text()
    assert "NaN" not in text
    (found,) = json.loads(text)["evidence"]["differences"]
    assert "roc_auc" not in found["others"] and "macro_f1" in found["others"]


def test_the_verdict_names_what_is_cheaper_and_not_shown_worse(tmp_path: Path) -> None:
    best = build_run(tmp_path / "a", [0.9, 0.8, 0.6, 0.2, 0.1], "full", train_seconds=600)
    cheap = build_run(tmp_path / "b", SCORES["a"], "lora", train_seconds=60)
    comparison = load_comparison([best, cheap], None)
    verdict = build_verdict(comparison, describe_evidence(comparison))
    assert verdict.headline == (
        "full · model-x is the most accurate of 2 strategies: right on 100.0% of 5 sentence pairs."
    )
    assert "Always answering “equivalent” would be right on 60.0%" in verdict.text
    assert (
        "full · model-x leads lora · model-x by 20.0 points, which may be chance: 5 pairs can show"
        in verdict.text
    )
    assert "lora · model-x takes less (60 s of training against 10 min of training)" in verdict.text
    assert verdict.cards[-1].value == "80.0%"
    assert "Trained once: full · model-x and lora · model-x; another seed may" in verdict.text


def test_the_verdict_says_what_was_trained_on_other_pairs(tmp_path: Path) -> None:
    def said(*runs: Run) -> str:
        comparison = load_comparison(list(runs), None)
        return build_verdict(comparison, describe_evidence(comparison)).text

    runs = [build_run(tmp_path / m, SCORES["a"], m) for m in ("full", "lora", "ia3")]
    assert "same" not in said(*runs)
    record = json.loads((runs[1].path / "run.json").read_text())
    record["data"]["splits"]["train"]["fingerprint"] = "0" * 64
    (runs[1].path / "run.json").write_text(json.dumps(record))
    runs[1] = load_run(runs[1].path)
    assert "They were trained on as many pairs, but not on the same." in said(*runs)
    record["data"]["splits"]["train"]["num_examples"] = 3
    (runs[1].path / "run.json").write_text(json.dumps(record))
    runs[1] = load_run(runs[1].path)
    assert (
        "They were not trained on the same pairs: lora · model-x on 3, full · model-x and ia3 · "
        "model-x on 5." in said(*runs)
    )


def test_labels_keep_their_capitals_in_the_verdict(tmp_path: Path) -> None:
    run = build_run(tmp_path / "a", SCORES["a"])
    for path in (run.path / "run.json", run.path / "metrics.json"):
        path.write_text(path.read_text().replace('"equivalent"', '"Same Meaning"'))
    rows = run.path / "predictions" / "test.jsonl"
    rows.write_text(rows.read_text().replace('"equivalent"', '"Same Meaning"'))
    comparison = load_comparison([load_run(run.path)], None)
    verdict = build_verdict(comparison, describe_evidence(comparison))
    assert "Always answering “Same Meaning” would be right on 60.0%" in verdict.text


def test_what_does_not_beat_guessing_is_said_to(tmp_path: Path) -> None:
    # Always "equivalent" is right on 60 %; of these answers 4 and 3 of 5.
    for scores, said in (
        (SCORES["a"], "would be right on 60.0%; the gain over that may be chance."),
        ([0.9, 0.8, 0.7, 0.7, 0.6], "would be right on 60.0%; nothing here does better."),
    ):
        run = build_run(tmp_path / str(scores[2]), scores)
        comparison = load_comparison([run], None)
        assert said in build_verdict(comparison, describe_evidence(comparison)).text


def test_markup_in_names_stays_text(tmp_path: Path) -> None:
    name = "<b>*x*</b> [a](b) `c` | d_e _f_"
    said = r"&lt;b>\*x\*&lt;/b> \[a\](b) \`c\` \| d_e \_f\_"
    assert markdown_text(name) == said
    runs = [build_run(tmp_path / n, SCORES[n], name if n == "a" else n) for n in ("a", "b")]
    compare([str(run.path) for run in runs], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"| {said} · model-x" in text and "<b>" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.split(r"(?<!\\)\|", row)) - 2 for row in rows} == {9, 10, 11}
    tex = (tmp_path / "out" / "report.tex").read_text()
    assert r"$<$b$>$*x*$<$/b$>$ {[}a](b) `c` \textbar{} d\_e \_f\_ $\cdot$ model-x" in tex
    assert "&lt;b&gt;*x*&lt;/b&gt;" in (tmp_path / "out" / "report.html").read_text()


def test_three_labels_have_every_interval(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    names = ("contradiction", "entailment", "neutral")
    pairs = tuple(Example(i, f"s{i}", f"t{i}", i % 3) for i in range(30))
    data = DataSplits("nli", names, {"test": pairs})
    runs = []
    for method, weight in (("full", 0.5), ("lora", 0.2)):
        (tmp_path / method / "model").mkdir(parents=True)
        record = {
            **{"method": method, "model": "m", "base_model_id": None, "seed": 1, "config": {}},
            "data": describe_data(data, ["test"]),
            "timing": {"score_pairs_per_second": 1.0},
        }
        chances = (
            draw.dirichlet(np.ones(3), 30) * (1 - weight) + np.eye(3)[np.arange(30) % 3] * weight
        )
        runs.append(write_run(tmp_path / method, record, data, {"test": chances}))
    comparison = load_comparison(runs, None)
    evidence = describe_evidence(comparison)
    for run, own in zip(runs, evidence["intervals"], strict=True):
        for name in ("roc_auc", "average_precision", "brier", "macro_f1"):
            low, high = own[name]
            assert low - 1e-9 <= run.metrics["test"][name] <= high + 1e-9
    assert set(evidence["differences"][0]["others"]["f1"]) == set(names)


def test_a_tie_has_no_leader(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / m, SCORES["a"], m) for m in ("full", "lora")]
    comparison = load_comparison(runs, None)
    verdict = build_verdict(comparison, describe_evidence(comparison))
    assert verdict.headline.startswith(
        "full · model-x and lora · model-x are as accurate as each other: right on 80.0%"
    )
    assert "leads" not in verdict.text


def test_the_explorer_shows_errors_first_and_cuts_documents(tmp_path: Path) -> None:
    run = build_run(tmp_path / "a", SCORES["a"], sentence="long " * 1000)
    comparison = load_comparison([run], None)
    sentences = find_sentences([run], "test")
    assert sentences is not None and sentences[1][1] == "other 1"
    data = explorer_data(comparison, sentences)
    assert data["truth"] == TRUTH and data["predictions"] == [[1, 1, 1, 1, 0]]
    assert data["confidences"] == [[900, 800, 600, 700, 900]]
    assert data["labels"] == ["not equivalent", "equivalent"]
    assert {len(text) for text in data["sentence1"]} == {MAX_CHARACTERS}
    few = explorer_data(comparison, sentences, max_examples=2)
    assert len(few["idx"]) == 2 and 3 in few["idx"] and few["total"] == 5
    assert few["idx"] == sorted(few["idx"])


def without_sentences(run: Run) -> None:
    """As an earlier version wrote it."""
    path = run.path / "predictions" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith("sentence")} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))


def test_sentences_of_earlier_runs_are_read_again_if_they_are_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"sentence {i}\tother {i}\t{label}\n" for i, label in enumerate(TRUTH)]
    file = tmp_path / "test.tsv"
    file.write_text("sentence1\tsentence2\tlabel\n" + "".join(rows))
    config = {
        "dataset": "files",
        "test_file": str(file),
        "class_names": "not_equivalent,equivalent",
    }
    run = build_run(tmp_path / "a", SCORES["a"], config=config)
    without_sentences(run)
    assert find_sentences([run], "test") == {
        i: (f"sentence {i}", f"other {i}") for i in range(len(TRUTH))
    }
    file.write_text(file.read_text().replace("other 3", "another 3"))
    assert find_sentences([run], "test") is None
    main([str(run.path), "--output_dir", str(tmp_path / "out")])
    assert "no examples in the report" in caplog.text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The sentences are not here" in page and 'id="filters"' not in page
    file.unlink()
    assert find_sentences([run], "test") is None


def test_the_builtin_pairs_are_found_again(tmp_path: Path) -> None:
    from peft_mrpc.config import DataConfig

    data = load_data(DataConfig(dataset="builtin:pairs"))
    run = build_run(tmp_path / "a", SCORES["a"], config={"dataset": "builtin:pairs"})
    record = run.record
    record["data"]["splits"]["test"]["fingerprint"] = data.fingerprint("test")
    without_sentences(run)
    found = find_sentences([run], "test")
    assert found is not None and found[0] == (
        data.splits["test"][0].sentence1,
        data.splits["test"][0].sentence2,
    )


def test_json_keeps_to_its_schema(seed_runs: list[Run], tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from importlib import resources

    asset = resources.files("peft_mrpc") / "assets" / "report.schema.json"
    schema = json.loads(asset.read_text("utf-8"))
    other = build_run(tmp_path / "o", SCORES["b"], "full")
    compare([str(run.path) for run in [*seed_runs, other]], tmp_path / "out")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(content, schema)
    for broken in ("rows", "evidence", "format_version"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in content.items() if k != broken}, schema)
    del content["evidence"]["differences"][0]["holm"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


def test_latex_escapes_and_marks_the_best(tmp_path: Path) -> None:
    best = build_run(tmp_path / "a", [0.9, 0.8, 0.6, 0.2, 0.1], "layer_freeze")
    worse = build_run(tmp_path / "b", SCORES["a"], "a&b%")
    compare([str(best.path), str(worse.path)], tmp_path / "out")
    text = (tmp_path / "out" / "report.tex").read_text()
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert (
        rows[0] == r"method & accuracy & F1 not equivalent & F1 equivalent & ROC-AUC & trained \\"
    )
    assert r"layer\_freeze $\cdot$ model-x & \textbf{1.000} & 1.000 & 1.000 & 1.000" in rows[2]
    assert r"a\&b\% $\cdot$ model-x & 0.800" in rows[3]
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {6}
    assert r"\begin{tabular}{lrrrrr}" in text


@pytest.mark.parametrize(
    ("name", "key", "said"),
    [
        ("metrics.json", "ece", "metrics.json: damaged: test lacks ece."),
        ("run.json", "timing", "run.json: damaged: the file lacks timing."),
        (
            "predictions/test.jsonl",
            "prediction",
            "test.jsonl: damaged: a row lacks or does not know 'prediction'.",
        ),
    ],
)
def test_a_damaged_run_is_one_line(
    tmp_path: Path, fails: Callable[..., str], name: str, key: str, said: str
) -> None:
    run = build_run(tmp_path / "a", SCORES["a"])
    path = run.path / name
    path.write_text(path.read_text().replace(f'"{key}"', '"lost"'))
    assert said in fails(main, str(run.path), "--output_dir", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_long_names_leave_the_pictures_room(tmp_path: Path) -> None:
    runs = []
    for method in ("full", "lora"):
        run = build_run(tmp_path / method, SCORES["a"], method)
        path = run.path / "run.json"
        path.write_text(path.read_text().replace("some/model-x", "owner/A-Name" + "-long" * 12))
        runs.append(load_run(run.path))
    comparison = load_comparison(runs, None)
    figure = build_pictures(comparison, describe_evidence(comparison))["accuracies"]
    names = [text.get_text() for text in figure.axes[0].texts]
    assert names[0].startswith("full · A-Name") and "…" in names[0] and len(names[0]) < 45


def test_bad_flags_of_the_report_are_refused(tmp_path: Path, fails: Callable[..., str]) -> None:
    run = build_run(tmp_path / "a", SCORES["a"])
    flags = [str(run.path), "--output_dir", str(tmp_path / "out")]
    assert "--max_examples: got -1" in fails(main, *flags, "--max_examples", "-1")
    assert "--equivalence_margin: got 0.0" in fails(main, *flags, "--equivalence_margin", "0")
    assert not (tmp_path / "out").exists()


def test_without_examples_the_page_says_nothing_of_them(tmp_path: Path) -> None:
    run = build_run(tmp_path / "a", SCORES["a"])
    main([str(run.path), "--output_dir", str(tmp_path / "out"), "--max_examples", "0"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "examples-title" not in page and page.count("<script") == 1


def test_a_run_over_seeds_is_read_seed_by_seed(seed_runs: list[Run], tmp_path: Path) -> None:
    from peft_mrpc.training.seeds import write_seeds_run

    folder = tmp_path / "run"
    (folder / "seeds").mkdir(parents=True)
    for run in seed_runs:
        run.path.rename(folder / "seeds" / str(run.record["seed"]))
    write_seeds_run(folder, [1, 2, 3])
    config = CompareConfig(output_dir=str(tmp_path / "out"))
    comparison = open_comparison([str(folder)], config)
    assert [len(seeds) for seeds in comparison.answers] == [3]
    accuracies = [(one.predictions == one.references).mean() for one in comparison.answers[0]]
    assert accuracies == pytest.approx([0.8, 0.8, 1.0])
    assert load_run(folder).metrics["test"]["accuracy"] == pytest.approx(np.mean(accuracies))
