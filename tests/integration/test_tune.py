"""`tune`: what is searched, on what, by how many, and what is left of it."""

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from conftest import ROWS, run_command, write_csv

from peft_mrpc import train
from peft_mrpc.config import DataConfig
from peft_mrpc.data.loading import load_data
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.runs.run import load_run
from peft_mrpc.serialization import load_yaml
from peft_mrpc.training.request import parse_command
from peft_mrpc.training.selection import hold_out
from peft_mrpc.training.tuning.search_space import load_space
from peft_mrpc.tune import OWN, _check_ends, flag_values, main

SPACE = """
learning_rate: {low: 1e-4, high: 1e-1, log: true}
r: {choices: [2, 4, 8]}
pooling: {choices: [native, mean]}
per_device_train_batch_size: {low: 2, high: 6, step: 2}
"""
FIXED = ["--method", "lora", "--num_train_epochs", "3"]
HELD_OUT = ["--selection_fraction", "0.3"]
SEARCH = ["--objective", "loss", "--num_trials", "9"]


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory, tiny_bert: str, data_flags: list[str]) -> Any:
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return [*HELD_OUT, *FIXED, "--model", tiny_bert, *data_flags, "--search_space", str(path)]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "search"
    main([*flags, *SEARCH, "--output_dir", str(folder)])
    return folder


def read_trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def load_study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.db'}")


def test_a_search_leaves_a_recipe_a_table_and_pictures(search: Path) -> None:
    assert {path.name for path in search.iterdir()} == {
        *("best.yaml", "search.json", "search.png", "search.svg", "study.db", "trials.csv")
    }
    rows = read_trials(search)
    assert [int(row["trial"]) for row in rows] == list(range(9))
    assert {row["state"] for row in rows} == {"complete", "pruned"}
    complete = [row for row in rows if row["state"] == "complete"]
    assert len(complete) >= 5  # the median of fewer says nothing
    best = min(complete, key=lambda row: float(row["loss"]))
    text = (search / "best.yaml").read_text()
    assert f"trial {best['trial']}, loss {float(best['loss']):.4f} on 5 held-out" in text
    recipe = load_yaml(text)
    assert recipe["learning_rate"] == float(best["learning_rate"])
    assert recipe["r"] == int(best["r"]) and recipe["pooling"] == best["pooling"]
    assert not {"output_dir", "num_trials", "eval_strategy", "search_space"} & set(recipe)
    assert (search / "search.png").stat().st_size > 20_000


def test_train_runs_the_recipe_as_it_is(search: Path, tmp_path: Path) -> None:
    train.main(["--config", str(search / "best.yaml"), "--output_dir", str(tmp_path / "run")])
    run = load_run(tmp_path / "run")
    recipe = load_yaml((search / "best.yaml").read_text())
    assert run.record["config"]["learning_rate"] == recipe["learning_rate"]
    assert run.record["method_options"]["r"] == recipe["r"]
    assert run.record["config"]["num_train_epochs"] == 3


def test_a_trial_is_what_train_does_with_its_values(
    flags: list[str], pair_files: dict[str, str], tmp_path: Path
) -> None:
    # One epoch: evaluation after each moves the random numbers of the next.
    fixed = [*FIXED, "--num_train_epochs", "1", "--model", flags[flags.index("--model") + 1]]
    search = tmp_path / "search"
    search_flags = ["--num_trials", "3", "--objective", "loss", "--output_dir", str(search)]
    main([*flags, "--num_train_epochs", "1", *search_flags])
    pairs = load_data(DataConfig(train_file=pair_files["train"]))
    parts = hold_out(pairs.splits["train"], 0.3, 42)
    header = ("sentence1", "sentence2", "label")
    for name, part in zip(("train", "held"), parts, strict=True):
        rows = [(p.sentence1, p.sentence2, pairs.label_names[p.label]) for p in part]
        write_csv(tmp_path / f"{name}.csv", rows, header)
    row = read_trials(search)[-1]
    assert row["state"] == "complete"
    names = ("learning_rate", "r", "pooling", "per_device_train_batch_size")
    values = [f"--{name}={row[name]}" for name in names]
    files = ["--train_file", str(tmp_path / "train.csv")]
    files += ["--validation_file", str(tmp_path / "held.csv")]
    train.main([*fixed, *files, *values, "--output_dir", str(tmp_path / "run")])
    answers = load_run(tmp_path / "run").predictions("validation")
    right = answers.probabilities[np.arange(len(parts[1])), answers.references]
    assert float(row["loss"]) == pytest.approx(-np.log(right).mean(), abs=1e-5)


def test_a_search_in_two_parts_is_the_search_in_one(
    search: Path, flags: list[str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    out = ["--output_dir", str(tmp_path / "parts")]
    main([*flags, *SEARCH, "--num_trials", "3", *out])
    assert len(read_trials(tmp_path / "parts")) == 3
    main([*flags, *SEARCH, "--num_trials", "8", *out])
    main([*flags, *SEARCH, "--num_trials", "8", *out])  # nothing left to do
    whole, parts = read_trials(search)[:8], read_trials(tmp_path / "parts")
    for row in [*whole, *parts]:
        del row["seconds"]
    assert parts == whole
    said = fails(main, *flags, *SEARCH, "--learning_rate_x", "1", *out)
    assert "--learning_rate_x: got an unknown flag." in said
    said = fails(main, *flags, *SEARCH, "--num_train_epochs", "2", *out)
    assert "holds a search with another num_train_epochs" in said
    said = fails(train.main, *flags[len(HELD_OUT) : -2], *out)
    assert "holds what is no Run's" in said


def test_two_workers_share_the_trials(flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "search"
    given = [*flags, "--num_trials", "8", "--num_workers", "2", "--output_dir", str(out)]
    done = run_command("tune", *given)
    assert done.returncode == 0, done.stderr[-2000:]
    trials = load_study(out).get_trials()
    assert len(trials) == 8
    assert len({tuple(trial.user_attrs["worker"]) for trial in trials}) == 2
    assert len({trial.params["learning_rate"] for trial in trials}) == 8
    assert done.stdout.count("best: trial") == 1 and "8 trials: " in done.stdout


def test_commands_with_one_storage_share_a_study(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text("num_virtual_tokens: {choices: [2, 40]}\n")
    given = ["--method", "prompt_tuning", "--model", tiny_bert, *data_flags]
    given += ["--num_train_epochs", "1", "--search_space", str(tmp_path / "space.yaml")]
    given += ["--storage", f"sqlite:///{tmp_path / 'shared.db'}"]
    main([*given, "--num_trials", "2", "--output_dir", str(tmp_path / "here")])
    main([*given, "--num_trials", "4", "--output_dir", str(tmp_path / "there")])
    rows = read_trials(tmp_path / "there")
    assert rows[:2] == read_trials(tmp_path / "here") and len(rows) == 4
    # 40 virtual tokens leave 24 positions to the pair: its features are the trial's own.
    assert {row["num_virtual_tokens"] for row in rows} == {"2", "40"}
    assert {row["state"] for row in rows} == {"complete"}


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    # Each value does alone, beside the recipe's 20 tokens; 40 leave nothing of 40.
    space = tmp_path / "space.yaml"
    space.write_text("num_virtual_tokens: {choices: [5, 40]}\nmax_length: {choices: [40, 60]}\n")
    given = ["--method", "prompt_tuning", "--model", tiny_bert, *data_flags]
    given += ["--num_train_epochs", "1", "--num_trials", "8", "--search_space", str(space)]
    out = ["--output_dir", str(tmp_path / "search")]
    said = fails(main, *given, "--max_length", "50", *out)
    assert "max_length: is given as a flag or in --config too; drop one." in said
    main([*given, *out])
    rows = read_trials(tmp_path / "search")
    has_failed = [row["num_virtual_tokens"] == row["max_length"] == "40" for row in rows]
    assert [row["state"] == "failed" for row in rows] == has_failed and any(has_failed)
    failed = next(row for row in rows if row["state"] == "failed")
    assert "--max_length: got 40, of which 40 are virtual tokens" in failed["failure"]
    space.write_text("num_virtual_tokens: {choices: [38, 40]}\nmax_length: {choices: [40, 42]}\n")
    said = fails(main, *given, "--output_dir", str(tmp_path / "none"))
    assert "tune: none of 8 trials came to its end. The first failed: --max_length" in said


def test_an_interrupted_search_goes_on(flags: list[str], tmp_path: Path) -> None:
    out = ["--output_dir", str(tmp_path / "search"), "--num_trials", "3"]
    # The seconds to interrupt the second trial in: many epochs, for this command alone.
    given = [*flags, "--num_train_epochs", "30"]
    process = subprocess.Popen(
        [sys.executable, "-m", "peft_mrpc.tune", *given, *out],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr
    assert any(line.startswith("trial 1: ") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "the same command goes on" in said
    again = run_command("tune", *given, *out)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "1 of 3 trials are there" in again.stderr
    assert "\ntrial 2: epoch 29 of 30, accuracy " in again.stderr
    rows = read_trials(tmp_path / "search")
    assert [row["trial"] for row in rows] == ["0", "2", "3"]  # 1 was interrupted


def test_the_trials_of_a_worker_that_died_are_given_up(
    search: Path, flags: list[str], tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "search"
    shutil.copytree(search, folder)
    study = load_study(folder)
    lost = study.ask()
    lost.set_user_attr("worker", [__import__("socket").gethostname(), 2**22 + 1])
    record = json.loads((folder / "search.json").read_text())
    assert record["study"] == study.study_name
    main([*flags, *SEARCH, "--num_trials", "10", "--output_dir", str(folder)])
    states = [trial.state.name for trial in load_study(folder).get_trials()]
    assert states[9] == "FAIL" and states[10] in ("COMPLETE", "PRUNED") and len(states) == 11
    assert len(read_trials(folder)) == 10


def test_it_is_judged_on_training_pairs_alone(flags: list[str], pair_files: dict[str, str]) -> None:
    from peft_mrpc.tune import _held_out_data

    request, _ = parse_command(flags, "tune", "", OWN)
    data = _held_out_data(request)
    assert set(data.splits) == {"train", "selection"}
    everything = load_data(request.data).splits["train"]
    assert sorted(p.idx for split in data.splits.values() for p in split) == list(range(18))
    assert set(data.splits["selection"]) < set(everything)
    assert len(data.splits["selection"]) == 5 and len(ROWS) * 2 == 18


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_search_space_that_train_accepts(
    method: str, tiny_bert: str, data_flags: list[str]
) -> None:
    argv = ["--method", method, "--model", tiny_bert, *data_flags]
    request, _ = parse_command(argv, "tune", "", OWN)
    space = load_space(None, method, flag_values(request), set(), set(), {})
    assert {"learning_rate", "num_train_epochs"} <= {p.name for p in space}
    low, high = next(p.ends() for p in space if p.name == "learning_rate")
    assert low < request.arguments.learning_rate < high
    _check_ends(argv, space, resolve_model("builtin:minilm"))
    fixed = load_space(None, method, flag_values(request), {"learning_rate"}, set(), {})
    assert [p.name for p in fixed] == [p.name for p in space if p.name != "learning_rate"]


def test_no_layers_are_counted_where_modules_are_frozen(
    tiny_bert: str, data_flags: list[str]
) -> None:
    argv = ["--model", tiny_bert, *data_flags]
    names = []
    for frozen in ([], ["--frozen_modules", "embeddings"]):
        request, _ = parse_command([*argv, *frozen], "tune", "", OWN)
        space = load_space(None, "layer_freeze", flag_values(request), set(), set(), {})
        _check_ends([*argv, *frozen], space, resolve_model("builtin:minilm"))
        names.append({parameter.name for parameter in space})
    assert names[0] - names[1] == {"num_unfrozen_layers"}


def test_the_packaged_space_keeps_to_the_model_and_the_command(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", tiny_bert, *data_flags, "--selection_fraction", "0.3", "--dry_run"]
    main([*flags, "--output_dir", str(tmp_path / "out")])  # of two layers
    assert "num_unfrozen_layers in 1, 2\n" in capsys.readouterr().out
    flags += ["--pooling", "mean", "--head_layer", "1", "--max_steps", "2"]
    main([*flags, "--num_unfrozen_layers", "1", "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "learning_rate from" in said
    assert "num_unfrozen_layers" not in said and "num_train_epochs" not in said


def test_a_decay_of_the_recipe_is_spread_over_each_trials_layers(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text("head_layer: {choices: [1, 2]}\n")
    argv = ["--method", "full", "--model", tiny_bert, *data_flags, "--num_train_epochs", "1"]
    argv += ["--selection_fraction", "0.3", "--num_trials", "2"]
    main(
        [*argv, "--search_space", str(tmp_path / "space.yaml"), "--output_dir", str(tmp_path / "s")]
    )
    best = load_yaml((tmp_path / "s" / "best.yaml").read_text())
    assert "layer_decay" not in best
    assert (
        "layer_decay"
        in train.parse_request(["--config", str(tmp_path / "s/best.yaml")]).recipe_rates
    )


def test_decay_and_schedule_are_searched(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("layer_decay: {low: 0.5, high: 1.0}\nunfreeze_every: {choices: [0.5, 1]}\n")
    argv = ["--model", tiny_bert, *data_flags, "--selection_fraction", "0.3", "--num_trials", "2"]
    argv += ["--metric_for_best_model", "f1"]  # by which trials are chosen, and nothing in train
    out = tmp_path / "search"
    main([*argv, "--search_space", str(space), "--output_dir", str(out)])
    best = load_yaml((out / "best.yaml").read_text())
    assert 0.5 <= best["layer_decay"] <= 1 and best["unfreeze_every"] in (0.5, 1)
    request = train.parse_request(["--config", str(out / "best.yaml"), *data_flags])
    assert request.config.layer_decay == pytest.approx(best["layer_decay"])
    assert request.options.unfreeze_every == best["unfreeze_every"]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("layer_decay: {low: 0.5, high: 1.5}", "--layer_decay: got 1.5; expected above 0"),
        ("learning_rat: {low: 1, high: 2}", "is no flag of lora. Did you mean 'learning_rate'?"),
        ("num_virtual_tokens: {low: 1, high: 2}", "num_virtual_tokens: is no flag of lora."),
        ("seed: {low: 1, high: 2}", "seed: is the same for all trials; drop it."),
        ("dataset: {choices: [a, b]}", "dataset: is the same for all trials"),
        ("r: 8", "r: got 8; expected {low, high, log, step}"),
        ("r: {low: 8, hihg: 9}", "got 'hihg'; expected low, high, log, step, factor, choices. Did"),
        ("r: {low: 8}", "got low 8 and high None; expected two numbers"),
        ("r: {low: 8, high: 8}", "expected two numbers, the lower first"),
        ("learning_rate: {low: 0, high: 1, log: true}", "got log with low 0; expected low above"),
        ("learning_rate: {low: .nan, high: 1}", "got low nan and high 1"),
        ("r: {low: 2, high: 8, step: 0}", "got step 0; expected a number up to high - low"),
        ("r: {low: 2, high: 8, step: 2, log: true}", "and no log"),
        ("r: {low: 2, high: 8, log: 2}", "got log 2; expected true or false"),
        ("r: {choices: [8]}", "expected choices alone, a list of two or more"),
        ("r: {choices: [8, 8]}", "expected choices that differ"),
        ("r: {choices: [8, [9]]}", "got the choice [9]; expected numbers, words, true or false"),
        ("r: {factor: 1}", "got factor 1; expected a number above 1"),
        ("layers_to_transform: {factor: 2}", "but the recipe has None here; expected low and high"),
        ("r: {choices: [8, many]}", "r in the search space: --r: got 'many'; expected int."),
        ("r: {low: 0, high: 8}", "r in the search space: --r: got 0; expected at least 1."),
        ("lora_dropout: {low: 0.0, high: 2.0}", "--lora_dropout: got 2.0; expected 0 or more and"),
        (
            "target_modules: {choices: [query, quary]}",
            "--target_modules: got 'quary', which is no module of",
        ),
        ("learning_rate: {low: -1, high: 1}", "--learning_rate: got -1"),
        ("pooling: {choices: [mean, max]}", "--pooling: got 'max'"),
        ("{}", "leaves nothing to search"),
        ("- r", "expected lines `name: {low"),
        ("r: {", "not valid YAML"),
    ],
)
def test_a_bad_search_space_is_refused_before_the_first_trial(
    space: str, said: str, tiny_bert: str, data_flags: list[str], tmp_path: Path, fails: Any
) -> None:
    (tmp_path / "space.yaml").write_text(space)
    given = ["--method", "lora", "--model", tiny_bert, *data_flags]
    given += ["--search_space", str(tmp_path / "space.yaml"), "--output_dir", str(tmp_path / "o")]
    message = fails(main, *given)
    assert said in message and len(message.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_a_search_is_not_judged_by_a_loss_that_it_changes(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, fails: Any
) -> None:
    (tmp_path / "space.yaml").write_text("focal_gamma: {low: 0.0, high: 5.0}\n")
    given = ["--method", "lora", "--model", tiny_bert, *data_flags, "--objective", "loss"]
    given += ["--search_space", str(tmp_path / "space.yaml"), "--output_dir", str(tmp_path / "o")]
    message = fails(main, *given)
    assert "focal_gamma in the search space: changes the loss that --objective loss" in message


def test_machines_of_other_precision_join_one_search(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = ["--storage", f"sqlite:///{tmp_path / 'study.db'}", "--num_trials"]
    main([*flags, *storage, "1", "--output_dir", str(tmp_path / "one")])
    monkeypatch.setattr("peft_mrpc.precision.cpu_bf16_units", lambda: "AMX")
    main([*flags, *storage, "2", "--output_dir", str(tmp_path / "two")])
    assert len(read_trials(tmp_path / "two")) == 2


def test_ends_that_only_together_ask_for_too_many_layers_are_refused(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, fails: Any
) -> None:
    space = "head_layer: {low: 1, high: 2}\nnum_unfrozen_layers: {low: 1, high: 2}\n"
    (tmp_path / "space.yaml").write_text(space)
    given = ["--method", "layer_freeze", "--model", tiny_bert, *data_flags]
    given += ["--search_space", str(tmp_path / "space.yaml"), "--output_dir", str(tmp_path / "o")]
    message = fails(main, *given)
    assert "head_layer with num_unfrozen_layers in the search space: " in message
    assert "got 2" in message and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--num_trials", "0"], "--num_trials: got 0; expected at least 1."),
        (["--num_workers", "0"], "--num_workers: got 0; expected at least 1."),
        (["--num_trails", "3"], "--num_trails: got an unknown flag. Did you mean 'num_trials'?"),
        (["--objective", "f2"], "--objective: got 'f2'; expected one of accuracy, loss"),
        (["--pruner", "mean"], "--pruner: got 'mean'; expected one of median, none."),
        (["--seeds", "1,2"], "--seeds: a search has one --seed"),
        (["--eval_strategy", "steps"], "--eval_strategy: a trial is judged"),
        (["--eval_steps", "1"], "--eval_steps: a trial is judged"),
        (["--disable_tqdm", "true"], "--disable_tqdm: the bars of trials are not shown"),
        (["--overwrite"], "--overwrite: a search goes on where it stands"),
        (["--selection_fraction", "1"], "--selection_fraction: got 1.0; expected a number"),
        (["--search_space", "gone.yaml"], "--search_space: got 'gone.yaml'; expected a readable"),
        (["--storage", "nonsense"], "--storage: got 'nonsense', which cannot be opened"),
        (["--model", "no/such/dir"], "--model: got 'no/such/dir', which is not a directory"),
        (["--max_train_samples", "1"], "got 1 training pair that is"),
    ],
)
def test_bad_flags_are_refused(
    given: list[str], said: str, tiny_bert: str, data_flags: list[str], tmp_path: Path, fails: Any
) -> None:
    flags = ["--method", "lora", "--model", tiny_bert, *data_flags]
    message = fails(main, *flags, *given, "--output_dir", str(tmp_path / "out"))
    assert said in message and len(message.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_dry_run_shows_the_search_and_writes_nothing(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*flags, "--dry_run", "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "training on 13 pairs, accuracy on 5 held out" in said
    assert "learning_rate from 0.0001 to 0.1, log; r in 2, 4, 8" in said
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_the_hint_is_one_line(flags: list[str]) -> None:
    script = (
        "import sys; sys.modules['optuna'] = None; from peft_mrpc.cli.app import run_cli;"
        "from peft_mrpc.tune import main; sys.exit(run_cli(main))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip().endswith("Next: pip install 'peft-mrpc[tune]'")
    assert len(done.stderr.splitlines()) == 1


def test_a_password_is_not_shown() -> None:
    from peft_mrpc.training.tuning.study import without_login

    assert without_login("postgresql://me:se@cret@host/db") == "postgresql://host/db"
    assert without_login("sqlite:////tmp/a.db") == "sqlite:////tmp/a.db"
