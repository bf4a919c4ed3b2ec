import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_runs import PERFECT, SCORES, build_run, change_record

from peft_mrpc.data.examples import Example
from peft_mrpc.errors import UserError
from peft_mrpc.runs.run import group_seed_runs, load_run
from peft_mrpc.runs.writer import write_predictions
from peft_mrpc.serialization import read_json_lines


def test_sentences_may_contain_unicode_line_separators(tmp_path: Path) -> None:
    examples = [
        Example(0, "one\u2028two\x85three\x0b", "four\u2029\x1c", 1),
        Example(1, "a", "b", 0),
    ]
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4]])
    path = tmp_path / "predictions" / "test.jsonl"
    write_predictions(path, examples, np.array([1, 0]), probabilities, ["no", "yes"])
    rows = read_json_lines(path)
    assert [row["sentence1"] for row in rows] == [example.sentence1 for example in examples]
    assert [row["prediction"] for row in rows] == ["yes", "no"]


def test_damaged_predictions_are_refused(trained_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained_run, copy)
    path = copy / "predictions" / "validation.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for damaged in (lines[:4], lines[::-1], []):
        path.write_text("".join(damaged))
        with pytest.raises(UserError, match="damaged"):
            load_run(copy).predictions("validation")


def test_predictions_keep_the_order_and_omit_unknown_labels(tmp_path: Path) -> None:
    examples = [Example(0, "a", "b", 1), Example(1, "c", "d")]
    path = tmp_path / "predictions" / "test.jsonl"
    scores = np.array([[0.25, 0.75], [0.5, 0.5]])
    write_predictions(path, examples, np.array([1, 0]), scores, ["no", "yes"])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {
            **{"idx": 0, "sentence1": "a", "sentence2": "b", "label": "yes", "prediction": "yes"},
            "probabilities": {"no": 0.25, "yes": 0.75},
        },
        {
            **{"idx": 1, "sentence1": "c", "sentence2": "d", "prediction": "no"},
            "probabilities": {"no": 0.5, "yes": 0.5},
        },
    ]


def test_other_directories_are_refused_with_the_reason(tmp_path: Path, trained_run: Path) -> None:
    with pytest.raises(UserError, match="is not a directory.*Did you mean 'layer_freeze'"):
        load_run(trained_run.parent / "layer_freez")
    with pytest.raises(UserError, match=r"has no run\.json"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format_version": 99}')
    with pytest.raises(UserError, match="got format 99"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("{oops")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_run(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_memory_excludes_the_parent_process() -> None:
    held = bytearray(b"1") * (1 << 30)
    code = "from peft_mrpc.environment import peak_memory; print(peak_memory()['resident_bytes'])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < len(held)


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """A directory of three Runs with accuracies 0.8, 0.8 and 1."""
    for seed, scores in ((2, SCORES["b"]), (10, PERFECT), (1, SCORES["a"])):
        config = {"r": 4, "seed": seed}
        build_run(tmp_path / "run" / f"seed_{seed}", scores, seed=seed, config=config)
    return tmp_path / "run"


def test_a_directory_of_seeds_is_a_multi_seed_run(seeds: Path) -> None:
    (seeds / "seed_3").mkdir()  # unfinished
    run = load_run(seeds)
    assert run.path == seeds and run.record["seeds"] == [1, 2, 10]
    values = run.metrics["test"]
    assert values["accuracy"] == pytest.approx((0.8 + 0.8 + 1) / 3)
    assert values["std"]["accuracy"] == pytest.approx(np.std([0.8, 0.8, 1.0], ddof=1))
    assert values["seeds"]["10"]["accuracy"] == 1.0 and values["num_seeds"] == 3
    assert [member.path.name for member in run.seed_runs] == ["seed_1", "seed_2", "seed_10"]
    # The first seed represents the Run.
    assert run.model_run.path == seeds / "seed_1" and run.artifact == seeds / "seed_1" / "model"
    first = load_run(seeds / "seed_1").predictions("test")
    assert (run.predictions("test").probabilities == first.probabilities).all()


def test_a_directory_with_one_finished_seed_is_its_run(tmp_path: Path) -> None:
    build_run(tmp_path / "seed_4", SCORES["a"], seed=4)
    run = load_run(tmp_path)
    assert run.path == tmp_path / "seed_4" and not run.members


def test_seeds_of_different_trainings_are_refused(seeds: Path) -> None:
    other = load_run(seeds / "seed_2")
    change_record(other, lambda record: record["config"].update(r=8))
    with pytest.raises(UserError, match="seed_1 and seed_2 differ in r; expected Runs that differ"):
        load_run(seeds)


def test_runs_that_differ_in_the_seed_only_are_grouped(seeds: Path, tmp_path: Path) -> None:
    first, second, third = load_run(seeds).members
    other = build_run(tmp_path / "o", SCORES["a"], seed=4, config={"r": 8, "seed": 4})
    twin = build_run(tmp_path / "t", SCORES["a"], seed=1, config={"r": 4, "seed": 1})
    grouped, alone, again = group_seed_runs([third, first, other, second, twin])
    assert [run.record["seed"] for run in grouped.seed_runs] == [1, 2, 10]
    assert grouped.metrics == load_run(seeds).metrics
    assert alone is other and again is twin
    assert group_seed_runs([load_run(seeds), twin])[1] is twin


def test_an_option_of_a_newer_version_does_not_separate_seeds(tmp_path: Path) -> None:
    runs = [
        build_run(tmp_path / f"{seed}", SCORES["a"], seed=seed, config=config)
        for seed, config in ((1, {"r": 4}), (2, {"r": 4, "new": True}))
    ]
    assert len(group_seed_runs(runs)) == 1


def test_seeds_that_draw_their_training_examples_are_grouped(tmp_path: Path) -> None:
    config = {"max_train_samples": 3}
    runs = [build_run(tmp_path / f"{s}", SCORES["a"], seed=s, config=config) for s in (1, 2)]

    def change(record: dict[str, Any]) -> None:
        record["data"]["splits"]["train"]["fingerprint"] = "0" * 64

    runs[1] = change_record(runs[1], change)
    assert len(group_seed_runs(runs)) == 1
    runs = [change_record(run, lambda record: record["config"].clear()) for run in runs]
    assert len(group_seed_runs(runs)) == 2


def test_a_written_run_has_a_card_and_plots(trained_run: Path) -> None:
    assert {path.name for path in (trained_run / "plots").iterdir()} == {
        *("confusion_matrix.png", "roc_curve.png")
    }
    assert "fine-tuned with **layer_freeze**" in (trained_run / "README.md").read_text()
