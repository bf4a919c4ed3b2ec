"""`train` and `train_classifier`: every method's contract, the Run, and invalid input."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROWS, requires_mrpc, run_command, write_csv
from datasets import Dataset
from peft import PeftModel
from tiny_models import TINY_OPTIONS
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from peft_mrpc import DataConfig, TrainConfig, UserError, load_classifier, train_classifier
from peft_mrpc.data.loading import load_data
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.models.architecture import trainable_names
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.train import main

H, FF, LAYERS = 16, 32, 2  # the tiny BERT
LAYER = 4 * (H * H + H) + 2 * H + (H * FF + FF) + (FF * H + H) + 2 * H
POOLER = H * H + H
# BERT's own head is one layer over its pooler; ours compares tokens (two features of each, and the
# sharpness of the alignment), then has a hidden layer over two sums and two means, then the labels.
D = 128
HEADS = {
    "native": 2 * H + 2,
    "aligned": 1 + (2 * H * D + D) + ((2 * D + 2) * D + D) + (2 * D + 2),
    # A weight for each token, and two sums more.
    "weighted": 1 + (2 * H * D + D) + H + ((4 * D + 2) * D + D) + (2 * D + 2),
}
# How many numbers train beside the head, by formula; None: all of them.
TRAINED = {
    "full": None,
    "layer_freeze": LAYER,
    "linear_probe": 0,
    # Four projections of H, one of FF, two norms in a layer; one norm over the embeddings.
    "bitfit": LAYERS * (4 * H + (FF + H) + 2 * H) + H,
    "ln_tuning": LAYERS * 2 * 2 * H + 2 * H,
    "ia3": LAYERS * (3 * H + FF),  # key, value, what enters the two output projections
    "vera": LAYERS * 2 * (4 + H),  # query and value: d is [r], b is [H]
    # Every projection, four [H, H] and two of the feed-forward part: A is [r, in], B is [out, r].
    "lora": LAYERS * 4 * (4 * (H + H) + 2 * (H + FF)),
    # A magnitude for each output beside them.
    "dora": LAYERS * (4 * (4 * (H + H) + 2 * (H + FF)) + 4 * H + FF + H),
    "oft": LAYERS * 2 * (H // 8) * (8 * 7 // 2),  # H / 8 skew-symmetric blocks, 8 wide
    "prompt_tuning": 5 * H,
    # Embeddings, and a network H -> 8 -> 8 -> H over them.
    "p_tuning": 5 * H + (H * 8 + 8) + (8 * 8 + 8) + (8 * H + H),
    "prefix_tuning": 5 * LAYERS * 2 * H,  # a key and a value in every layer
}


def expected_count(method: str, pooling: str) -> int | None:
    count = TRAINED[method]
    if count is None:
        return None
    # BERT's pooler stands after the layers: layer_freeze trains it, bitfit its bias, LoRA takes it
    # for one projection more; our head does without.
    pooler = {"layer_freeze": POOLER, "bitfit": H, "lora": 4 * (H + H), "dora": 4 * (H + H) + H}
    return count + (pooler.get(method, 0) if pooling == "native" else 0) + HEADS[pooling]


def test_the_contract_covers_every_method() -> None:
    assert set(TINY_OPTIONS) == set(TRAINED) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pooling", HEADS)
def test_two_steps_change_the_trainable_parameters_and_no_others(
    method: str, pooling: str, build_tiny: Callable[..., Any]
) -> None:
    trainer = build_tiny(method, pooling=pooling, max_steps=2).trainer
    model = trainer.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = set(trainable_names(model))
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    expected = expected_count(method, pooling)
    assert count == (expected if expected is not None else sum(p.numel() for p in before.values()))
    trainer.train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed <= names
    # The bias of the keys has no effect (softmax is shift-invariant). The gradients of LoRA's A and
    # VeRA's d are zero in the first step.
    constant = ("key.bias", "lora_A", "vera_lambda_d")
    assert not {name for name in names - changed if not any(part in name for part in constant)}


def test_frozen_layers_run_in_eval_mode_and_trained_layers_have_dropout(
    build_tiny: Callable[..., Any],
) -> None:
    trainer = build_tiny("layer_freeze", pooling="native", max_steps=2).trainer
    bert = trainer.model.bert
    modes: dict[str, set[bool]] = {"embeddings": set(), "frozen": set(), "trained": set()}
    watched = {
        "embeddings": bert.embeddings.dropout,
        "frozen": bert.encoder.layer[0].output.dropout,
        "trained": bert.encoder.layer[1].output.dropout,
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda m, *_, name=name: modes[name].add(m.training))
    trainer.train()
    assert modes == {"embeddings": {False}, "frozen": {False}, "trained": {True}}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: str, tiny_data: DataConfig
) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("methods")
    return {
        method: train_classifier(
            TrainConfig(method=method, model=tiny_bert, pooling="native"),
            tiny_data,
            output_dir=folder / method,
            **{"num_train_epochs": 2, "disable_tqdm": True, **TINY_OPTIONS[method]},
        )
        for method in METHODS
    }


def test_every_saved_run_gives_equal_probabilities_in_a_new_process(
    runs: dict[str, Run], pair_files: dict[str, str]
) -> None:
    script = (
        "import sys, json; from peft_mrpc import load_classifier;"
        "from peft_mrpc.data.loading import load_data; from peft_mrpc.config import DataConfig;"
        "pairs = load_data(DataConfig(validation_file=sys.argv[1])).splits['validation'];"
        "probabilities = [load_classifier(p).predict_proba(pairs).tolist() for p in sys.argv[2:]];"
        "print(json.dumps(probabilities))"
    )
    paths = [str(run.path) for run in runs.values()]
    done = subprocess.run(
        [sys.executable, "-c", script, pair_files["validation"], *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    for run, reloaded in zip(runs.values(), json.loads(done.stdout), strict=True):
        saved = run.predictions("validation").probabilities
        assert abs(np.array(reloaded) - saved).max() < 1e-6, run.path


def test_model_and_adapter_load_without_this_toolkit(runs: dict[str, Run], tiny_bert: str) -> None:
    for method, run in runs.items():
        folder = run.path / ("adapter" if METHODS[method].is_peft else "model")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if METHODS[method].is_peft:
            base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
            model = PeftModel.from_pretrained(base, str(folder))
        else:
            model = AutoModelForSequenceClassification.from_pretrained(folder)
            assert model.config.id2label == {0: "not_equivalent", 1: "equivalent"}
        first = tokenizer(ROWS[0][0], ROWS[0][1], return_tensors="pt")
        with torch.inference_mode():
            probability = model.eval()(**first).logits.softmax(-1)[0]
        saved = run.predictions("validation").probabilities[0]
        assert torch.allclose(probability.double(), torch.tensor(saved), rtol=0, atol=1e-5), method


def test_the_record_describes_model_data_and_environment(runs: dict[str, Run]) -> None:
    run = runs["layer_freeze"]
    record = run.record
    assert record["trainable"]["trained"] == expected_count("layer_freeze", "native")
    names = record["trainable"]["parameters"]
    assert {name.split(".")[1] for name in names} <= {"encoder", "pooler", "weight", "bias"}
    assert not any("layer.0" in name for name in names)
    assert record["data"]["splits"]["train"]["num_examples"] == 2 * len(ROWS)
    assert len(record["data"]["splits"]["validation"]["fingerprint"]) == 64
    assert record["versions"]["torch"] == torch.__version__
    assert record["seed"] == 42 and record["config"]["learning_rate"] == 4e-4
    assert record["config"]["swap_sentences"] == "true"  # resolved
    assert record["peak_memory"]["resident_bytes"] > 1e8
    for name in ("confusion_matrix.png", "roc_curve.png"):
        assert (run.path / "plots" / name).stat().st_size > 5000


def test_examples_in_memory_train_as_files_do(train_tiny: Callable[..., Run]) -> None:
    from_files = train_tiny("lora", "files")
    splits = {"train": ROWS * 2, "validation": ROWS}
    columns = ("sentence1", "sentence2", "label")
    as_datasets = {
        split: Dataset.from_list([dict(zip(columns, row, strict=True)) for row in rows])
        for split, rows in splits.items()
    }
    for name, data in (("tuples", splits), ("datasets", as_datasets)):
        run = train_tiny("lora", name, data=data)
        assert run.record["data"]["name"] == "in_memory"
        assert np.array_equal(
            run.predictions("validation").probabilities,
            from_files.predictions("validation").probabilities,
        )


def test_mixed_precision_scores_as_the_saved_model(
    train_tiny: Callable[..., Run], tiny_data: DataConfig
) -> None:
    run = train_tiny(bf16=True, use_cpu=True)
    examples = load_data(tiny_data).splits["validation"]
    again = load_classifier(run).predict_proba(examples)
    assert np.abs(again - run.predictions("validation").probabilities).max() < 1e-6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"bf16": True}, "eager"),
        ({}, "sdpa"),
        ({"bf16": True, "attention": "sdpa"}, "sdpa"),
        ({"attention": "eager"}, "eager"),
    ],
)
def test_attention_is_set_for_the_training_alone(
    options: dict[str, Any], expected: str, build_tiny: Callable[..., Any]
) -> None:
    tiny = build_tiny("lora", use_cpu=True, max_steps=1, **options)
    config = tiny.classifier.model.base_model.model.encoder.config
    before, seen = config._attn_implementation, []

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(config._attn_implementation)

    tiny.trainer.add_callback(Watch())
    tiny.trainer.train()
    assert before == config._attn_implementation == "sdpa"
    assert seen == [expected]


@pytest.mark.parametrize(
    ("name", "reason"), [("spda", "not supported"), ("flash_attention_2", "package")]
)
def test_an_unsupported_attention_is_rejected(
    name: str, reason: str, build_tiny: Callable[..., Any]
) -> None:
    with pytest.raises(UserError, match=f"attention: got '{name}'.*{reason}"):
        build_tiny(attention=name)


def test_evaluation_examples_in_train_are_warned_of(
    train_tiny: Callable[..., Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(write_csv(tmp_path / "all.csv", ROWS, ("sentence1", "sentence2", "label")))
    data = DataConfig(train_file=path, validation_file=path, max_eval_samples=4)
    train_tiny(data=data, max_steps=1)
    assert "4 of 4" in caplog.text
    caplog.clear()
    train_tiny(name="train", data=DataConfig(train_file=path, split="train"), max_steps=1)
    assert "also occur" not in caplog.text


def test_a_label_without_training_examples_is_warned_of(
    train_tiny: Callable[..., Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("a cat", "a dog", "1"), ("a cow", "a cow", "1"), ("a", "b", "1")]
    path = str(write_csv(tmp_path / "ones.csv", rows, ("sentence1", "sentence2", "label")))
    data = DataConfig(train_file=path, validation_file=path, class_names="no,yes")
    train_tiny(data=data, max_steps=1)
    assert "no training example has the label no" in caplog.text


def test_a_seed_determines_the_run(train_tiny: Callable[..., Run]) -> None:
    first, same, other = (
        train_tiny("lora", name, seed=seed).predictions("validation").probabilities
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert (first == same).all()
    assert (first != other).any()


def test_virtual_tokens_reduce_the_maximum_length(build_tiny: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="num_virtual_tokens: got 60, but the model has 64"):
        build_tiny("prompt_tuning", num_virtual_tokens=60)
    tiny = build_tiny("prompt_tuning", num_virtual_tokens=50)
    assert tiny.classifier.max_length == tiny.resolved.max_length == 14
    encoded, num_truncated = tiny.classifier.encode(tiny.data.splits["train"])
    assert max(len(ids) for ids in encoded["input_ids"]) == 14
    assert num_truncated == sum(len(f"{a} {b}".split()) + 3 > 14 for a, b, _ in ROWS * 2) > 0
    assert tiny.classifier.predict_proba(tiny.data.splits["validation"], 4).shape == (9, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "no/such/dir"}, "model: got 'no/such/dir'"),
        ({"model": "builtin:minlm"}, "Did you mean 'builtin:minilm'?"),
        ({"method": "loar"}, "method: got 'loar'"),
        ({"num_unfrozen_layers": 9}, "bert here has 2 layers; expected 0 to 2"),
        ({"method": "lora", "target_modules": "nothing"}, "target_modules: got 'nothing'"),
        ({"learning_rate": float("nan")}, "learning_rate: got nan; expected a number."),
        ({"num_train_epochs": -1}, "num_train_epochs: got -1.0; expected a number above 0"),
        ({"per_device_eval_batch_size": 0}, "got 0; expected at least 1"),
        ({"seed": -1}, "seed: got -1; expected 0 to 4294967295"),
        ({"report_to": "nonsense"}, "nonsense is not supported"),
        ({"resume_from_checkpoint": "gone"}, "trainer_state.json"),
        ({"pooling": "max"}, "pooling: got 'max'"),
        ({"dropout": 1.0}, "dropout: got 1.0; expected 0 or more and below 1"),
        ({"num_unfrozen_layers": 0, "layer_decay": 0.9}, "trains no layer"),
        ({"adam_beta2": 1.0}, "Invalid beta parameter at index 1: 1.0"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "lr_scheduler_type cosine_with_min_lr, which",
        ),
        ({"batch_eval_metrics": True}, "batch_eval_metrics: got true, but ROC-AUC needs all"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last: got true, but an evaluation would"),
        ({"label_names": ["label"]}, "label_names: got ['label'], but"),
        ({"neftune_noise_alpha": 5}, "layer_freeze does not train the word embeddings"),
        ({"method": "prompt_tuning", "neftune_noise_alpha": 5}, "does not train the word"),
        ({"unfreeze_every": 1, "optim": "adalomo"}, "leaves no gradients to work on"),
        ({"method": "lora", "activation_cache": "on"}, "lora has no frozen layers"),
        ({"hub_token": "hf_secret"}, "hub_token: got a token"),
        ({"push_to_hub": True}, "push_to_hub: got no hub_model_id"),
        ({"max_length": 3}, "max_length: got 3"),
        ({"lerning_rate": 1}, "Did you mean 'learning_rate'?"),
        ({"r": 4}, "r: got an option of vera, lora, dora and oft; remove it"),
    ],
)
def test_invalid_options_are_rejected_before_anything_is_written(
    options: dict[str, Any], message: str, train_tiny: Callable[..., Run], tmp_path: Path
) -> None:
    method = options.pop("method", "layer_freeze")
    with pytest.raises(UserError) as error:
        if method in METHODS:
            train_tiny(method, **options)
        else:
            train_classifier(TrainConfig(method=method))
    assert len(error.value.faults) == 1
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_all_faults_are_reported_together(train_tiny: Callable[..., Run]) -> None:
    with pytest.raises(UserError) as error:
        train_tiny(pooling="max", sam_rho=-1.0, dropout=2.0, seed=-1, threshold="2")
    names = [fault.partition(":")[0].removeprefix("--") for fault in error.value.faults]
    assert sorted(names) == ["dropout", "pooling", "sam_rho", "seed", "threshold"]


def test_an_existing_run_is_not_overwritten(
    train_tiny: Callable[..., Run], trained_run: Path
) -> None:
    before = (trained_run / "run.json").read_bytes()
    with pytest.raises(UserError, match="already holds a Run"):
        train_tiny(output_dir=trained_run)
    assert (trained_run / "run.json").read_bytes() == before


def test_the_command_reports_invalid_options_in_one_line(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    flags = ["--model", tiny_bert, *data_flags, "--output_dir", str(tmp_path / "out")]
    message = fails(main, *flags, "--pooling", "max")
    assert message.startswith("peft-mrpc: --pooling: got 'max'")
    assert len(message.splitlines()) == 1
    assert "split" in fails(main, *flags, "--split", "tset")


def test_a_hub_name_without_a_network_is_reported_with_alternatives(
    data_flags: list[str], tmp_path: Path
) -> None:
    # Port 9 refuses connections.
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = run_command("train", *data_flags, env=env)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("peft-mrpc: --model: got 'bert-base-uncased'")
    assert "builtin:minilm, builtin:smollm2 or a local directory" in line


def test_an_unlabelled_split_is_predicted_without_metrics(
    train_tiny: Callable[..., Run], pair_files: dict[str, str]
) -> None:
    data = DataConfig(train_file=pair_files["train"], test_file=pair_files["unlabelled"])
    run = train_tiny(data=data)
    assert run.metrics == {} and len(run.predictions("test").idx) == len(ROWS)


def test_swapped_examples_come_in_both_orders(build_tiny: Callable[..., Any]) -> None:
    tiny = build_tiny(swap_sentences="true")
    dataset = tiny.trainer.train_dataset
    assert len(dataset) == len(tiny.data.splits["train"])
    seen = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        text = tiny.classifier.tokenizer.decode(dataset[0]["input_ids"])
        seen.add((text, dataset[0]["labels"]))
    first, second, _ = ROWS[0]
    label = tiny.data.splits["train"][0].label
    assert seen == {
        (f"[CLS] {first} [SEP] {second} [SEP]", label),
        (f"[CLS] {second} [SEP] {first} [SEP]", label),
    }
    assert isinstance(build_tiny(swap_sentences="false").trainer.train_dataset, Dataset)


def test_every_epoch_draws_the_order_of_the_sentences_again(
    build_tiny: Callable[..., Any],
) -> None:
    trainer = build_tiny(activation_cache="off", num_train_epochs=8).trainer
    collate, epochs = trainer.data_collator, [set[tuple[int, ...]]() for _ in range(8)]
    dataset = trainer.train_dataset

    def watch(batch: list[dict[str, list[int]]]) -> object:
        epochs[int(dataset.epoch)] |= {tuple(row["input_ids"]) for row in batch}
        return collate(batch)

    trainer.data_collator = watch
    trainer.train()
    assert all(epochs)
    assert len({frozenset(texts) for texts in epochs}) > 1


def test_one_target_module_is_a_name_and_not_a_pattern(train_tiny: Callable[..., Run]) -> None:
    names = train_tiny("lora", target_modules="query").record["trainable"]["parameters"]
    assert any("query.lora_A" in name for name in names)
    assert not any("value.lora_A" in name for name in names)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_leaves_nothing_half_written(
    number: signal.Signals, tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "peft_mrpc.train", "--model", tiny_bert, *data_flags]
        + ["--output_dir", str(tmp_path / "run"), "--num_train_epochs", "100000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell that runs this suite in the background has its children ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    text = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert "peft-mrpc: interrupted. Nothing was written." in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threshold", ["0.5", "auto"])
def test_a_diverged_training_leaves_nothing(
    threshold: str, train_tiny: Callable[..., Run], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="scores are not finite"):
        train_tiny(learning_rate=1e30, threshold=threshold)
    assert list(tmp_path.iterdir()) == []


def test_disable_tqdm_hides_all_progress_bars(
    tiny_bert: str,
    data_flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "peft_mrpc")  # as the command line sets it
    flags = ["--model", tiny_bert, *data_flags, "--num_unfrozen_layers", "1"]
    flags += ["--num_train_epochs", "3", "--activation_cache", "on", "--disable_tqdm"]
    main([*flags, "true", "--output_dir", str(tmp_path / "silent")])
    assert "%|" not in capsys.readouterr().err
    main([*flags, "false", "--output_dir", str(tmp_path / "shown")])
    text = capsys.readouterr().err
    assert "scoring: 100%|" in text


def test_dry_run_prints_the_plan_and_writes_nothing(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["--model", tiny_bert, *data_flags, "--output_dir", str(out), "--dry_run"])
    text = capsys.readouterr().out
    assert (
        "train 18" in text and "layer_freeze" in text and "nothing was trained or written" in text
    )
    assert not out.exists()


def test_a_resumed_training_equals_an_uninterrupted_one(train_tiny: Callable[..., Run]) -> None:
    options = {"num_train_epochs": 2, "save_strategy": "epoch", "per_device_train_batch_size": 6}
    whole = train_tiny(name="whole", **options)
    checkpoint = str(whole.path / "checkpoints" / "checkpoint-3")
    rest = train_tiny(name="rest", resume_from_checkpoint=checkpoint, **options)
    difference = np.subtract(
        *(run.predictions("validation").probabilities for run in (whole, rest))
    )
    assert np.abs(difference).max() < 1e-5


@pytest.mark.slow
@requires_mrpc
def test_minilm_learns_mrpc_beyond_its_majority(tmp_path: Path) -> None:
    from conftest import MRPC

    main(
        ["--model", "builtin:minilm", "--dataset", str(MRPC), "--max_train_samples", "600"]
        + ["--method", "full", "--num_train_epochs", "3", "--output_dir", str(tmp_path / "run")]
    )
    values = load_run(tmp_path / "run").metrics["validation"]
    assert values["roc_auc"] > 0.65
    assert load_classifier(tmp_path / "run").labels == ["not_equivalent", "equivalent"]


@pytest.mark.parametrize("optimizer", ["adamw_bnb_8bit", "paged_adamw_8bit"])
def test_optimizer_states_of_eight_bits_train_about_as_well(
    optimizer: str, train_tiny: Callable[..., Run]
) -> None:
    losses = []
    for name in (optimizer, "adamw_torch"):
        run = train_tiny(name=name, optim=name, learning_rate=1e-3, logging_steps=1)
        losses.append([row["loss"] for row in run.record["log_history"] if "loss" in row])
    assert np.ptp(losses[0]) > 1e-3
    assert np.abs(np.subtract(*losses)).max() < 0.02
