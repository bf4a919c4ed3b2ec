"""`train --seeds`: sub-runs, what they say together, and what an interruption leaves."""

import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_command

from peft_mrpc import compare_runs, predict
from peft_mrpc.api import load_classifier
from peft_mrpc.runs.model_card import build_card
from peft_mrpc.runs.publishing import collect_files
from peft_mrpc.runs.run import load_run
from peft_mrpc.train import main

FLAGS = ["--method", "lora", "--num_train_epochs", "2", "--learning_rate", "3e-2"]
FILES = ("metrics.json", "README.md", "predictions/validation.jsonl", "adapter/peft_mrpc.json")


@pytest.fixture(scope="module")
def flags(tiny_bert: str, data_flags: list[str]) -> list[str]:
    return [*FLAGS, "--model", tiny_bert, *data_flags]


@pytest.fixture(scope="module")
def seeds_run(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("seeds") / "run"
    main([*flags, "--seeds", "3,1,2", "--output_dir", str(folder)])
    return folder


def test_each_sub_run_is_what_training_with_its_seed_alone_writes(
    seeds_run: Path, flags: list[str], tmp_path: Path
) -> None:
    assert [p.name for p in seeds_run.parent.iterdir()] == ["run"]
    assert {p.name for p in seeds_run.iterdir()} == {
        *("seed_1", "seed_2", "seed_3")
    }
    main([*flags, "--seed", "2", "--output_dir", str(tmp_path / "alone")])
    sub_run = seeds_run / "seed_2"
    for name in FILES:
        assert (sub_run / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    mine, theirs = load_run(sub_run).record, load_run(tmp_path / "alone").record
    assert {key for key in mine if mine[key] != theirs[key]} <= {
        *("finished", "peak_memory", "timing", "log_history")
    }


def test_each_seed_chooses_on_pairs_of_its_own(
    flags: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = [*flags, "--selection_fraction", "0.3", "--load_best_model_at_end"]
    chosen += ["--metric_for_best_model", "loss", "--threshold", "auto"]
    with caplog.at_level("INFO", "peft_mrpc"):
        main([*chosen, "--seeds", "1,2", "--output_dir", str(tmp_path / "both")])
    assert caplog.text.count("pairs are held out to choose on") == 1
    main([*chosen, "--seed", "2", "--output_dir", str(tmp_path / "alone")])
    sub_run = tmp_path / "both" / "seed_2"
    for name in FILES:
        assert (sub_run / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    both, second = load_run(tmp_path / "both").record, load_run(sub_run).record
    assert both["threshold"] == load_run(tmp_path / "both" / "seed_1").record["threshold"]
    assert second["selection"] == load_run(tmp_path / "alone").record["selection"]
    fingerprints = {record["selection"]["fingerprint"] for record in (both, second)}
    assert len(fingerprints) == 2


def test_the_metrics_are_means_with_deviation_and_worst_seed(seeds_run: Path) -> None:
    values = load_run(seeds_run).metrics["validation"]
    each = {s: load_run(seeds_run / f"seed_{s}").metrics["validation"] for s in "312"}
    accuracies = [one["accuracy"] for one in each.values()]
    assert values["accuracy"] == pytest.approx(sum(accuracies) / 3)
    assert values["std"]["accuracy"] == pytest.approx(statistics.stdev(accuracies))
    f1 = [one["f1"]["equivalent"] for one in each.values()]
    assert values["std"]["f1"]["equivalent"] == pytest.approx(statistics.stdev(f1))
    assert set(each["3"]) <= set(values)
    assert values["num_seeds"] == 3 and values["num_examples"] == 9
    assert values["seeds"]["2"]["roc_auc"] == each["2"]["roc_auc"]
    assert each[str(values["worst_seed"])]["accuracy"] == min(accuracies)
    assert values["confusion_matrix"] == each["1"]["confusion_matrix"]


def test_times_and_memory_are_of_each_seed_and_in_total(seeds_run: Path) -> None:
    record = load_run(seeds_run).record
    timing = record["timing"]
    each = [timing["seeds"][s]["train_seconds"] for s in ("3", "1", "2")]
    assert timing["total_train_seconds"] == pytest.approx(sum(each))
    assert timing["train_seconds"] == pytest.approx(sum(each) / 3)
    peaks = [one["peak_memory"]["resident_bytes"] for one in timing["seeds"].values()]
    assert record["peak_memory"]["resident_bytes"] == max(peaks)
    assert record["seeds"] == [1, 2, 3] and record["seed"] == 1


def test_the_first_seeds_model_stands_for_the_run(
    seeds_run: Path, pair_files: dict[str, str], tmp_path: Path
) -> None:
    run, first = load_run(seeds_run), load_run(seeds_run / "seed_1")
    assert run.artifact == first.artifact
    expected = first.predictions("validation").probabilities
    assert (run.predictions("validation").probabilities == expected).all()
    output = tmp_path / "labelled.jsonl"
    predict.main([str(seeds_run), "--input", pair_files["unlabelled"], "--output", str(output)])
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    scored = np.array([row["probability_equivalent"] for row in rows])
    assert np.abs(scored - expected[:, 1]).max() < 1e-5
    card = build_card(run, "owner/name")
    assert "This model is the one of seed 1" in card
    accuracy = first.metrics["validation"]["accuracy"]
    assert f"value: {round(accuracy, 4)}" in card and "| validation, seed 1 | 9 |" in card
    collect_files(run, "owner/name", tmp_path / "published")
    published = {p.name for p in (tmp_path / "published").rglob("*")}
    assert {"adapter_config.json", "confusion_matrix.png", "metrics.json"} <= published
    assert load_classifier(str(seeds_run)).labels == ["not_equivalent", "equivalent"]


def test_compare_shows_the_deviation(seeds_run: Path, trained_run: Path, tmp_path: Path) -> None:
    report = compare_runs([seeds_run, trained_run])
    values = load_run(seeds_run).metrics["validation"]
    assert f"{values['accuracy']:.3f} ± {values['std']['accuracy']:.3f}" in report.to_text()
    rows = report.to_json()["rows"]
    assert rows[1]["seeds"] == [1, 2, 3] and "std" not in rows[2]
    assert "± is the standard deviation over training seeds" in report.to_markdown()
    report.write_html(tmp_path / "report.html")
    assert "seed 1, 2, 3" in (tmp_path / "report.html").read_text()


def test_an_interrupted_run_keeps_its_finished_seeds_and_goes_on(
    flags: list[str], tmp_path: Path
) -> None:
    # Long enough to be interrupted in the second seed.
    long = [*flags, "--num_train_epochs", "250", "--seeds", "5,6,7"]
    command = [sys.executable, "-m", "peft_mrpc.train", *long, "--output_dir", str(tmp_path / "r")]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    # The Trainer's own log stands before it.
    assert any(line.startswith("seed 5 (1 of 3): validation acc") for line in process.stdout)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Finished seeds (5" in said and "the same command goes on with the others" in said
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith(".r.seeds-")
    first = kept / "seed_5"
    before = (first / "run.json").read_bytes()
    assert not (kept / "unfinished").exists()

    again = run_command("train", *long, "--output_dir", str(tmp_path / "r"))
    assert again.returncode == 0, again.stderr[-2000:]
    assert "seed 5 (1 of 3, finished before)" in again.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
    assert (tmp_path / "r" / "seed_5" / "run.json").read_bytes() == before
    main([*long, "--output_dir", str(tmp_path / "whole")])
    for name in ("seed_7/metrics.json", "seed_7/README.md", "seed_7/predictions/validation.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "r" / name).read_bytes()


def test_a_seed_that_fails_costs_no_other_and_another_command_starts_anew(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    from peft_mrpc import train
    from peft_mrpc.errors import UserError

    real = train.build_classifier

    def fail_on_seed_2(request: Any, *rest: Any) -> Any:
        if request.arguments.seed == 2:
            raise UserError("the disk is full")
        return real(request, *rest)

    monkeypatch.setattr(train, "build_classifier", fail_on_seed_2)
    said = fails(main, *flags, "--seeds", "1,2", "--output_dir", str(tmp_path / "r"))
    assert "the disk is full" in said and "Finished seeds (1) are kept in" in said
    assert not (tmp_path / "r").exists()
    monkeypatch.undo()
    main([*flags, "--seeds", "1,2", "--r", "2", "--output_dir", str(tmp_path / "r")])
    kept = [p.name for p in tmp_path.iterdir() if p.name.startswith(".r.seeds-")]
    assert len(kept) == 1  # of the command that failed
    assert len(list((tmp_path / "r").iterdir())) == 2


def test_a_run_over_seeds_is_replaced_only_when_asked(
    flags: list[str], seeds_run: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    import shutil

    shutil.copytree(seeds_run, tmp_path / "run")
    out = ["--output_dir", str(tmp_path / "run")]
    assert "already holds a Run" in fails(main, *flags, "--seeds", "1,2", *out)
    main([*flags, "--seed", "1", "--overwrite", *out])
    assert not (tmp_path / "run" / "seed_1").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_two_processes_train_every_seed(flags: list[str], tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    done = run_command("train", *flags, "--seeds", "1", "2", "--output_dir", out, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("seed 2 (2 of 2)") == 1
    assert load_run(out).metrics["validation"]["num_seeds"] == 2
    assert load_run(tmp_path / "run" / "seed_2").record["num_processes"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--seeds", "1,1,2"], "--seeds: got 1 twice; name each seed once."),
        (["--seeds", "1,-2"], "--seeds: got '-2'; expected whole numbers from 0 to 4294967295"),
        (["--seeds", "1,two"], "--seeds: got 'two'; expected whole numbers"),
        (["--seeds", "1,2.5"], "--seeds: got '2.5'"),
        (["--seeds", "1,4294967296"], "--seeds: got '4294967296'"),
        (["--seeds", "1,,2"], "--seeds: got ''"),
        (["--seeds="], "--seeds: got ''"),
        (["--seeds"], "--seeds: expected at least one argument"),
        (["--seeds", "7"], "--seeds: got 7 alone; expected two or more, or --seed."),
        (["--seeds", "1,2", "--seed", "3"], "--seeds: got --seed as well; drop one of them."),
    ],
)
def test_bad_seeds_are_refused(
    given: list[str], said: str, flags: list[str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    message = fails(main, *flags, *given, "--output_dir", str(tmp_path / "out"))
    assert said in message and len(message.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_seeds_do_not_resume_a_checkpoint(flags: list[str], fails: Callable[..., str]) -> None:
    said = fails(main, *flags, "--seeds", "1,2", "--resume_from_checkpoint", "gone")
    assert "--seeds: got --resume_from_checkpoint as well" in said


def test_a_recipe_lists_seeds_and_a_flag_is_stronger(flags: list[str], tmp_path: Path) -> None:
    from peft_mrpc.training.request import parse_request

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seeds: [4, 5]\n")
    config = ["--config", str(recipe)]
    request = parse_request([*flags, *config])
    assert request.config.seeds == ["4", "5"] and request.arguments.seed == 4
    request = parse_request([*flags, *config, "--seed", "3"])
    assert request.config.seeds is None and request.arguments.seed == 3
    recipe.write_text("seed: 9\n")
    assert parse_request([*flags, *config, "--seeds", "1,2"]).config.seeds == ["1", "2"]
