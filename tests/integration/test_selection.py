"""Model selection: the split carved from train, checkpoints, early stopping, thresholds."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROWS, build_training, write_csv

from peft_mrpc import DataConfig, UserError, load_classifier
from peft_mrpc.data.examples import Example
from peft_mrpc.data.loading import load_data
from peft_mrpc.data.splits import stratified_split
from peft_mrpc.evaluation.thresholds import predict_labels, tune_threshold
from peft_mrpc.runs.run import Run
from peft_mrpc.training.checkpoints import TRAINED_FILE, load_trained

# PEFT saves the prompt alone; the encoders of the last two methods are larger than that.
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "layer_freeze": {},
    "lora": {"lora_dropout": 0.1},
    "prompt_tuning": {},
    "p_tuning": {},
    "prefix_tuning": {"prefix_projection": True, "encoder_hidden_size": 8},
}
# A head and noise that overfit the few examples soon.
QUICK: dict[str, Any] = {"pooling": "segments", "head_learning_rate": 5e-4, "dropout": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Forty training examples, half of each label, and nine validation examples."""
    folder = tmp_path_factory.mktemp("many")
    header = ("sentence1", "sentence2", "label")
    even = [row for row in ROWS if row[2] == "equivalent"][:4]
    odd = [row for row in ROWS if row[2] != "equivalent"][:4]
    train = write_csv(folder / "train.csv", (even + odd) * 5, header)
    validation = write_csv(folder / "validation.csv", ROWS, header)
    return DataConfig(train_file=str(train), validation_file=str(validation))


@pytest.fixture
def train(train_tiny: Callable[..., Run], data: DataConfig) -> Callable[..., Run]:
    def run(method: str, name: str = "run", **options: Any) -> Run:
        defaults = {"data": data, "num_train_epochs": 5, **QUICK, **OPTIONS[method]}
        return train_tiny(method, name, **{**defaults, **options})

    return run


def train_examples(data: DataConfig) -> tuple[Example, ...]:
    return load_data(data).splits["train"]


def test_the_split_is_stratified_and_determined_by_the_seed() -> None:
    examples = [Example(row, "a", "b", int(row % 4 == 0)) for row in range(80)]
    train, validation = stratified_split(examples, 0.25, 1)
    assert sorted([*train, *validation], key=lambda example: example.idx) == examples
    assert Counter(example.label for example in validation) == {0: 15, 1: 5}
    assert stratified_split(examples, 0.25, 1) == (train, validation)
    assert stratified_split(examples, 0.25, 2)[1] != validation


def test_all_examples_train_if_nothing_is_selected(
    train: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "peft_mrpc"):
        record = train("lora", max_steps=1).record
    assert record["selection"] is None and record["threshold"] == 0.5
    assert record["data"]["splits"]["train"]["num_examples"] == 40
    assert "model selection: none, all 40 training examples train" in caplog.text


def test_the_selection_split_is_carved_from_train_and_recorded(
    train: Callable[..., Run], data: DataConfig
) -> None:
    run = train("lora", eval_strategy="epoch", num_train_epochs=2, seed=3)
    record = run.record["selection"]
    rest, validation = stratified_split(train_examples(data), 0.1, 3)
    assert record["num_examples"] == len(validation) == 4
    assert record["labels"] == {"not_equivalent": 2, "equivalent": 2}
    assert record["fraction"] == 0.1 and record["seed"] == 3 and len(record["fingerprint"]) == 64
    assert record["best_step"] is None and not record["stopped_early"]
    assert run.record["data"]["splits"]["train"]["num_examples"] == len(rest) == 36
    evaluations = [row for row in run.record["log_history"] if "eval_loss" in row]
    assert [row["epoch"] for row in evaluations] == [1, 2]
    assert {"eval_accuracy", "eval_f1", "eval_roc_auc"} <= set(evaluations[0])
    again = train("lora", "again", eval_strategy="epoch", data_seed=3, max_steps=1)
    assert again.record["selection"]["fingerprint"] == record["fingerprint"]


def test_the_reported_split_needs_no_labels(
    train: Callable[..., Run], pair_files: dict[str, str]
) -> None:
    data = DataConfig(train_file=pair_files["train"], validation_file=pair_files["unlabelled"])
    run = train("layer_freeze", data=data, load_best_model_at_end=True, num_train_epochs=1)
    assert run.record["selection"]["best_epoch"] == 1


@pytest.mark.parametrize("pooling", ["native", "segments"])
@pytest.mark.parametrize("method", OPTIONS)
def test_the_best_checkpoint_is_reloaded_exactly(
    method: str, pooling: str, tiny_bert: str, data: DataConfig, tmp_path: Path
) -> None:
    from tiny_models import TINY_OPTIONS

    # The learning rate is so high that the best checkpoint is not the last.
    options: dict[str, Any] = {
        **{"load_best_model_at_end": True, "num_train_epochs": 6, "save_strategy": "epoch"},
        **{"learning_rate": 0.1, "head_learning_rate": 0.1, "pooling": pooling, "dropout": 0.1},
        **{"per_device_train_batch_size": 4, "model": tiny_bert},
        **{**TINY_OPTIONS[method], **OPTIONS[method]},
    }
    tiny = build_training(tmp_path, data, method, **options)
    trainer = tiny.trainer
    trainer.train()
    best = trainer.state.best_global_step
    assert trainer.state.global_step == 54 and best % 9 == 0
    (row,) = (r for r in trainer.state.log_history if r["step"] == best and "eval_loss" in r)
    again = trainer.evaluate()
    for name in ("eval_loss", "eval_accuracy", "eval_f1", "eval_roc_auc"):
        assert again[name] == row[name], name
    # A new model loaded from the checkpoint alone has the same probabilities.
    fresh = build_training(tmp_path / "other", data, method, **options)
    names = [n for n, p in fresh.trainer.model.named_parameters() if p.requires_grad]
    load_trained(fresh.trainer.model, names, tmp_path / "checkpoints" / f"checkpoint-{best}")
    examples = tiny.data.splits["validation"]
    assert np.array_equal(
        tiny.classifier.predict_proba(examples, 8), fresh.classifier.predict_proba(examples, 8)
    )


@pytest.mark.parametrize("method", OPTIONS)
def test_the_run_holds_the_best_model_and_no_checkpoints(
    method: str, train: Callable[..., Run], data: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"early_stopping_patience": 1, "num_train_epochs": 30, "learning_rate": 0.1}
    with caplog.at_level("INFO", "peft_mrpc"):
        run = train(method, metric_for_best_model="accuracy", **options)
    record = run.record["selection"]
    best = f"best checkpoint: step {record['best_step']} of {record['last_step']}, accuracy"
    assert best in caplog.text and "; stopped early" in caplog.text
    assert record["stopped_early"] and record["last_step"] < 270
    assert record["last_step"] == record["best_step"] + 9 == 9 * (record["best_epoch"] + 1)
    evaluations = [row for row in run.record["log_history"] if "eval_accuracy" in row]
    assert record["best_metric"] == max(row["eval_accuracy"] for row in evaluations)
    assert not (run.path / "checkpoints").exists()
    saved = run.predictions("validation").probabilities
    again = load_classifier(run).predict_proba(load_data(data).splits["validation"])
    assert np.abs(again - saved).max() < 1e-5


def test_early_stopping_counts_steps_and_keeps_requested_checkpoints(
    train: Callable[..., Run],
) -> None:
    options = {"early_stopping_patience": 2, "learning_rate": 0.1, "num_train_epochs": 40}
    run = train("lora", eval_strategy="steps", eval_steps=4, **options)
    record = run.record["selection"]
    assert record["stopped_early"] and record["last_step"] == record["best_step"] + 8
    saved = train("lora", "saved", save_strategy="epoch", save_total_limit=2, **options)
    names = {path.name for path in (saved.path / "checkpoints").iterdir()}
    record = saved.record["selection"]
    assert names == {f"checkpoint-{record[name]}" for name in ("best_step", "last_step")}
    last = train("lora", "last", load_best_model_at_end=False, **options)
    assert last.record["selection"]["best_step"] is None
    assert last.record["selection"]["stopped_early"]


@pytest.mark.parametrize(("method", "step"), [("p_tuning", 4), ("prefix_tuning", 8), ("lora", 8)])
def test_a_resumed_training_equals_an_uninterrupted_one(
    method: str, step: int, train: Callable[..., Run]
) -> None:
    # Evaluations every 4 steps in epochs of 9: within an epoch, and after the best one.
    options = {"num_train_epochs": 3, "load_best_model_at_end": True, "save_steps": 4}
    options |= {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps"}
    whole = train(method, **options)
    checkpoint = str(whole.path / "checkpoints" / f"checkpoint-{step}")
    rest = train(method, "rest", resume_from_checkpoint=checkpoint, **options)
    assert np.array_equal(
        whole.predictions("validation").probabilities, rest.predictions("validation").probabilities
    )
    for name in ("best_step", "best_metric", "last_step"):
        assert whole.record["selection"][name] == rest.record["selection"][name]


def test_patience_and_the_best_checkpoint_survive_resuming(train: Callable[..., Run]) -> None:
    options = {"early_stopping_patience": 2, "learning_rate": 0.1, "num_train_epochs": 40}
    options["save_strategy"] = "epoch"
    whole = train("lora", **options)
    best, last = (whole.record["selection"][name] for name in ("best_step", "last_step"))
    # One evaluation without improvement is counted already.
    checkpoint = str(whole.path / "checkpoints" / f"checkpoint-{last - 9}")
    rest = train("lora", "rest", resume_from_checkpoint=checkpoint, **options)
    assert rest.record["selection"]["last_step"] == last == best + 18
    assert rest.record["selection"]["best_step"] == best
    assert np.array_equal(
        whole.predictions("validation").probabilities, rest.predictions("validation").probabilities
    )


def test_a_checkpoint_of_another_training_is_rejected(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    options = {"num_train_epochs": 2, "load_best_model_at_end": True, "learning_rate": 1.0}
    options["save_strategy"] = "epoch"
    run = train("lora", **options)
    checkpoint = run.path / "checkpoints" / f"checkpoint-{run.record['selection']['best_step']}"
    options["resume_from_checkpoint"] = str(checkpoint)
    with pytest.raises(UserError, match="r: got 2, but .* was trained with 4"):
        train("lora", "other", r=2, **options)
    with pytest.raises(UserError):
        load_trained(torch.nn.Linear(2, 2), ["weight"], checkpoint)
    (checkpoint / TRAINED_FILE).unlink()
    with pytest.raises(UserError, match=TRAINED_FILE):
        train("lora", "other", **options)
    assert not (tmp_path / "other").exists()


def test_a_training_without_an_evaluation_keeps_its_last_model(
    train: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "max_steps": 2}
    assert train("lora", **options, eval_steps=1).record["selection"]["best_step"] in (1, 2)
    assert "before its first evaluation" not in caplog.text
    last = train("lora", "last", eval_delay=3, eval_steps=1, **options)
    assert last.record["selection"]["best_step"] is None
    assert "before its first evaluation" in caplog.text


def test_a_missing_best_checkpoint_is_reported(train: Callable[..., Run]) -> None:
    options = {"num_train_epochs": 4, "load_best_model_at_end": True, "learning_rate": 0.5}
    options |= {"metric_for_best_model": "accuracy", "save_strategy": "epoch"}
    run = train("lora", **options)
    best = run.record["selection"]["best_step"]
    assert best < 36
    shutil.rmtree(run.path / "checkpoints" / f"checkpoint-{best}")
    last = str(run.path / "checkpoints" / "checkpoint-36")
    with pytest.raises(UserError, match=f"checkpoint-{best}"):
        train("lora", "rest", resume_from_checkpoint=last, **options)


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
    for _ in range(8):
        truth = (rng.random(30) < 0.8).astype(int)
        scores = np.round(np.clip(0.3 * truth + 0.7 * rng.random(30), 0, 1), 2)
        best = tune_threshold(truth, scores, metric)
        others = [reached(truth, scores, t) for t in np.linspace(0, 1, 201)]
        assert reached(truth, scores, best) == pytest.approx(max(others))


def test_a_threshold_changes_predictions_and_survives_reloading(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    plain = train("lora", max_steps=3)
    probabilities = plain.predictions("validation").probabilities
    # Between two scores, so that there are predictions of both labels.
    scores = np.sort(probabilities[:, 1])
    threshold = float(scores[3] + scores[4]) / 2
    run = train("lora", "moved", max_steps=3, threshold=str(threshold))
    moved = run.predictions("validation")
    assert np.array_equal(moved.probabilities, probabilities)
    assert moved.predictions.tolist() == (probabilities[:, 1] > threshold).astype(int).tolist()
    assert moved.predictions.sum() == 5
    accuracy = float((moved.predictions == moved.references).mean())
    assert run.metrics["validation"]["accuracy"] == pytest.approx(accuracy)
    assert run.metrics["validation"]["roc_auc"] == plain.metrics["validation"]["roc_auc"]
    # The artifact alone, as downloaded from the Hub.
    folder = shutil.copytree(run.artifact, tmp_path / "downloaded")
    again = load_classifier(folder).predict([(a, b) for a, b, _ in ROWS])
    assert again == [run.label_names[label] for label in moved.predictions]


@pytest.mark.parametrize("options", [{}, {"metric_for_best_model": "f1"}])
def test_the_threshold_is_selected_on_the_selection_split(
    options: dict[str, Any], train: Callable[..., Run], data: DataConfig
) -> None:
    run = train("layer_freeze", threshold="auto", selection_fraction=0.4, **options)
    _, validation = stratified_split(train_examples(data), 0.4, 42)
    classifier = load_classifier(run)
    scores = classifier.predict_proba(validation, 8)[:, 1]
    labels = np.array([example.label for example in validation])
    expected = tune_threshold(labels, scores, "f1" if options else "accuracy")
    assert classifier.threshold == run.record["threshold"] == pytest.approx(expected, abs=1e-5)
    assert run.record["config"]["threshold"] == "auto"
    assert run.record["selection"]["num_examples"] == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection_fraction": 0.0}, "selection_fraction: got 0.0; expected a number between"),
        ({"selection_fraction": float("nan")}, "selection_fraction: got nan; expected"),
        ({"threshold": "1"}, "threshold: got '1'; expected auto or a number between 0 and 1"),
        ({"threshold": "best"}, "threshold: got 'best'; expected auto"),
        ({"early_stopping_patience": 0}, "early_stopping_patience: got 0; expected at least 1"),
        (
            {"early_stopping_patience": 1, "eval_strategy": "no", "load_best_model_at_end": False},
            "early_stopping_patience: got eval_strategy no as well",
        ),
        ({"eval_on_start": True}, "eval_on_start: got eval_strategy no as well"),
        (
            {"load_best_model_at_end": True, "save_strategy": "no"},
            "save and eval strategy to match",
        ),
        (
            {"load_best_model_at_end": True, "metric_for_best_model": "auc"},
            "metric_for_best_model: got 'auc'; expected one of",
        ),
        (
            {
                **{"load_best_model_at_end": True, "metric_for_best_model": "accuracy"},
                "greater_is_better": False,
            },
            "greater_is_better: got false for accuracy",
        ),
        ({"save_strategy": "best", "eval_strategy": "epoch"}, "save_strategy: got best without"),
        ({"class_weights": "1"}, "class_weights: got 1 numbers; expected 2"),
        ({"class_weights": "1,x"}, "class_weights: got '1,x'"),
        ({"label_smoothing_factor": 1.0}, "label_smoothing_factor: got 1.0"),
    ],
)
def test_invalid_options_are_rejected(
    options: dict[str, Any], message: str, train: Callable[..., Run], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        train("layer_freeze", **options)
    assert message in str(error.value) and len(error.value.faults) == 1
    assert list(tmp_path.iterdir()) == []


def test_options_that_do_not_fit_the_data_are_rejected(
    train: Callable[..., Run], data: DataConfig
) -> None:
    three = [(a, b, "xyz"[number % 3]) for number, (a, b, _) in enumerate(ROWS)]
    for threshold in ("auto", "0.4"):
        with pytest.raises(UserError, match=f"threshold: got '{threshold}' with 3 labels"):
            train("lora", data={"train": three, "validation": three}, threshold=threshold)
    with pytest.raises(UserError) as error:
        train("lora", data={"train": ROWS[:2], "validation": ROWS}, threshold="auto")
    assert str(error.value).count("selection_fraction: got 1 training example with") == 2
    with pytest.raises(UserError, match="split: got train, a part of which is held out"):
        selected = DataConfig(train_file=data.train_file, split="train")
        train("lora", data=selected, threshold="auto")
