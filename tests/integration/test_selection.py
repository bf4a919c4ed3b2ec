import dataclasses
import json
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROWS, run_command, write_csv
from transformers import set_seed

from peft_mrpc.api import load_classifier
from peft_mrpc.config import DataConfig
from peft_mrpc.data.examples import Example
from peft_mrpc.data.loading import load_data, reported_splits
from peft_mrpc.errors import UserError
from peft_mrpc.evaluation.thresholds import predict_labels, tune_threshold
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.runs.model_card import build_card
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.train import main
from peft_mrpc.training.build_model import build_classifier
from peft_mrpc.training.build_trainer import build_trainer
from peft_mrpc.training.checkpoints import TRAINED_FILE, load_trained
from peft_mrpc.training.request import parse_request
from peft_mrpc.training.selection import hold_out, hold_out_selection

# The encoders of the last two are more than the prompt they compute, which is all that PEFT saves.
FLAGS = {
    "full": [],
    "layer_freeze": ["--num_unfrozen_layers", "1"],
    "lora": ["--r", "4", "--lora_dropout", "0.1"],
    "prompt_tuning": ["--num_virtual_tokens", "5"],
    "p_tuning": ["--num_virtual_tokens", "5", "--encoder_hidden_size", "8"],
    "prefix_tuning": [
        *("--num_virtual_tokens", "5", "--prefix_projection", "true"),
        *("--encoder_hidden_size", "8"),
    ],
}
QUICK = ["--per_device_train_batch_size", "4", "--disable_tqdm", "true", "--report_to", "none"]
# A head and noise with which so few pairs stop being learned soon.
QUICK += ["--pooling", "segments", "--head_learning_rate", "5e-4", "--dropout", "0.1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Forty training pairs, half of them of each label, and the usual nine to report on."""
    folder = tmp_path_factory.mktemp("many")
    header = ("sentence1", "sentence2", "label")
    even = [row for row in ROWS if row[2] == "equivalent"][:4]
    odd = [row for row in ROWS if row[2] != "equivalent"][:4]
    train = write_csv(folder / "train.csv", (even + odd) * 5, header)
    validation = write_csv(folder / "validation.csv", ROWS, header)
    return ["--train_file", str(train), "--validation_file", str(validation)]


@pytest.fixture
def train(tiny_bert: str, files: list[str], tmp_path: Path) -> Callable[..., Run]:
    def run(method: str, *flags: str, name: str = "run") -> Run:
        main(
            ["--method", method, "--model", tiny_bert, *files, *QUICK, *FLAGS[method]]
            + ["--output_dir", str(tmp_path / name), *flags]
        )
        return load_run(tmp_path / name)

    return run


def pairs_of(run: Run) -> tuple[Example, ...]:
    config = run.record["config"]
    data = DataConfig(**{f"{s}_file": config[f"{s}_file"] for s in ("train", "validation")})
    return load_data(data).splits["validation"]


def test_the_part_is_apart_stratified_and_fixed_by_the_seed() -> None:
    pairs = [Example(row, "a", "b", int(row % 4 == 0)) for row in range(80)]
    kept, held = hold_out(pairs, 0.25, 1)
    assert sorted([*kept, *held], key=lambda pair: pair.idx) == pairs
    assert Counter(pair.label for pair in held) == {0: 15, 1: 5}
    assert hold_out(pairs, 0.25, 1) == (kept, held)
    assert hold_out(pairs, 0.25, 2)[1] != held


def test_all_pairs_train_where_nothing_is_chosen(
    train: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "peft_mrpc"):
        record = train("lora", "--max_steps", "1").record
    assert record["selection"] is None and record["threshold"] == 0.5
    assert record["data"]["splits"]["train"]["num_examples"] == 40
    assert "all 40 training pairs train: nothing is chosen" in caplog.text


def test_what_is_watched_is_held_out_of_train_and_recorded(
    train: Callable[..., Run], files: list[str]
) -> None:
    run = train("lora", "--eval_strategy", "epoch", "--num_train_epochs", "2", "--seed", "3")
    record = run.record["selection"]
    kept, held = hold_out(load_data(DataConfig(train_file=files[1])).splits["train"], 0.1, 3)
    assert record["num_examples"] == len(held) == 4
    assert record["labels"] == {"not_equivalent": 2, "equivalent": 2}
    assert record["fraction"] == 0.1 and record["seed"] == 3 and len(record["fingerprint"]) == 64
    assert record["best_step"] is None and not record["stopped_early"]
    assert run.record["data"]["splits"]["train"]["num_examples"] == len(kept) == 36
    watched = [row for row in run.record["log_history"] if "eval_loss" in row]
    assert [row["epoch"] for row in watched] == [1, 2]
    assert {"eval_accuracy", "eval_f1", "eval_roc_auc"} <= set(watched[0])
    # --data_seed alone decides where it is given.
    again = train("lora", "--eval_strategy", "epoch", "--data_seed", "3", "--max_steps", "1",
                  name="again")  # fmt: skip
    assert again.record["selection"]["fingerprint"] == record["fingerprint"]


def test_the_reported_split_needs_no_labels_to_choose(
    tiny_bert: str, pair_files: dict[str, str], tmp_path: Path
) -> None:
    main(
        ["--model", tiny_bert, "--train_file", pair_files["train"], *QUICK]
        + ["--validation_file", pair_files["unlabelled"], "--output_dir", str(tmp_path / "run")]
        + ["--load_best_model_at_end", "--num_train_epochs", "1"]
    )
    assert load_run(tmp_path / "run").record["selection"]["best_epoch"] == 1


def prepare(method: str, model: str, files: list[str], folder: Path, *flags: str) -> Any:
    request = parse_request(
        ["--method", method, "--model", model, *files, *QUICK, *FLAGS[method], *flags]
    )
    data = load_data(request.data)
    splits = reported_splits(data, request.data.split)
    data = hold_out_selection(request.config, request.arguments, splits, data)
    set_seed(request.arguments.seed)
    classifier = build_classifier(request, resolve_model(model), data)
    trainer, _ = build_trainer(request, data, classifier, str(folder))
    return trainer, classifier, data


@pytest.mark.parametrize("pooling", ["native", "segments"])
@pytest.mark.parametrize("method", FLAGS)
def test_the_best_checkpoint_is_reloaded_exactly(
    method: str, pooling: str, tiny_bert: str, files: list[str], tmp_path: Path
) -> None:
    # Too high a rate, so that the best is not the last.
    flags = ["--load_best_model_at_end", "--num_train_epochs", "6", "--pooling", pooling]
    flags += ["--learning_rate", "0.1", "--head_learning_rate", "0.1", "--save_strategy", "epoch"]
    trainer, classifier, data = prepare(method, tiny_bert, files, tmp_path, *flags)
    trainer.train()
    best = trainer.state.best_global_step
    assert trainer.state.global_step == 54 and best % 9 == 0
    if best == 54:  # the first is another one in any case
        load_trained(trainer.model, trainer._trained_names, tmp_path / "checkpoints/checkpoint-9")
        trainer._load_best_model()
    (row,) = (r for r in trainer.state.log_history if r["step"] == best and "eval_loss" in r)
    again = trainer.evaluate()
    for name in ("eval_loss", "eval_accuracy", "eval_f1", "eval_roc_auc"):
        assert again[name] == row[name], name
    # The logits are those of a model built anew from the checkpoint alone.
    other, fresh, _ = prepare(method, tiny_bert, files, tmp_path / "other", *flags)
    other._load_from_checkpoint(str(tmp_path / "checkpoints" / f"checkpoint-{best}"))
    pairs = data.splits["validation"]
    assert np.array_equal(classifier.predict_proba(pairs, 8), fresh.predict_proba(pairs, 8))


@pytest.mark.parametrize("method", FLAGS)
def test_the_run_holds_the_best_and_no_checkpoints(
    method: str, train: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--early_stopping_patience", "1", "--num_train_epochs", "30"]
    with caplog.at_level("INFO", "peft_mrpc"):
        run = train(method, *flags, "--learning_rate", "0.1", "--metric_for_best_model", "accuracy")
    record = run.record["selection"]
    kept = f"kept: step {record['best_step']} of {record['last_step']}, with the best accuracy on"
    assert kept in caplog.text and "; stopped early" in caplog.text
    assert record["stopped_early"] and record["last_step"] < 270
    assert record["last_step"] == record["best_step"] + 9 == 9 * (record["best_epoch"] + 1)
    watched = [row for row in run.record["log_history"] if "eval_accuracy" in row]
    assert record["best_metric"] == max(row["eval_accuracy"] for row in watched)
    assert not (run.path / "checkpoints").exists()
    saved = run.predictions("validation").probabilities
    again = load_classifier(str(run.path)).predict_proba(pairs_of(run), 32)
    assert np.abs(again - saved).max() < 1e-5
    assert f"held out to select epoch {record['best_epoch']:g}" in build_card(run)


def test_early_stopping_takes_steps_and_checkpoints_of_ones_own(train: Callable[..., Run]) -> None:
    flags = ["--early_stopping_patience", "2", "--learning_rate", "0.1", "--num_train_epochs", "40"]
    run = train("lora", *flags, "--eval_strategy", "steps", "--eval_steps", "4")
    record = run.record["selection"]
    assert record["stopped_early"] and record["last_step"] == record["best_step"] + 8
    keep = ["--eval_strategy", "epoch", "--save_strategy", "epoch", "--save_total_limit", "2"]
    kept = train("lora", *flags, *keep, name="kept")
    names = {path.name for path in (kept.path / "checkpoints").iterdir()}
    record = kept.record["selection"]
    assert names == {f"checkpoint-{record[name]}" for name in ("best_step", "last_step")}
    without = train("lora", *flags, "--load_best_model_at_end", "false", name="without")
    assert without.record["selection"]["best_step"] is None
    assert without.record["selection"]["stopped_early"]


@pytest.mark.parametrize("method", ["p_tuning", "prefix_tuning", "lora"])
@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    method: str, step: int, train: Callable[..., Run]
) -> None:
    # Steps of 4 in epochs of 9: in the middle of one, and after the best was found.
    flags = ["--num_train_epochs", "3", "--load_best_model_at_end", "--save_steps", "4"]
    flags += ["--eval_strategy", "steps", "--eval_steps", "4", "--save_strategy", "steps"]
    whole = train(method, *flags)
    checkpoint = whole.path / "checkpoints" / f"checkpoint-{step}"
    rest = train(method, *flags, "--resume_from_checkpoint", str(checkpoint), name="rest")
    assert np.array_equal(
        whole.predictions("validation").probabilities, rest.predictions("validation").probabilities
    )
    for name in ("best_step", "best_metric", "last_step"):
        assert whole.record["selection"][name] == rest.record["selection"][name]


def test_patience_and_the_best_survive_a_resume(train: Callable[..., Run]) -> None:
    flags = ["--early_stopping_patience", "2", "--learning_rate", "0.1", "--num_train_epochs", "40"]
    whole = train("lora", *flags, "--save_strategy", "epoch")
    best, last = (whole.record["selection"][name] for name in ("best_step", "last_step"))
    # One evaluation without progress was counted already; the best lies before the checkpoint.
    checkpoint = whole.path / "checkpoints" / f"checkpoint-{last - 9}"
    rest = train("lora", *flags, "--resume_from_checkpoint", str(checkpoint), name="rest")
    assert rest.record["selection"]["last_step"] == last == best + 18
    assert rest.record["selection"]["best_step"] == best
    assert np.array_equal(
        whole.predictions("validation").probabilities, rest.predictions("validation").probabilities
    )


def test_checkpoints_of_something_else_are_refused(
    train: Callable[..., Run],
    tiny_bert: str,
    files: list[str],
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    flags = ["--num_train_epochs", "2", "--load_best_model_at_end", "--learning_rate", "1"]
    run = train("lora", *flags, "--save_strategy", "epoch")
    checkpoint = run.path / "checkpoints" / f"checkpoint-{run.record['selection']['best_step']}"
    flags = ["--method", "lora", *FLAGS["lora"], "--model", tiny_bert, *files, *QUICK, *flags]
    flags += ["--output_dir", str(tmp_path / "other"), "--resume_from_checkpoint", str(checkpoint)]
    said = fails(main, *flags, "--r", "2")
    assert "--r: got 2, but" in said and "was trained with 4" in said
    with pytest.raises(UserError, match="was written by another method, model or option"):
        load_trained(torch.nn.Linear(2, 2), ["weight"], checkpoint)
    (checkpoint / TRAINED_FILE).unlink()
    assert f"holds no {TRAINED_FILE}" in fails(main, *flags)
    assert not (tmp_path / "other").exists()


def test_a_training_too_short_for_an_evaluation_says_that_nothing_was_chosen(
    train: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--load_best_model_at_end", "--eval_strategy", "steps", "--max_steps", "2"]
    chosen = train("lora", *flags, name="chosen")
    assert chosen.record["selection"]["best_step"] in (1, 2)
    assert "before its first evaluation" not in caplog.text
    unchosen = train("lora", *flags, "--eval_delay", "3", name="unchosen")
    assert unchosen.record["selection"]["best_step"] is None
    assert "--load_best_model_at_end: the training ended before its first evaluation" in caplog.text


def test_a_lost_best_checkpoint_is_said(
    train: Callable[..., Run],
    tiny_bert: str,
    files: list[str],
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    flags = ["--num_train_epochs", "4", "--load_best_model_at_end"]
    flags += ["--learning_rate", "0.5", "--metric_for_best_model", "accuracy"]
    run = train("lora", *flags, "--save_strategy", "epoch")
    best = run.record["selection"]["best_step"]
    assert best < 36
    shutil.rmtree(run.path / "checkpoints" / f"checkpoint-{best}")
    last = str(run.path / "checkpoints" / "checkpoint-36")
    said = fails(main, "--method", "lora", *FLAGS["lora"], "--model", tiny_bert, *files, *QUICK,
                 *flags, "--output_dir", str(tmp_path / "r"), "--resume_from_checkpoint",
                 last)  # fmt: skip
    assert f"whose best checkpoint so far is checkpoint-{best}, which is not beside it" in said


def test_dropped_batches_are_those_of_training(
    tiny_bert: str, files: list[str], tmp_path: Path
) -> None:
    flags = ["--eval_strategy", "epoch", "--dataloader_drop_last"]
    trainer, _, _ = prepare("lora", tiny_bert, files, tmp_path, *flags)
    assert trainer.predict(trainer.eval_dataset).predictions is None  # nothing fills a batch
    assert trainer.evaluate()["eval_accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    assert trainer.args.dataloader_drop_last


def test_two_processes_watch_each_row_once(
    tiny_bert: str, files: list[str], tmp_path: Path
) -> None:
    flags = ["--method", "lora", "--model", tiny_bert, *files, "--num_train_epochs", "1"]
    # 6 pairs in batches of 4 and 2, or of 2 x 4 that are filled up.
    flags += ["--selection_fraction", "0.15", "--eval_on_start", "--eval_strategy", "epoch"]
    flags += ["--per_device_eval_batch_size", "4", "--threshold", "auto"]
    watched = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = run_command("train", *flags, "--output_dir", str(out), processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
        run = load_run(out)
        assert run.record["selection"]["num_examples"] == 6
        watched.append(next(r for r in run.record["log_history"] if "eval_loss" in r))
    for name in ("eval_loss", "eval_accuracy", "eval_f1", "eval_roc_auc"):
        assert watched[0][name] == pytest.approx(watched[1][name], abs=1e-5), name


def test_the_threshold_decides_the_positive_of_two_and_nothing_else() -> None:
    two = np.array([[0.5, 0.5], [0.4, 0.6], [0.7, 0.3]])
    assert predict_labels(two).tolist() == [0, 1, 0]
    assert predict_labels(two, 0.25).tolist() == [1, 1, 1]
    assert predict_labels(two, 0.6).tolist() == [0, 0, 0]
    assert predict_labels(np.array([[0.2, 0.3, 0.5], [0.5, 0.3, 0.2]])).tolist() == [2, 0]


def test_the_best_threshold_by_hand() -> None:
    # Right at 0.3 < t < 0.7 for all: the middle.
    assert tune_threshold(np.array([0, 0, 1]), np.array([0.1, 0.3, 0.7])) == pytest.approx(0.5)
    # Three of four are right in (0.1, 0.2) and in (0.6, 0.9): the wider gap.
    truth, scores = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.6, 0.9])
    assert tune_threshold(truth, scores) == pytest.approx(0.75)
    # Equally wide gaps: (0.1, 0.3) and (0.5, 0.7), whose middle is nearer one half.
    truth, scores = np.array([0, 1, 0, 1]), np.array([0.1, 0.3, 0.5, 0.7])
    assert tune_threshold(truth, scores) == pytest.approx(0.6)
    # All of one label: what calls none positive, or all.
    assert tune_threshold(np.array([0, 0]), np.array([0.2, 0.8])) == pytest.approx(0.9)
    assert tune_threshold(np.array([1, 1]), np.array([0.2, 0.8])) == pytest.approx(0.1)
    assert tune_threshold(np.array([0, 1]), np.array([1.0, 1.0])) == pytest.approx(0.5)


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_no_threshold_is_better_than_the_best(metric: str) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    def reached(truth: Any, scores: Any, threshold: float) -> float:
        predicted = (scores > threshold).astype(int)
        if metric == "accuracy":
            return float(accuracy_score(truth, predicted))
        return float(f1_score(truth, predicted, average="macro", labels=[0, 1], zero_division=0))

    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = (rng.random(30) < 0.8).astype(int)
        scores = np.round(np.clip(0.3 * truth + 0.7 * rng.random(30), 0, 1), 2)
        best = tune_threshold(truth, scores, metric)
        others = [reached(truth, scores, t) for t in np.linspace(0, 1, 401)]
        assert reached(truth, scores, best) == pytest.approx(max(others))


def test_a_threshold_changes_predictions_and_survives_a_reload(
    train: Callable[..., Run], files: list[str], tmp_path: Path
) -> None:
    from peft_mrpc.predict import main as predict

    plain = train("lora", "--max_steps", "3")
    probabilities = plain.predictions("validation").probabilities
    # Between two scores, so that some fall on either side.
    scores = np.sort(probabilities[:, 1])
    threshold = float(scores[3] + scores[4]) / 2
    run = train("lora", "--max_steps", "3", "--threshold", str(threshold), name="moved")
    moved = run.predictions("validation")
    assert np.array_equal(moved.probabilities, probabilities)
    assert moved.predictions.tolist() == (probabilities[:, 1] > threshold).astype(int).tolist()
    assert moved.predictions.sum() == 5
    right = float((moved.predictions == moved.references).mean())
    assert run.metrics["validation"]["accuracy"] == pytest.approx(right)
    assert run.metrics["validation"]["roc_auc"] == plain.metrics["validation"]["roc_auc"]
    assert f"exceeds {threshold:.4f}" in build_card(run)
    output = tmp_path / "out.jsonl"
    # As it is fetched from the Hub: the artifact alone.
    folder = shutil.copytree(run.artifact, tmp_path / "fetched")
    predict([str(folder), "--input", files[3], "--output", str(output)])
    again = [json.loads(line)["prediction"] for line in output.read_text().splitlines()]
    assert again == [run.label_names[label] for label in moved.predictions]


@pytest.mark.parametrize("metric", [[], ["--metric_for_best_model", "f1"]])
def test_the_best_threshold_is_chosen_on_held_out_pairs_and_stored(
    metric: list[str], train: Callable[..., Run], files: list[str]
) -> None:
    run = train("layer_freeze", "--threshold", "auto", "--selection_fraction", "0.4", *metric)
    _, held = hold_out(load_data(DataConfig(train_file=files[1])).splits["train"], 0.4, 42)
    predictor = load_classifier(str(run.path))
    scores = predictor.predict_proba(held, 8)[:, 1]
    expected = tune_threshold(
        np.array([pair.label for pair in held]), scores, "f1" if metric else "accuracy"
    )
    assert predictor.threshold == run.record["threshold"] == pytest.approx(expected, abs=1e-5)
    assert run.record["config"]["threshold"] == "auto"
    assert run.record["selection"]["num_examples"] == 16
    assert "to select the threshold" in build_card(run)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--selection_fraction", "0"], "--selection_fraction: got 0.0; expected a number between"),
        (["--selection_fraction", "1"], "--selection_fraction: got 1.0; expected"),
        (["--selection_fraction", "nan"], "--selection_fraction: got nan; expected"),
        (["--threshold", "1"], "--threshold: got '1'; expected auto or a number between 0 and 1"),
        (["--threshold", "best"], "--threshold: got 'best'; expected auto"),
        (["--threshold", "nan"], "--threshold: got 'nan'; expected auto"),
        (["--early_stopping_patience", "0"], "--early_stopping_patience: got 0; expected at least"),
        (["--early_stopping_patience", "1", "--eval_strategy", "no"], "got --eval_strategy no"),
        (["--load_best_model_at_end", "--eval_strategy", "no"], "--load_best_model_at_end: got"),
        (["--eval_steps", "0", "--eval_strategy", "steps"], "--eval_steps: got 0; expected a n"),
        (["--eval_steps", "5"], "--eval_steps: got 5, but --eval_strategy is no; add"),
        (["--eval_steps", "5", "--eval_strategy", "epoch"], "--eval_strategy is epoch; add"),
        (["--save_steps", "5"], "--save_steps: got 5, but --save_strategy is no; add"),
        (["--load_best_model_at_end", "--save_strategy", "no"], "save and eval strategy to match"),
        (
            ["--early_stopping_patience", "1", "--eval_strategy", "steps", "--save_strategy=epoch"],
            "save and eval strategy to match",
        ),
        (["--metric_for_best_model", "auc"], "--metric_for_best_model: got 'auc'; expected one of"),
        (["--threshold", "auto", "--split", "train"], "--split: got train, of which a part is"),
        (["--class_weights", "1"], "--class_weights: got 1 numbers; expected 2"),
        (["--class_weights", "1,x"], "--class_weights: got '1,x'"),
        (["--focal_gamma", "-1"], "--focal_gamma: got -1.0"),
        (["--label_smoothing_factor", "1"], "--label_smoothing_factor: got 1.0"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str],
    said: str,
    tiny_bert: str,
    files: list[str],
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    message = fails(main, "--model", tiny_bert, *files, "--output_dir", str(tmp_path / "o"), *flags)
    assert said in message and len(message.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_labels_and_pairs_too_few_or_too_many_are_said(
    tiny_bert: str, tmp_path: Path, fails: Callable[..., str]
) -> None:
    header = ("sentence1", "sentence2", "label")
    three = [(a, b, str(number % 3)) for number, (a, b, _) in enumerate(ROWS)]
    path = str(write_csv(tmp_path / "three.csv", three, header))
    few = str(write_csv(tmp_path / "few.csv", ROWS[:2], header))
    flags = ["--model", tiny_bert, "--output_dir", str(tmp_path / "o"), "--dry_run"]
    names = ["--class_names", "x,y,z"]
    three_flags = [*flags, *names, "--train_file", path, "--validation_file", path]
    for threshold in ("auto", "0.4"):
        said = fails(main, *three_flags, "--threshold", threshold)
        assert f"--threshold: got {threshold}, but there are 3 labels" in said
    main([*three_flags, "--threshold", "0.50", "--eval_strategy", "epoch"])
    said = fails(main, *flags, "--train_file", few, "--validation_file", few, "--threshold", "auto")
    assert said.count("--selection_fraction: got 1 training pair that is") == 2
    two = str(write_csv(tmp_path / "two.csv", [row for row in three if row[2] != "2"], header))
    said = fails(main, *flags, *names, "--train_file", two, "--validation_file", path,
                 "--load_best_model_at_end", "--metric_for_best_model", "roc_auc")  # fmt: skip
    assert "the training pairs have 2 of 3 labels" in said


def test_the_documented_commands_parse() -> None:
    pages = ("model-selection.md", "losses.md")
    text = "".join((Path(__file__).parents[2] / "docs" / page).read_text("utf-8") for page in pages)
    commands = [
        shlex.split(line)
        for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    assert [words[:2] for words in commands] == [["peft-mrpc", "train"]] * 4
    for words in commands:
        parse_request(words[2:])


def test_a_resumed_training_needs_every_parameter(tmp_path: Path) -> None:
    from peft_mrpc.training.checkpoints import save_trained

    model = torch.nn.Linear(2, 3)
    save_trained(model, ["weight"], tmp_path)
    with pytest.raises(UserError, match=r"another method, model or option \(bias differs\)"):
        load_trained(model, ["weight", "bias"], tmp_path)
    with pytest.raises(UserError, match=r"\(weight differs\)"):
        load_trained(torch.nn.Linear(3, 3), ["weight"], tmp_path)


def test_requests_can_be_made_again_with_another_seed() -> None:
    request = parse_request(["--early_stopping_patience", "1"])
    assert not request.keep_checkpoints and request.arguments.load_best_model_at_end
    assert dataclasses.replace(request, publish=True).config is request.config
