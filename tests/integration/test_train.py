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
from tiny_models import FLAGS
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from peft_mrpc.api import load_classifier
from peft_mrpc.data.loading import load_data
from peft_mrpc.errors import UserError
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.models.architecture import trainable_names
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.runs.run import load_run
from peft_mrpc.train import main
from peft_mrpc.training.build_model import build_classifier, fit_rates
from peft_mrpc.training.build_trainer import build_trainer, is_symmetric
from peft_mrpc.training.request import _settle, parse_request

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
    own = TRAINED[method]
    if own is None:
        return None
    # BERT's pooler stands after the layers: layer_freeze trains it, bitfit its bias, LoRA takes it
    # for one projection more; our head does without.
    pooler = {"layer_freeze": POOLER, "bitfit": H, "lora": 4 * (H + H), "dora": 4 * (H + H) + H}
    return own + (pooler.get(method, 0) if pooling == "native" else 0) + HEADS[pooling]


def prepare(
    method: str, tiny_bert: str, data_flags: list[str], tmp_path: Path, pooling: str
) -> Any:
    from transformers import set_seed

    from peft_mrpc.data.loading import load_data

    request = parse_request(
        ["--method", method, "--model", tiny_bert, *FLAGS[method], *data_flags]
        + [
            "--pooling",
            pooling,
            "--max_steps",
            "2",
            "--per_device_train_batch_size",
            "4",
            "--disable_tqdm",
            "true",
        ]
    )
    set_seed(request.arguments.seed)
    data = load_data(request.data)
    classifier = build_classifier(request, resolve_model(tiny_bert), data)
    trainer, _ = build_trainer(request, data, classifier, str(tmp_path))
    return trainer


def test_the_contract_covers_every_method() -> None:
    assert set(FLAGS) == set(TRAINED) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pooling", HEADS)
def test_two_steps_change_what_trains_and_nothing_else(
    method: str, pooling: str, tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    trainer = prepare(method, tiny_bert, data_flags, tmp_path, pooling)
    model = trainer.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = set(trainable_names(model))
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    expected = expected_count(method, pooling)
    assert count == (expected if expected is not None else sum(p.numel() for p in before.values()))
    trainer.train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed <= names
    # A key's bias moves no attention weight (softmax does not see a shift), rows of the embedding
    # table that no pair uses stay as well; LoRA's A and VeRA's d wait for what starts at zero.
    waiting = ("key.bias", "lora_A", "vera_lambda_d")
    still = {name for name in names - changed if not any(part in name for part in waiting)}
    assert not still


def test_frozen_layers_run_in_eval_mode_while_the_others_drop_out(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    trainer = prepare("layer_freeze", tiny_bert, data_flags, tmp_path, "native")
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
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: str, data_flags: list[str]
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("methods")
    for method in METHODS:
        main(
            ["--method", method, "--model", tiny_bert, *FLAGS[method], *data_flags]
            + ["--output_dir", str(folder / method), "--num_train_epochs", "2"]
            + ["--pooling", "native"]
        )
    return {method: folder / method for method in METHODS}


def test_every_saved_run_gives_equal_probabilities_in_a_new_process(
    runs: dict[str, Path], pair_files: dict[str, str]
) -> None:
    script = (
        "import sys, json; from peft_mrpc.api import load_classifier;"
        "from peft_mrpc.data.loading import load_data; from peft_mrpc.config import DataConfig;"
        "pairs = load_data(DataConfig(validation_file=sys.argv[1])).splits['validation'];"
        "probabilities = [load_classifier(p).predict_proba(pairs).tolist() for p in sys.argv[2:]];"
        "print(json.dumps(probabilities))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, pair_files["validation"], *map(str, runs.values())],
        capture_output=True,
        text=True,
        check=True,
    )
    for path, reloaded in zip(runs.values(), json.loads(done.stdout), strict=True):
        saved = load_run(path).predictions("validation").probabilities
        assert abs(np.array(reloaded) - saved).max() < 1e-6, path


def test_model_and_adapter_load_without_this_toolkit(
    runs: dict[str, Path], tiny_bert: str, pair_files: dict[str, str]
) -> None:

    for method, path in runs.items():
        folder = path / ("adapter" if METHODS[method].is_peft else "model")
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
        saved = load_run(path).predictions("validation").probabilities[0]
        assert torch.allclose(probability.double(), torch.tensor(saved), rtol=0, atol=1e-5), method


def test_the_record_says_what_trained_on_what(runs: dict[str, Path]) -> None:
    record = load_run(runs["layer_freeze"]).record
    assert record["trainable"]["trained"] == expected_count("layer_freeze", "native")
    assert {name.split(".")[1] for name in record["trainable"]["parameters"]} <= {
        "encoder",
        "pooler",
        "weight",
        "bias",
    }
    assert not any("layer.0" in name for name in record["trainable"]["parameters"])
    assert record["data"]["splits"]["train"]["num_examples"] == 2 * len(ROWS)
    assert len(record["data"]["splits"]["validation"]["fingerprint"]) == 64
    assert record["versions"]["torch"] == torch.__version__
    assert record["seed"] == 42 and record["config"]["learning_rate"] == 4e-4
    assert record["peak_memory"]["resident_bytes"] > 1e8
    for name in ("confusion_matrix.png", "roc_curve.png"):
        assert (runs["layer_freeze"] / "plots" / name).stat().st_size > 5000


def test_what_mixed_precision_trained_scores_as_it_is_reloaded(
    tiny_bert: str, data_flags: list[str], pair_files: dict[str, str], tmp_path: Path
) -> None:
    from peft_mrpc.config import DataConfig
    from peft_mrpc.data.loading import load_data

    flags = ["--bf16", "--output_dir", str(tmp_path / "run")]
    main(["--model", tiny_bert, *data_flags, *flags])
    saved = load_run(tmp_path / "run").predictions("validation").probabilities
    pairs = load_data(DataConfig(validation_file=pair_files["validation"])).splits["validation"]
    again = load_classifier(str(tmp_path / "run")).predict_proba(pairs, 32)
    assert np.abs(again - saved).max() < 1e-6


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--bf16"], "eager"),
        ([], "sdpa"),
        (["--bf16", "--attention", "sdpa"], "sdpa"),
        (["--attention", "eager"], "eager"),
    ],
)
def test_attention_is_plain_where_a_cpu_trains_faster_so_or_as_asked_and_as_it_was_afterwards(
    flags: list[str], expected: str, tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--use_cpu", "--max_steps", "1", "--method", "lora", *flags]
    request = parse_request(["--model", tiny_bert, *data_flags, *flags])
    data = load_data(request.data)
    classifier = build_classifier(request, resolve_model(tiny_bert), data)
    encoder = classifier.model.base_model.model.encoder
    before = encoder.config._attn_implementation
    trainer, _ = build_trainer(request, data, classifier, str(tmp_path))
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(encoder.config._attn_implementation)

    trainer.add_callback(Watch())
    trainer.train()
    assert before == encoder.config._attn_implementation == "sdpa"
    assert seen == [expected]


@pytest.mark.parametrize(
    ("asked", "said"), [("spda", "not supported"), ("flash_attention_2", "package")]
)
def test_an_attention_that_cannot_be_is_refused(
    asked: str, said: str, tiny_bert: str, data_flags: list[str], fails: Callable[..., str]
) -> None:
    message = fails(main, "--model", tiny_bert, *data_flags, "--attention", asked, "--dry_run")
    assert f"attention: got '{asked}', which the model does not support: " in message
    assert said in message


def test_a_split_of_training_pairs_is_warned_of(
    tiny_bert: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(write_csv(tmp_path / "all.csv", ROWS, ("sentence1", "sentence2", "label")))
    flags = ["--model", tiny_bert, "--train_file", path, "--validation_file", path, "--dry_run"]
    main([*flags, "--max_eval_samples", "4"])
    assert "validation: 4 of its 4 pairs are training pairs too" in caplog.text
    caplog.clear()
    main([*flags, "--split", "train"])  # whose figures nobody takes for those of others
    assert "training pairs too" not in caplog.text


def test_a_label_that_no_training_pair_has_is_warned_of(
    tiny_bert: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("a cat", "a dog", "1"), ("a cow", "a cow", "1"), ("a", "b", "1")]
    path = write_csv(tmp_path / "ones.csv", rows, ("sentence1", "sentence2", "label"))
    files = ["--train_file", str(path), "--validation_file", str(path)]
    main(["--model", tiny_bert, *files, "--class_names", "no,yes", "--dry_run"])
    assert "no training pair is no, which is never learned" in caplog.text


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("config", "--config: got ''; expected a readable YAML file"),
        ("output_dir", "--output_dir: got '.'"),
        ("train_file", "got a directory"),
    ],
)
def test_an_empty_value_is_not_taken_for_none(
    flag: str, said: str, tiny_bert: str, fails: Callable[..., str]
) -> None:
    # What a shell makes of a variable that is not set.
    assert said in fails(main, "--model", tiny_bert, "--dry_run", f"--{flag}", "")


def test_bf16_on_a_cpu_without_units_for_it_is_warned_of(
    tiny_bert: str,
    data_flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flags = ["--model", tiny_bert, *data_flags, "--dry_run", "--bf16"]
    for units in ("AVX512-BF16", None):
        monkeypatch.setattr("peft_mrpc.precision.cpu_bf16_units", lambda units=units: units)
        main(flags)
        assert caplog.text.count("fp32 is faster") == (units is None)


def test_a_seed_fixes_the_run_and_another_changes_it(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    probabilities = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        main(
            ["--method", "lora", "--model", tiny_bert, *data_flags, "--seed", str(seed)]
            + ["--output_dir", str(tmp_path / name), "--num_train_epochs", "1"]
        )
        probabilities[name] = load_run(tmp_path / name).predictions("validation").probabilities
    assert (probabilities["a"] == probabilities["b"]).all()
    assert (probabilities["a"] != probabilities["c"]).any()


def test_virtual_tokens_count_against_the_positions(
    tiny_bert: str, data_flags: list[str], fails: Callable[..., str], tmp_path: Path
) -> None:
    flags = ["--method", "prompt_tuning", "--model", tiny_bert, *data_flags]
    said = fails(main, *flags, "--num_virtual_tokens", "60")
    assert "--num_virtual_tokens: got 60; the model has 64 positions" in said
    # As long a pair as the positions allow, cut to fit, and counted.
    request = parse_request([*flags, "--num_virtual_tokens", "50"])
    from peft_mrpc.data.loading import load_data

    data = load_data(request.data)
    classifier = build_classifier(request, resolve_model(tiny_bert), data)
    assert classifier.max_length == 14
    features, num_cut = classifier.encode(data.splits["train"])
    assert max(len(feature["input_ids"]) for feature in features) == 14
    assert num_cut == sum(len(f"{a} {b}".split()) + 3 > 14 for a, b, _ in ROWS * 2) > 0
    assert classifier.predict_proba(data.splits["validation"], 4).shape == (9, 2)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "no/such/dir"], "--model: got 'no/such/dir', which is no directory"),
        (["--model", "builtin:minlm"], "Did you mean 'builtin:minilm'?"),
        (["--model", "{empty}"], "holds no config.json"),
        (["--num_unfrozen_layers", "9"], "bert here has 2 layers, expected 0 to 2"),
        (["--split", "tset"], "--split: got 'tset'"),
        (["--max_train_samples", "0"], "--max_train_samples: got 0; expected at least 1"),
        (
            ["--method", "lora", "--target_modules", "nothing"],
            "--target_modules: got 'nothing'; expected a module of this model.",
        ),
        (["--output_dir", "{run}"], "already holds a Run"),
        (["--train_file", "gone.csv"], "gone.csv: no such file."),
        (["--bf16", "--fp16"], "train: "),
        (["--learning_rate", "nan"], "--learning_rate: got nan; expected a number above 0"),
        (["--num_train_epochs", "-1"], "--num_train_epochs: got -1.0; expected a number above 0"),
        (["--per_device_eval_batch_size", "0"], "got 0; expected at least 1"),
        (["--seed", "-1"], "--seed: got -1; expected 0 to 4294967295"),
        (["--report_to", "nonsense"], "--report_to: nonsense is not supported"),
        (["--resume_from_checkpoint", "gone"], "holds no trainer_state.json"),
        (["--method", "prompt_tuning", "--num_virtual_tokens", "0"], "got 0; expected at least 1"),
        (
            ["--method", "prompt_tuning", "--prompt_tuning_init", "x"],
            "SAMPLE_VOCAB or RANDOM",
        ),
        (["--method", "lora", "--bias", "nonsense"], "; expected none, all or lora_only."),
        (["--pooling", "max"], "--pooling: got 'max'"),
        (["--dropout", "1"], "--dropout: got 1.0; expected 0 or more and below 1"),
        (["--num_unfrozen_layers", "0", "--layer_decay", "0.9"], "trains nothing in a layer"),
        (["--neftune_noise_alpha", "-1"], "--neftune_noise_alpha: got -1.0; expected 0 or more"),
        (["--save_strategy", "steps", "--save_steps", "0"], "--save_steps: got 0; expected a"),
        (
            ["--load_best_model_at_end", "--metric_for_best_model", "accuracy"]
            + ["--greater_is_better", "false"],
            "--greater_is_better: got false for accuracy, of which the worst would be kept",
        ),
        (["--quantization", "nf4"], "--quantization: got nf4, but layer_freeze trains"),
        (["--method", "prefix_tuning", "--gradient_checkpointing"], "keys and values"),
        (["--method", "dora", "--use_dora", "false"], "--use_dora: got an option of lora"),
        (["--batch_eval_metrics"], "--batch_eval_metrics: got true, but ROC-AUC is of all rows"),
        (["--eval_do_concat_batches", "false"], "got false, but metrics are of all rows together"),
        (["--label_names", "label"], "--label_names: got ['label'], but a pair's label is always"),
        (["--eval_accumulation_steps", "0"], "--eval_accumulation_steps: got 0; expected at least"),
        (["--use_liger_kernel"], "--use_liger_kernel: got true, but it is not installed. Next:"),
        (["--torch_compile_backend", "inductr"], "got 'inductr'; expected one of"),
        (["--torch_compile_mode", "fast"], "--torch_compile_mode: got 'fast'; expected one of"),
        (["--fsdp", "full_shard"], "--fsdp: got one process; start several by"),
        (["--eval_on_start"], "--eval_on_start: got --eval_strategy no; expected epoch or steps"),
        (
            ["--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{{"foo": 1}}'],
            "--gradient_checkpointing_kwargs: got 'foo'; expected one of",
        ),
        (["--neftune_noise_alpha", "5"], "layer_freeze leaves the word embeddings as they are"),
        (["--accelerator_config", "gone.json"], "No such file or directory: 'gone.json'"),
        (
            ["--load_best_model_at_end", "--metric_for_best_model", "f1", "--prediction_loss_only"],
            "--prediction_loss_only: got true, but f1 is looked for at every evaluation;",
        ),
        (
            ["--save_strategy", "best", "--eval_strategy", "epoch"],
            "--save_strategy: got best, but no --metric_for_best_model; expected one of loss",
        ),
    ],
)
def test_bad_input_ends_in_one_line_before_anything_is_written(
    flags: list[str],
    said: str,
    tiny_bert: str,
    data_flags: list[str],
    trained_run: Path,
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    (tmp_path / "empty").mkdir()
    before = (trained_run / "run.json").read_bytes()
    flags = [flag.format(empty=tmp_path / "empty", run=trained_run) for flag in flags]
    out = [] if "--output_dir" in flags else ["--output_dir", str(tmp_path / "out")]
    message = fails(main, "--model", tiny_bert, *data_flags, *out, *flags)
    assert said in message
    assert len(message.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]
    assert (trained_run / "run.json").read_bytes() == before


def test_a_hub_name_without_a_network_says_so_and_what_works(
    data_flags: list[str], tmp_path: Path
) -> None:
    # Port 9 of this machine: refused at once, as a name that does not resolve would be.
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = run_command("train", *data_flags, env=env)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("peft-mrpc: --model: got 'bert-base-uncased'; the Hub cannot be reached")
    assert "builtin:minilm, builtin:smollm2 or a local directory" in line
    done = run_command("train", "--model", "builtin:minilm", env={**env, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("peft-mrpc: --dataset: got 'mrpc', which could not be loaded")


def test_an_unlabelled_split_is_predicted_and_said_to_have_no_metrics(
    tiny_bert: str,
    pair_files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = ["--train_file", pair_files["train"], "--test_file", pair_files["unlabelled"]]
    main(["--model", tiny_bert, *files, "--output_dir", str(tmp_path / "run")])
    assert "test: has no labels, so there are no metrics" in capsys.readouterr().out
    run = load_run(tmp_path / "run")
    assert run.metrics == {} and len(run.predictions("test").idx) == len(ROWS)


def test_the_rates_of_a_nested_configuration_are_its_texts() -> None:
    from transformers import CLIPConfig, CLIPTextConfig, ResNetConfig

    request = parse_request(["--method", "full"])
    fit_rates(request, CLIPConfig(text_config=CLIPTextConfig(hidden_size=768).to_dict()))
    assert request.arguments.learning_rate == pytest.approx(1.5e-4 / 2)
    with pytest.raises(UserError, match="--model: a resnet says no hidden_size"):
        fit_rates(request, ResNetConfig())


def test_swapped_pairs_come_in_both_orders_and_nothing_else_changes(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    request = parse_request(["--model", tiny_bert, *data_flags])
    data = load_data(request.data)
    classifier = build_classifier(request, resolve_model(tiny_bert), data)
    trainer, _ = build_trainer(request, data, classifier, str(tmp_path))
    rows = trainer.train_dataset
    assert len(rows) == len(data.splits["train"])
    as_text = classifier.tokenizer.decode
    seen = set()
    for epoch in range(20):
        rows.epoch.fill_(epoch)
        seen.add((as_text(rows[0]["input_ids"]), rows[0]["labels"]))
    first, second, _ = ROWS[0]
    label = data.splits["train"][0].label
    assert seen == {
        (f"[CLS] {first} [SEP] {second} [SEP]", label),
        (f"[CLS] {second} [SEP] {first} [SEP]", label),
    }


def test_every_epoch_draws_its_orders_anew(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--model", tiny_bert, *data_flags, "--activation_cache", "off"]
    request = parse_request([*flags, "--num_train_epochs", "8", "--disable_tqdm", "true"])
    data = load_data(request.data)
    classifier = build_classifier(request, resolve_model(tiny_bert), data)
    trainer, _ = build_trainer(request, data, classifier, str(tmp_path))
    collate, epochs = trainer.data_collator, [set[tuple[int, ...]]() for _ in range(8)]
    rows: Any = trainer.train_dataset

    def watch(batch: list[dict[str, list[int]]]) -> object:
        epochs[int(rows.epoch)] |= {tuple(row["input_ids"]) for row in batch}
        return collate(batch)

    trainer.data_collator = watch
    trainer.train()
    assert all(epochs)
    assert len({frozenset(texts) for texts in epochs}) > 1


def test_pairs_are_swapped_only_where_the_labels_say_that_order_does_not_matter(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    request = parse_request(["--model", tiny_bert, *data_flags, "--swap_sentences", "false"])
    data = load_data(request.data)
    classifier = build_classifier(request, resolve_model(tiny_bert), data)
    rows = build_trainer(request, data, classifier, str(tmp_path))[0].train_dataset
    assert isinstance(rows, Dataset)
    assert is_symmetric(["not_equivalent", "equivalent"])
    assert is_symmetric(["different", "same thing"])
    assert not is_symmetric(["no", "yes"])
    assert not is_symmetric(["not_entailment", "entailment"])
    assert not is_symmetric(["different", "similar", "same"])
    with pytest.raises(UserError, match="swap_sentences: got 'yes'; expected one of auto, false"):
        parse_request(["--model", tiny_bert, *data_flags, "--swap_sentences", "yes"])


def test_one_target_module_is_a_name_and_no_pattern(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--method", "lora", "--target_modules", "query", "--model", tiny_bert, *data_flags]
    main([*flags, "--output_dir", str(tmp_path / "run"), "--num_train_epochs", "1"])
    names = load_run(tmp_path / "run").record["trainable"]["parameters"]
    assert any("query.lora_A" in name for name in names)
    assert not any("value.lora_A" in name for name in names)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
    said = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert "peft-mrpc: interrupted. Nothing was written." in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chosen", [[], ["--threshold", "auto"]])
def test_a_training_that_diverged_leaves_nothing(
    chosen: list[str],
    tiny_bert: str,
    data_flags: list[str],
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    flags = ["--model", tiny_bert, *data_flags, "--output_dir", str(tmp_path / "run")]
    said = fails(main, *flags, "--learning_rate", "1e30", *chosen)
    assert said.splitlines()[-1].startswith("peft-mrpc: the model's scores are not finite")
    assert list(tmp_path.iterdir()) == []


def test_one_process_trains_on_one_gpu(
    tiny_bert: str, data_flags: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    request = parse_request(["--model", tiny_bert, *data_flags])
    request.arguments._n_gpu = 4  # as on a machine that has them
    with caplog.at_level("INFO", "peft_mrpc"):
        _settle("lora", request.config, request.arguments, {})
    assert request.arguments.n_gpu == 1 and "one of 4 GPUs trains" in caplog.text


def test_no_bar_is_drawn_where_none_is_wanted(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", tiny_bert, *data_flags, "--num_unfrozen_layers", "1"]
    flags += ["--num_train_epochs", "3", "--activation_cache", "on", "--disable_tqdm"]
    main([*flags, "true", "--output_dir", str(tmp_path / "silent")])
    assert "%|" not in capsys.readouterr().err
    main([*flags, "false", "--output_dir", str(tmp_path / "shown")])
    said = capsys.readouterr().err
    assert "scoring: 100%|" in said


def test_dry_run_says_what_would_train_and_writes_nothing(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["--model", tiny_bert, *data_flags, "--output_dir", str(out), "--dry_run"])
    said = capsys.readouterr().out
    assert "train 18" in said and "layer_freeze" in said and "nothing was written" in said
    assert not out.exists()


def test_interrupted_training_goes_on_from_its_checkpoint(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--model", tiny_bert, *data_flags, "--num_train_epochs", "2"]
    flags += ["--save_strategy", "epoch", "--per_device_train_batch_size", "6"]
    main([*flags, "--output_dir", str(tmp_path / "whole")])
    checkpoint = tmp_path / "whole" / "checkpoints" / "checkpoint-3"
    resumed = ["--output_dir", str(tmp_path / "rest"), "--resume_from_checkpoint", str(checkpoint)]
    main([*flags, *resumed])
    whole, rest = (
        load_run(tmp_path / name).predictions("validation").probabilities
        for name in ("whole", "rest")
    )
    assert abs(whole - rest).max() < 1e-5


def test_two_processes_train_and_write_one_run(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--model", tiny_bert, *data_flags, "--num_unfrozen_layers", "1"]
    done = run_command("train", *flags, "--output_dir", str(tmp_path / "run"), processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    run = load_run(tmp_path / "run")
    assert run.record["num_processes"] == 2
    assert list(run.predictions("validation").idx) == list(range(len(ROWS)))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@requires_mrpc
def test_minilm_learns_mrpc_beyond_its_majority(tmp_path: Path) -> None:
    from conftest import MRPC

    main(
        ["--model", "builtin:minilm", "--dataset", str(MRPC), "--max_train_samples", "600"]
        + ["--method", "full", "--num_train_epochs", "3", "--output_dir", str(tmp_path / "run")]
    )
    values = load_run(tmp_path / "run").metrics["validation"]
    assert values["roc_auc"] > 0.65
    assert load_classifier(str(tmp_path / "run")).labels == ["not_equivalent", "equivalent"]


@pytest.mark.parametrize("optimizer", ["adamw_bnb_8bit", "paged_adamw_8bit"])
def test_states_of_eight_bits_train_about_as_well(
    optimizer: str, tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    losses = []
    for name in (optimizer, "adamw_torch"):
        flags = ["--model", tiny_bert, *data_flags, "--optim", name, "--learning_rate", "1e-3"]
        main([*flags, "--logging_steps", "1", "--output_dir", str(tmp_path / name)])
        history = load_run(tmp_path / name).record["log_history"]
        losses.append([row["loss"] for row in history if "loss" in row])
    assert np.ptp(losses[0]) > 1e-3
    assert np.abs(np.subtract(*losses)).max() < 0.02
