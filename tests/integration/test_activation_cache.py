"""Training on cached activations equals training on the whole model."""

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROWS, WORDS, build_tokenizer, run_command, run_script, write_csv
from tiny_models import ARCHITECTURES, SIZES, poolings, write_tiny_model
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from transformers.models.bert.modeling_bert import BertEmbeddings

from peft_mrpc.cache import main as cache
from peft_mrpc.data.loading import load_data
from peft_mrpc.errors import UserError
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.train import main
from peft_mrpc.training.activation_cache.bypass import LeftOut
from peft_mrpc.training.activation_cache.cache import _HELD, Trunk
from peft_mrpc.training.activation_cache.disk import disk_refusal, kept_trunks
from peft_mrpc.training.activation_cache.fill import _is_common, fill_store, missing_rows
from peft_mrpc.training.activation_cache.fingerprint import trunk_depth
from peft_mrpc.training.activation_cache.plan import in_bytes, parse_bytes
from peft_mrpc.training.activation_cache.rows import (
    KEY,
    DiskWriter,
    KeyedRows,
    RowIndex,
    row_key,
    split_keys,
)
from peft_mrpc.training.activation_cache.store import STATES, TrunkStore, pad_states
from peft_mrpc.training.build_model import build_classifier
from peft_mrpc.training.build_trainer import build_trainer
from peft_mrpc.training.request import parse_request
from peft_mrpc.tune import main as tune

USED = "are frozen and run once for each of"


@pytest.fixture
def trunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Path:
    """This test's trunks, where it looks for them, and all that is said."""
    caplog.set_level("INFO", "peft_mrpc")
    monkeypatch.setenv("PEFT_MRPC_TRUNKS", str(tmp_path / "trunks"))
    return tmp_path / "trunks"


@pytest.fixture
def fit(tmp_path: Path, trunks: Path, data_flags: list[str]) -> Callable[..., Run]:
    """Train with flags into a directory of this name, with dropout."""

    def run(name: str, model: str, *flags: str) -> Run:
        main(
            ["--model", model, *data_flags, "--output_dir", str(tmp_path / name)]
            + (["--seed", "3"] if "--seeds" not in flags else [])
            + ["--num_train_epochs", "3", "--per_device_train_batch_size", "4"]
            + ["--logging_steps", "1", "--dropout", "0.1", "--learning_rate", "1e-3"]
            + ["--swap_sentences", "false", *flags]
        )
        return load_run(tmp_path / name)

    return run


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each batch that a model without its layers met had activations."""
    found: list[bool] = []
    take = LeftOut._take

    def listen(self: LeftOut, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        found.append(STATES in kwargs)
        return take(self, module, args, kwargs)

    monkeypatch.setattr(LeftOut, "_take", listen)
    return found


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.record["log_history"] if "loss" in row]


def drift(one: Run, other: Run) -> float:
    """How far losses and probabilities of two Runs lie apart."""
    assert len(losses(one)) == len(losses(other)) > 3
    probabilities = [run.predictions("validation").probabilities for run in (one, other)]
    return float(
        max(
            np.abs(np.subtract(losses(one), losses(other))).max(),
            np.abs(probabilities[0] - probabilities[1]).max(),
        )
    )


# Without dropout, as recipes are, attention is another.
@pytest.mark.parametrize(("number", "dropout"), [(0, "0.1"), (1, "0.1"), (1, "0")])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_training_is_the_same_training(
    architecture: str,
    number: int,
    dropout: str,
    models: dict[str, str],
    fit: Callable[..., Run],
    caplog: pytest.LogCaptureFixture,
    taken: list[bool],
) -> None:
    pooling = poolings(architecture)[number]
    flags = ["--method", "layer_freeze", "--num_unfrozen_layers", "1", "--pooling", pooling]
    flags += ["--dropout", dropout]
    plain = fit("plain", models[architecture], *flags, "--trunk_cache", "off")
    assert USED not in caplog.text
    cached = fit("cached", models[architecture], *flags, "--trunk_cache", "disk")
    assert USED in caplog.text and all(taken) and len(taken) > len(losses(plain))
    assert drift(plain, cached) < 2e-4
    assert np.std(losses(plain)) > 1e-3, "nothing was learned"


@pytest.mark.parametrize("pooling", ["native", "aligned"])
def test_a_tokenizer_that_gives_more_than_the_model_reads(
    pooling: str, models: dict[str, str], fit: Callable[..., Run], taken: list[bool], tmp_path: Path
) -> None:
    model = str(shutil.copytree(models["distilbert"], tmp_path / "distilbert"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.save_pretrained(model)
    flags = ["--method", "layer_freeze", "--num_unfrozen_layers", "1", "--pooling", pooling]
    plain = fit("plain", model, *flags, "--trunk_cache", "off")
    cached = fit("cached", model, *flags, "--trunk_cache", "disk")
    assert all(taken) and len(taken) > len(losses(plain))
    assert drift(plain, cached) < 2e-4


def test_real_weights_train_alike(
    fit: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--method", "layer_freeze", "--pooling", "aligned", "--learning_rate", "4e-4"]
    plain = fit("plain", "builtin:minilm", *flags, "--trunk_cache", "off")
    cached = fit("cached", "builtin:minilm", *flags, "--trunk_cache", "disk")
    assert "4 of 6 layers" in caplog.text
    assert drift(plain, cached) < 2e-4


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "linear_probe"],
        ["--method", "layer_freeze", "--unfreeze_every", "1", "--num_unfrozen_layers", "1"],
        ["--method", "layer_freeze", "--frozen_modules", "embeddings", "layer.0"],
        ["--method", "layer_freeze", "--num_unfrozen_layers", "1", "--swap_sentences", "true"],
        ["--method", "layer_freeze", "--num_unfrozen_layers", "1", "--eval_strategy", "epoch"]
        + ["--load_best_model_at_end", "true", "--metric_for_best_model", "loss"],
        ["--method", "layer_freeze", "--num_unfrozen_layers", "1"]
        + ["--gradient_checkpointing", "true"],
        ["--method", "layer_freeze", "--num_unfrozen_layers", "1"]
        + ["--gradient_accumulation_steps", "2", "--train_sampling_strategy", "batch_rebalance"],
        ["--method", "layer_freeze", "--num_unfrozen_layers", "1", "--layer_decay", "0.5"]
        + ["--gradient_accumulation_steps", "2", "--dataloader_num_workers", "2"],
    ],
    ids=lambda flags: flags[-2].strip("-"),
)
def test_every_way_of_freezing_is_cached_alike(
    flags: list[str],
    tiny_bert: str,
    fit: Callable[..., Run],
    caplog: pytest.LogCaptureFixture,
) -> None:
    flags = [*flags, "--pooling", "aligned"]
    plain = fit("plain", tiny_bert, *flags, "--trunk_cache", "off")
    cached = fit("cached", tiny_bert, *flags, "--trunk_cache", "disk")
    assert USED in caplog.text
    assert drift(plain, cached) < 2e-4


FREEZE = ["--method", "layer_freeze", "--num_unfrozen_layers", "1"]


def test_no_step_computes_embeddings_that_only_frozen_layers_would_read(
    tiny_bert: str, fit: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    compute = BertEmbeddings.forward

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(BertEmbeddings, "forward", count)
    counts = []
    for number, epochs in enumerate((3, 3, 6)):  # the first fills the cache
        calls.clear()
        fit(f"run-{number}", tiny_bert, *FREEZE, "--num_train_epochs", str(epochs))
        counts.append(len(calls))
    assert counts[1] == counts[2] < counts[0]


def test_embeddings_that_other_layers_read_are_computed(
    tmp_path: Path, fit: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    model = write_tiny_model("deberta-v2", tmp_path / "conv", conv_kernel_size=3)
    plain = fit("plain", model, *FREEZE, "--trunk_cache", "off")
    cached = fit("cached", model, *FREEZE, "--trunk_cache", "disk")
    assert USED in caplog.text
    assert drift(plain, cached) < 2e-4


def test_the_next_training_finds_all(
    tiny_bert: str, fit: Callable[..., Run], trunks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fit("first", tiny_bert, *FREEZE)
    # Of 18 training rows 9 are different.
    assert f"{USED} 9 pairs; 9 are new" in caplog.text
    files = {path: path.stat().st_mtime for path in trunks.glob("*/*.states")}
    assert len(files) == 1
    _HELD.clear()  # as in a new process
    again = fit("again", tiny_bert, *FREEZE)
    assert f"{USED} 9 pairs; all are in {trunks}" in caplog.text
    assert {path: path.stat().st_mtime for path in trunks.glob("*/*.states")} == files
    assert drift(first, again) == 0
    fit("fewer", tiny_bert, *FREEZE, "--max_train_samples", "6")
    assert caplog.text.count("all are in") == 2
    # What the activations depend on parts the trunks; what they do not, does not.
    fit("probe", tiny_bert, "--method", "linear_probe")
    fit("half", tiny_bert, *FREEZE, "--trunk_cache_dtype", "float16")
    fit("mixed", tiny_bert, *FREEZE, "--bf16", "true", "--use_cpu", "true")
    for dropout in ("0", "0.4"):
        fit(f"drops-{dropout}", tiny_bert, *FREEZE, "--dropout", dropout)
    assert len(list(trunks.iterdir())) == 4


def test_memory_keeps_nothing_on_disk_and_serves_the_next_seed(
    tiny_bert: str, fit: Callable[..., Run], trunks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = fit("memory", tiny_bert, *FREEZE, "--trunk_cache", "memory")
    assert not list(trunks.glob("*/*.states"))
    fit("next", tiny_bert, *FREEZE, "--trunk_cache", "memory", "--seed", "4")
    assert "all are in memory" in caplog.text
    assert drift(memory, fit("plain", tiny_bert, *FREEZE, "--trunk_cache", "off")) < 2e-4


def test_half_precision_takes_half_and_stays_near(
    tiny_bert: str, fit: Callable[..., Run], trunks: Path
) -> None:
    plain = fit("plain", tiny_bert, *FREEZE, "--trunk_cache", "off")
    sizes = []
    for dtype, near in (("float32", 2e-4), ("float16", 5e-3), ("bfloat16", 5e-2)):
        assert drift(plain, fit(dtype, tiny_bert, *FREEZE, "--trunk_cache_dtype", dtype)) < near
        sizes.append(max(path.stat().st_size for path in trunks.glob("*/*.states")))
        cache(["--clear"])
    assert sizes[0] == 2 * sizes[1] == 2 * sizes[2]


def test_what_stands_in_the_way_is_said_and_the_training_goes_on_without(
    tiny_bert: str,
    fit: Callable[..., Run],
    fails: Callable[..., str],
    data_flags: list[str],
    tmp_path: Path,
    trunks: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    small = ["--trunk_cache_limit", "1KB", "--trunk_cache_memory", "1KB"]
    fit("small", tiny_bert, *FREEZE, *small)
    assert "frozen layers run every time: it takes" in caplog.text
    assert "--trunk_cache_limit is 1 KB (`peft-mrpc cache` lists and clears)" in caplog.text
    fit("few", tiny_bert, *FREEZE, "--max_steps", "1")
    assert "training reads 4 pairs, fewer than the 9 to run" in caplog.text
    fit("fits memory", tiny_bert, *FREEZE, "--trunk_cache_limit", "1KB")
    assert "9 are new" in caplog.text and "in memory: it takes" in caplog.text
    assert not list(trunks.glob("*/*.states"))
    base = ["--model", tiny_bert, *data_flags, "--output_dir", str(tmp_path / "refused")]
    said = fails(main, *base, *FREEZE, *small, "--trunk_cache", "disk")
    assert "--trunk_cache: got 'disk', but it takes" in said
    unfrozen = ["--method", "layer_freeze", "--num_unfrozen_layers", "2", "--trunk_cache", "disk"]
    for more in ([], ["--dry_run"]):
        assert "no layer at the bottom is frozen" in fails(main, *base, *unfrozen, *more)
    off = [*FREEZE[1:], "--trunk_cache", "off"]
    for where, because in ((["lora"], "lora has no frozen layers"), (off, "is off")):
        said = fails(main, *base, "--method", *where, "--trunk_cache_dtype", "float16")
        assert "--trunk_cache_dtype: got float16, but" in said and because in said
    said = fails(main, *base, "--method", "lora", "--trunk_cache", "memory")
    assert "--trunk_cache: got 'memory', but lora has no frozen layers to run once" in said
    assert "--trunk_cache: got 'of'" in fails(main, *base, *FREEZE, "--trunk_cache", "of")
    said = fails(main, *base, *FREEZE, "--trunk_cache_limit", "much")
    assert said.endswith("--trunk_cache_limit: got 'much'; expected a size such as 2GB.")
    assert not (tmp_path / "refused").exists()


NO_GAIN = "training reads {} pairs, fewer than the 9 to run"


def test_every_seed_that_is_left_counts_where_a_fill_must_pay(
    tiny_bert: str, fit: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    one_step = [*FREEZE, "--max_steps", "1"]  # of 4 pairs; 9 are different
    fit("two", tiny_bert, *one_step, "--seeds", "1,2")
    assert NO_GAIN.format(8) in caplog.text and NO_GAIN.format(4) in caplog.text
    assert USED not in caplog.text
    fit("three", tiny_bert, *one_step, "--seeds", "1,2,3")
    assert caplog.text.count("9 pairs; 9 are new") == 1
    assert caplog.text.count("9 pairs; all are in") == 2


@pytest.mark.parametrize(
    ("space", "workers", "trials", "said"),
    [
        ("learning_rate: {low: 1e-4, high: 1e-2}", "1", 2, NO_GAIN.format(8)),
        ("learning_rate: {low: 1e-4, high: 1e-2}", "1", 3, ""),
        # Half of the trials after this one find what it keeps.
        ("num_unfrozen_layers: {choices: [0, 1]}", "1", 4, NO_GAIN.format(8)),
        ("num_unfrozen_layers: {choices: [0, 1]}", "1", 5, ""),
        # Or are another worker's.
        ("learning_rate: {low: 1e-4, high: 1e-2}", "2", 4, NO_GAIN.format(8)),
    ],
)
def test_the_trials_that_find_a_trunk_count_where_a_fill_must_pay(
    space: str,
    workers: str,
    trials: int,
    said: str,
    tiny_bert: str,
    data_flags: list[str],
    tmp_path: Path,
    trunks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("optuna")
    reasons: list[str] = []
    prepare = Trunk.prepare

    def listen(self: Trunk, *args: Any) -> str:
        reasons.append(prepare(self, *args))
        return reasons[-1]

    monkeypatch.setattr(Trunk, "prepare", listen)
    monkeypatch.setenv("PEFT_MRPC_WORKERS", workers)
    (tmp_path / "space.yaml").write_text(space)
    freeze = FREEZE[:2] if "layers" in space else FREEZE
    tune(
        ["--model", tiny_bert, *data_flags, *freeze, "--max_steps", "1"]
        + ["--search_space", str(tmp_path / "space.yaml"), "--num_trials", str(trials)]
        + ["--per_device_train_batch_size", "4", "--swap_sentences", "false"]
        + ["--selection_fraction", "0.3", "--output_dir", str(tmp_path / "search")]
    )
    assert len(reasons) == trials and reasons[0] == said


def test_a_cached_training_goes_on_from_its_checkpoint(
    tiny_bert: str, fit: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    flags = [*FREEZE, "--save_strategy", "epoch", "--trunk_cache", "disk"]
    whole = fit("whole", tiny_bert, *flags)
    checkpoints = sorted((whole.path / "checkpoints").iterdir(), key=lambda p: int(p.name[11:]))
    resumed = fit("resumed", tiny_bert, *flags, "--resume_from_checkpoint", str(checkpoints[0]))
    assert caplog.text.count(USED) == 2
    probabilities = [run.predictions("validation").probabilities for run in (whole, resumed)]
    assert np.abs(probabilities[0] - probabilities[1]).max() < 1e-5


def test_the_saved_model_is_the_whole_one(tiny_bert: str, fit: Callable[..., Run]) -> None:
    run = fit("run", tiny_bert, *FREEZE, "--pooling", "native", "--trunk_cache", "disk")
    model = AutoModelForSequenceClassification.from_pretrained(run.path / "model")
    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    batch = tokenizer("the cat sat on the mat", "on the mat the cat sat", return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**batch).logits.softmax(-1).numpy()[0]
    assert np.abs(found - run.predictions("validation").probabilities[0]).max() < 1e-5


def test_two_processes_share_the_work_and_train_as_one(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, trunks: Path
) -> None:
    rows = [
        (f"the {one}", f"a {other} {one}", ROWS[len(one + other) % 2][2])
        for one in WORDS[:10]
        for other in WORDS[:5]
    ]
    train = write_csv(tmp_path / "train.csv", rows, ("sentence1", "sentence2", "label"))
    flags = ["--model", tiny_bert, *data_flags, *FREEZE, "--train_file", str(train)]
    flags += ["--per_device_train_batch_size", "8", "--logging_steps", "1", "--dropout", "0"]
    flags += ["--num_train_epochs", "2", "--swap_sentences", "false"]
    runs = []
    for name, mode in (("plain", "off"), ("cached", "disk")):
        words = [*flags, "--output_dir", str(tmp_path / name), "--trunk_cache", mode]
        done = run_command("train", *words, processes=2)
        assert done.returncode == 0, done.stderr[-2000:]
        runs.append(load_run(tmp_path / name))
    assert drift(*runs) < 2e-4
    keys = [path.stat().st_size // 16 for path in trunks.glob("*/*.keys")]
    assert sorted(keys) == [18, 32], "each row by one of them, and both at work"
    done = run_command(
        *["train", *flags, "--output_dir", str(tmp_path / "m"), "--trunk_cache", "memory"],
        processes=2,
    )
    assert done.returncode != 0 and "several processes share it on disk alone" in done.stderr


# Each rank on a machine of its own: a directory, a cache and a place in it that no other shares.
MACHINE = """
import os, sys
from pathlib import Path
machine = Path(sys.argv[1]) / os.environ["RANK"]
machine.mkdir()
os.chdir(machine)
os.environ |= {"PEFT_MRPC_TRUNKS": str(machine / "trunks")}
os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
from peft_mrpc.cli.app import run_cli
from peft_mrpc.train import main
sys.exit(run_cli(main, sys.argv[2:]))
"""


@pytest.mark.parametrize("ends_with", ["the last", "the best"])
def test_machines_without_a_common_disk_train_as_one_process(
    ends_with: str, tiny_bert: str, data_flags: list[str], tmp_path: Path, trunks: Path
) -> None:
    rows = [
        (f"the {one}", f"a {other} {one}", ROWS[len(one + other) % 2][2])
        for one in WORDS[:8]
        for other in WORDS[:5]
    ]
    train = write_csv(tmp_path / "train.csv", rows, ("sentence1", "sentence2", "label"))
    flags = ["--model", tiny_bert, *data_flags, *FREEZE, "--train_file", str(train)]
    flags += ["--logging_steps", "1", "--dropout", "0", "--trunk_cache", "disk"]
    flags += ["--num_train_epochs", "2", "--swap_sentences", "false"]
    flags += ["--train_sampling_strategy", "random", "--bf16", "false"]
    flags += ["--per_device_eval_batch_size", "2"]  # each process scores some
    if ends_with == "the best":  # of two that are equal, the first
        flags += ["--load_best_model_at_end", "--eval_strategy", "epoch"]
        flags += ["--metric_for_best_model", "accuracy", "--selection_fraction", "0.2"]
    flags += ["--output_dir", "run"]
    alone = [*flags[:-1], str(tmp_path / "alone"), "--per_device_train_batch_size", "8"]
    main(alone)
    flags += ["--per_device_train_batch_size", "4"]
    done = run_script(MACHINE, tmp_path, str(tmp_path), *flags, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    run = load_run(tmp_path / "0" / "run")
    assert drift(load_run(tmp_path / "alone"), run) < 2e-4
    if ends_with == "the best":
        assert run.record["selection"]["best_step"] < run.record["selection"]["last_step"]
    for rank in "01":  # every machine has computed every row
        keys = [path.stat().st_size // 16 for path in tmp_path.glob(f"{rank}/trunks/*/*.keys")]
        assert keys == [40]
    assert not (tmp_path / "1" / "run").exists()


def test_depth_counts_only_what_nothing_trained_feeds(models: dict[str, str]) -> None:
    from tiny_models import tiny_config

    from peft_mrpc.methods.layer_freeze import LayerFreezeOptions
    from peft_mrpc.methods.registry import METHODS
    from peft_mrpc.models.loading import init_classifier

    def depth(architecture: str, **options: Any) -> int:
        model = init_classifier(tiny_config(architecture, 64), "mean")
        METHODS["layer_freeze"].freeze(model, LayerFreezeOptions(**options))
        return trunk_depth(model)

    assert depth("bert", num_unfrozen_layers=2) == 0
    assert depth("bert", num_unfrozen_layers=1) == 1
    assert depth("bert", num_unfrozen_layers=0) == 2
    assert depth("llama", num_unfrozen_layers=0) == 2
    assert depth("bert", num_unfrozen_layers=1, unfrozen_modules=["embeddings"]) == 0
    # Nothing in the first layer trains, but what feeds it does.
    relative = {"unfrozen_modules": ["rel_embeddings"]}
    assert depth("deberta-v2", num_unfrozen_layers=1) == 1
    assert depth("deberta-v2", num_unfrozen_layers=1, **relative) == 0
    # A layer above the first that trains ends the trunk, even if those above it are frozen.
    assert depth("bert", frozen_modules=["embeddings", "layer.1"]) == 0


@pytest.mark.parametrize("where", ["disk", "mapped", "memory"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_store_gives_back_what_it_took(where: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = None if where == "memory" else tmp_path / "store"
    store = TrunkStore(folder, 3, dtype, 0 if where == "mapped" else 1 << 20)
    rows = {row_key({"input_ids": [n] * n}): torch.randn(n, 3).to(dtype) for n in (1, 4)}
    rows[b"k" * 14 + bytes(2)] = torch.randn(2, 3).to(dtype)
    keys = np.array([*rows], KEY)
    for chosen in ([0, 1], [2]):
        with store.adding() as writer:
            for number in chosen:
                writer.add(*list(rows.items())[number])
        store.refresh()
        store.take(keys)
    stores = [store] if folder is None else [store, TrunkStore(folder, 3, dtype, 0)]
    stores[-1].take(keys)
    for one in [*stores, pickle.loads(pickle.dumps(store))]:
        for own, plain in zip(one.states(keys), rows.values(), strict=True):
            assert torch.equal(own, plain)
        asked = np.array([keys[2], row_key({"input_ids": [9]}), keys[0]], KEY)
        assert one.has(asked).tolist() == [True, False, True]
        assert one.states(asked) == []  # all or nothing
        assert missing_rows(one, asked[[1, 0, 1]]) == [0]  # each once


def test_an_index_finds_what_a_mapping_does() -> None:
    draw = np.random.default_rng(0)
    index, plain = RowIndex("first", "second"), dict[bytes, tuple[int, int]]()
    assert not index.has(np.array([b"k" * 16], KEY)).any()

    def draw_keys(size: int) -> Any:
        """Of few different bytes: keys come again, within a call as well, and some end in zeros."""
        few = draw.integers(0, 2, (size, 16), np.uint8)[:, [0] * 9 + [*range(7)]]
        return split_keys(few.tobytes())

    for size in (0, 1, 200, 50):
        keys = draw_keys(size)
        half = size // 2
        tables = [
            index.build_table(keys[part], first=np.arange(size)[part], second=size)
            for part in (slice(half), slice(half, None))
        ]
        index.add(tables)
        for number, key in enumerate(keys):
            plain.setdefault(key, (number, size))
        asked = draw_keys(300)
        assert index.has(asked).tolist() == [key in plain for key in asked]
        found = index.rows(asked)
        expected = [(key, *plain[key]) for key in asked if key in plain]
        assert found.tolist() == expected and len(index.keys) == len(plain)
    assert 0 < len(plain) < 128


def test_a_failure_while_rows_are_added_leaves_nothing(tmp_path: Path) -> None:
    store = TrunkStore(tmp_path / "store", 3, torch.float32, 0)
    with pytest.raises(KeyboardInterrupt), store.adding() as writer:
        writer.add(b"k" * 16, torch.zeros(2, 3))
        raise KeyboardInterrupt
    assert list((tmp_path / "store").iterdir()) == []


def test_rows_are_told_apart_by_all_that_the_model_reads() -> None:
    row = {"input_ids": [1, 2], "token_type_ids": [0, 1], "attention_mask": [1, 1]}
    assert row_key(row) == row_key({**row, "labels": 1})
    assert row_key(row) != row_key({**row, "token_type_ids": [0, 0]})
    assert row_key({"input_ids": [1, 2, 0]}) != row_key({"input_ids": [1, 2]})


def test_states_stand_where_the_tokens_do() -> None:
    rows = [torch.ones(2, 1), torch.full((3, 1), 2.0)]
    right = pad_states(rows, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert right.squeeze(-1).tolist() == [[1, 1, 0], [2, 2, 2]]
    left = pad_states(rows, torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert left.squeeze(-1).tolist() == [[0, 1, 1], [2, 2, 2]]


def test_the_cache_is_listed_and_cleared(
    tiny_bert: str,
    fit: Callable[..., Run],
    trunks: Path,
    fails: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache([])
    assert capsys.readouterr().out == f"0 KB in 0 trunks, {trunks}\n"
    fit("one", tiny_bert, *FREEZE)
    fit("two", tiny_bert, "--method", "linear_probe")
    sizes = [trunk.size for trunk in kept_trunks()]
    cache([])
    said = capsys.readouterr().out.splitlines()
    assert f"{tiny_bert}, 2 layers, torch.float32" in said[-3]
    assert f"{tiny_bert}, 1 layers" in said[-2]
    cache(["--keep", str(sizes[0])])
    assert f"removed {in_bytes(sizes[1])}, {in_bytes(sizes[0])} kept" in capsys.readouterr().out
    assert json.loads((kept_trunks()[0].folder / "about.json").read_text())["depth"] == 2
    (kept_trunks()[0].folder / "about.json").write_text("[]")
    cache(["--clear"])
    assert "unknown, ? layers" in capsys.readouterr().out
    assert kept_trunks() == []
    assert "--keep: got 'all'; expected a size such as 5GB." in fails(cache, "--keep", "all")
    assert "--clear as well" in fails(cache, "--keep", "1GB", "--clear")


def test_sizes_read_as_they_are_written() -> None:
    texts = {"2GB": 2 * 10**9, "1.5 mb": 1_500_000, "10": 10, "3K": 3000, "1T": 10**12}
    assert {text: parse_bytes(text) for text in texts} == texts
    assert [parse_bytes(text) for text in ("", "GB", "-1GB", "2 gigs", "nan")] == [None] * 5
    assert [in_bytes(n) for n in (0, 1234, 2_500_000, 10**12)] == [
        "0 KB",
        "1.23 KB",
        "2.5 MB",
        "1 TB",
    ]


PROBE = ["--method", "linear_probe", "--trunk_cache", "disk"]


@pytest.mark.parametrize("order", [("cls", "mean"), ("mean", "cls")])
def test_heads_that_read_other_tokens_do_not_share_a_trunk(
    order: tuple[str, str], tiny_bert: str, fit: Callable[..., Run]
) -> None:
    first, second = order
    fit("first", tiny_bert, *PROBE, "--pooling", first)
    cached = fit("cached", tiny_bert, *PROBE, "--pooling", second)
    _HELD.clear()
    plain = fit("plain", tiny_bert, *PROBE[:2], "--trunk_cache", "off", "--pooling", second)
    assert drift(plain, cached) < 2e-4


def _spoil_row(folder: Path) -> None:
    (states,) = folder.glob("*.states")
    content = bytearray(states.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    states.write_bytes(bytes(content))


def _cut_short(folder: Path) -> None:
    (states,) = folder.glob("*.states")
    states.write_bytes(states.read_bytes()[:-8])


def _lose_keys(folder: Path) -> None:
    next(folder.glob("*.keys")).unlink()


def _cut_lengths(folder: Path) -> None:
    lengths = next(folder.glob("*.lengths"))
    lengths.write_bytes(lengths.read_bytes()[:-3])


@pytest.mark.parametrize("resident", [0, 1 << 20])
def test_only_the_rows_that_are_asked_for_are_read(
    resident: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = split_keys(bytes(n for n in range(4) for _ in range(16)))
    for pair in ((0, 1), (2, 3)):
        with TrunkStore(tmp_path / "trunk", 2, torch.float32, resident).adding() as writer:
            for n in pair:
                writer.add(bytes([n]) * 16, torch.full((3, 2), float(n)))
        if pair == (0, 1):
            (spoilt,) = (tmp_path / "trunk").glob("*.states")
    first = TrunkStore(tmp_path / "trunk", 2, torch.float32, resident)
    (gone,) = {*(tmp_path / "trunk").glob("*.states")} - {spoilt}
    assert first.resident == 0
    gone.unlink()
    spoilt.write_bytes(spoilt.read_bytes()[:24] + bytes(24))  # the second of its two rows
    first.take(keys[:1])
    assert torch.equal(first.states(keys[:1])[0], torch.zeros(3, 2)) and caplog.text == ""
    assert first.resident == (24 if resident else 0) and not first.has(keys[1:]).any()
    second = TrunkStore(tmp_path / "trunk", 2, torch.float32, resident)
    second.take(keys)
    assert not second.has(keys).any()
    assert caplog.text.count("damaged and not used") == 2


def test_a_row_that_one_file_has_lost_is_found_in_another(tmp_path: Path) -> None:
    key, folder = b"k" * 16, tmp_path / "trunk"
    for name in ("a", "b"):  # as after a damage: the first in order is the damaged one
        with TrunkStore(folder, 2, torch.float32, 0).adding() as writer:
            writer.add(key, torch.ones(3, 2))
        for path in [*folder.glob("????????????????????????????????.*")]:
            path.rename(folder / f"{name}{path.suffix}")
        if name == "a":
            (folder / "a.lengths").rename(folder / "a.hidden")
    (folder / "a.hidden").rename(folder / "a.lengths")
    (folder / "a.states").write_bytes(bytes(24))
    store = TrunkStore(folder, 2, torch.float32, 0)
    store.take(split_keys(key))
    assert torch.equal(store.states(split_keys(key))[0], torch.ones(3, 2))


def test_rows_are_found_in_the_files_that_are_left(tmp_path: Path) -> None:
    """Also those that come after a file whose damage has had all of them listed anew."""
    folder, keys = tmp_path / "trunk", [bytes([65 + n]) * 16 for n in range(5)]
    for n, key in enumerate(keys):
        with TrunkStore(folder, 2, torch.float32, 0).adding() as writer:
            writer.add(key, torch.full((n + 1, 2), float(n)))
        for path in folder.glob("????????????????????????????????.*"):
            path.rename(folder / f"{n}{path.suffix}")
    (folder / "1.states").write_bytes(bytes(16))
    store, asked = TrunkStore(folder, 2, torch.float32, 1 << 20), np.array(keys, KEY)
    store.take(asked[:2])  # meets the damage; the others are taken by the new list
    store.take(asked)
    assert store.has(asked).tolist() == [True, False, True, True, True]
    with store.adding() as writer:
        writer.add(keys[1], torch.full((2, 2), 1.0))
    store.refresh()
    store.take(asked)
    for n, states in enumerate(store.states(asked)):
        assert torch.equal(states, torch.full((n + 1, 2), float(n)))
    assert len(store.states(asked)) == 5


def test_files_are_read_on_where_new_rows_are_kept_in_memory(tmp_path: Path) -> None:
    """As where the disk is full: one damaged file is no loss of the others."""
    for byte in b"abc":
        with TrunkStore(tmp_path / "trunk", 2, torch.float32, 0).adding() as writer:
            writer.add(bytes([byte]) * 16, torch.full((byte, 2), float(byte)))
    store = TrunkStore(tmp_path / "trunk", 2, torch.float32, 1 << 20)
    next(p for p in store.folder.glob("*.states") if p.stat().st_size == 98 * 8).unlink()
    store.folder = None
    keys = split_keys(b"a" * 16 + b"b" * 16 + b"c" * 16)
    store.take(keys[1:2])
    store.take(keys)
    assert store.has(keys).tolist() == [True, False, True]


def test_an_interrupt_leaves_no_memory_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = split_keys(b"a" * 16 + b"b" * 16)
    for key in (b"a" * 16, b"b" * 16):
        with TrunkStore(tmp_path / "trunk", 2, torch.float32, 0).adding() as writer:
            writer.add(key, torch.ones(3, 2))
    store, calls = TrunkStore(tmp_path / "trunk", 2, torch.float32, 1 << 20), []
    read = store._read_rows

    def read_once(*args: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(store, "_read_rows", read_once)
    with pytest.raises(KeyboardInterrupt):
        store.take(keys)
    assert store.has(keys).sum() == 1 and store.resident == 24
    store.take(keys)
    assert store.has(keys).all() and store.resident == 48 and len(store._blocks) == 2


def test_a_training_on_other_pairs_reads_no_file_but_its_own(
    tiny_bert: str, fit: Callable[..., Run], tmp_path: Path, trunks: Path, caplog: Any
) -> None:
    header = ("sentence1", "sentence2", "label")
    others = [(f"{one} no road", f"{one} yes", "equivalent") for one in WORDS[:8]]
    others += [(f"{one} no", f"{one} true", "not_equivalent") for one in WORDS[:8]]
    other = ["--train_file", str(write_csv(tmp_path / "other.csv", others, header))]
    before = fit("before", tiny_bert, *PROBE)
    files = set(trunks.glob("*/*.states"))
    fit("other", tiny_bert, *PROBE, *other)
    (theirs,) = set(trunks.glob("*/*.states")) - files
    theirs.unlink()
    _HELD.clear()
    caplog.clear()
    assert drift(before, fit("after", tiny_bert, *PROBE)) == 0
    assert "all are in" in caplog.text and "damaged" not in caplog.text
    fit("other again", tiny_bert, *PROBE, *other)
    assert "damaged and not used" in caplog.text and "16 pairs; 16 are new" in caplog.text


@pytest.mark.parametrize("damage", [_spoil_row, _cut_short, _lose_keys, _cut_lengths])
def test_damaged_files_are_said_and_computed_again(
    damage: Callable[[Path], None],
    tiny_bert: str,
    fit: Callable[..., Run],
    trunks: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = fit("before", tiny_bert, *PROBE)
    _HELD.clear()
    (folder,) = trunks.iterdir()
    damage(folder)
    after = fit("after", tiny_bert, *PROBE)
    assert "damaged and not used" in caplog.text
    assert drift(before, after) < 2e-4
    caplog.clear()
    _HELD.clear()
    fit("again", tiny_bert, *PROBE)
    assert "all are in" in caplog.text


def test_what_is_complete_is_read_where_nothing_can_be_written(
    tiny_bert: str, fit: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fit("before", tiny_bert, *PROBE)
    _HELD.clear()
    monkeypatch.setattr(TrunkStore, "adding", None)  # to write would fail
    after = fit("after", tiny_bert, *PROBE, "--trunk_cache_limit", "1KB")
    assert drift(before, after) == 0


@pytest.mark.parametrize("mode", ["auto", "disk"])
def test_a_full_disk_ends_in_one_line_or_in_memory(
    mode: str,
    tiny_bert: str,
    fit: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trunks: Path,
) -> None:
    def fail(self: Any, key: bytes, states: torch.Tensor) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peft_mrpc.training.activation_cache.store.DiskWriter.add", fail)
    flags = [*PROBE[:2], "--trunk_cache", mode]
    if mode == "disk":
        with pytest.raises(UserError, match="cannot be written: .*No space left"):
            fit("run", tiny_bert, *flags)
    else:
        cached = fit("run", tiny_bert, *flags)
        assert "No space left on device; kept in memory" in caplog.text
        plain = fit("plain", tiny_bert, *PROBE[:2], "--trunk_cache", "off")
        assert drift(plain, cached) < 2e-4
        small = ["--trunk_cache_memory", "1KB", "--num_unfrozen_layers", "1"]
        fit("no room", tiny_bert, "--method", "layer_freeze", *small)
        assert "frozen layers run every time: " in caplog.text
    left = [path.name for path in trunks.rglob("*") if path.suffix]
    assert left in ([], ["about.json"], ["about.json"] * 2)[: 2 if mode == "disk" else 3]


def test_what_a_killed_fill_had_finished_is_found_and_memory_is_filled_to_its_limit(
    tiny_bert: str,
    fit: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trunks: Path,
) -> None:
    monkeypatch.setattr(
        "peft_mrpc.training.activation_cache.fill.FILE_BYTES", 1
    )  # a file for each batch
    monkeypatch.setattr("peft_mrpc.training.activation_cache.fill.FILL_BATCH", 2)
    whole, add = [], DiskWriter.add

    def fail(self: DiskWriter, key: bytes, states: torch.Tensor) -> None:
        if len(whole) == 5:
            raise KeyboardInterrupt
        whole.append(key)
        add(self, key, states)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DiskWriter, "add", fail)
        fit("killed", tiny_bert, *PROBE)
    assert len(list(trunks.glob("*/*.states"))) == 2
    half = fit("half", tiny_bert, *PROBE, "--trunk_cache_memory", "4KB")
    assert "; 5 are new" in caplog.text
    (store,) = _HELD.values()
    kept = sum(path.stat().st_size for path in trunks.glob("*/*.states"))
    assert 2000 < store.resident <= 4000 < kept
    assert drift(half, fit("plain", tiny_bert, *PROBE[:2], "--trunk_cache", "off")) < 2e-4


@pytest.mark.parametrize(("kind", "reason"), [("longformer", "pads"), ("squeezebert", "calls")])
def test_layers_that_cannot_be_left_out_run_every_time(
    kind: str,
    reason: str,
    fit: Callable[..., Run],
    fails: Callable[..., str],
    data_flags: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes = dict.fromkeys((f"{name}_groups" for name in ("q", "k", "v", "post_attention")), 1)
    sizes |= {"intermediate_groups": 1, "output_groups": 1, "attention_window": [64, 64]}
    config = AutoConfig.for_model(
        *(kind,), **SIZES, vocab_size=64, embedding_size=16, pad_token_id=0, **sizes
    )
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path / kind)
    build_tokenizer().save_pretrained(tmp_path / kind)
    flags = ["--method", "linear_probe", "--pooling", "native"]
    run = fit("run", str(tmp_path / kind), *flags)
    assert f"frozen layers run every time: {kind} {reason}" in caplog.text
    assert len(losses(run)) > 3
    base = ["--model", str(tmp_path / kind), *data_flags, "--output_dir", str(tmp_path / "no")]
    assert f"but {kind} {reason}" in fails(main, *base, *flags, "--trunk_cache", "disk")


def test_another_place_is_where_it_is_kept_next(
    tiny_bert: str, fit: Callable[..., Run], trunks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit("memory", tiny_bert, *PROBE[:2], "--trunk_cache", "memory")
    assert not trunks.exists()
    fit("disk", tiny_bert, *PROBE)
    assert list(trunks.rglob("*.states"))
    caplog.clear()
    fit("again", tiny_bert, *PROBE[:2], "--trunk_cache", "memory")
    assert "in memory)" in caplog.text  # not read from disk


def test_however_a_training_ends_its_layers_run_again(
    tiny_bert: str, data_flags: list[str], tmp_path: Path, trunks: Path
) -> None:
    flags = ["--model", tiny_bert, *data_flags, *PROBE, "--max_steps", "3", "--bf16"]
    request = parse_request(flags)
    data = load_data(request.data)
    classifier = build_classifier(request, resolve_model(tiny_bert), data)
    trainer, _ = build_trainer(request, data, classifier, str(tmp_path))
    encoder = classifier.model.base_model
    before = encoder.config._attn_implementation
    ids = [torch.randint(5, 20, (2, 7)) for _ in range(2)]
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append([encoder(input_ids=one)[0] for one in ids])
            raise KeyboardInterrupt

    trainer.add_callback(Look())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not torch.equal(*seen[0])  # what is asked in between is answered
    layers = encoder.encoder.layer
    assert not any("forward" in vars(layer) for layer in layers)
    assert not classifier.model._forward_pre_hooks and not classifier.model._forward_hooks
    assert encoder.config._attn_implementation == before == "sdpa"


def test_a_place_that_cannot_be_written_ends_in_a_reason_or_is_not_needed(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    assert not _is_common(tmp_path / "file" / "trunks")
    store = TrunkStore(tmp_path / "file" / "store", 2, torch.float32, 10**6)
    assert fill_store(store, KeyedRows.of([]), {}, lambda rows: [], 10**9) == ""
    row = {"input_ids": [1, 2], "attention_mask": [1, 1]}
    rows = KeyedRows.of([row])
    said = fill_store(store, rows, {}, lambda rows: [(row_key(row), torch.zeros(2, 2))], 10**9)
    assert "cannot be written" in said


def test_clearing_leaves_what_is_not_ours(
    tiny_bert: str, fit: Callable[..., Run], trunks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("run", tiny_bert, *PROBE)
    (folder,) = trunks.iterdir()
    for name in ("thesis", ".git"):
        (trunks / name).mkdir()
        (trunks / name / "mine.txt").write_text("mine")
    (folder / "about.json").write_text('{"we')  # cut off while it was written
    cache(["--clear"])
    assert "unknown, ? layers" in capsys.readouterr().out
    assert not folder.exists()
    assert {path.name for path in trunks.iterdir()} == {"thesis", ".git"}
    (folder / "notes").mkdir(parents=True)
    cache(["--clear"])
    assert (folder / "notes").is_dir()


def test_what_a_killed_fill_left_is_swept_and_what_runs_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PEFT_MRPC_TRUNKS", str(tmp_path))
    folder = tmp_path / ("0" * 24)
    folder.mkdir()
    for age, name in (
        *((7200, "old.unfinished"), (7200, "lost.states")),
        *((10, "new.unfinished"), (7200, "whole.states"), (7200, "whole.lengths")),
    ):
        (folder / name).write_bytes(b"x" * 100)
        os.utime(folder / name, (time.time() - age, time.time() - age))
    # Two files are whole, one is being written: by others it counts, of the same rows it does not.
    assert disk_refusal(100, 300) and not disk_refusal(100, 300, folder)
    assert disk_refusal(101, 300, folder) and not disk_refusal(100, 400)
    assert {path.stem for path in folder.iterdir()} == {"new", "whole"}
    (trunk,) = kept_trunks()
    assert (trunk.size, trunk.unfinished) == (300, 100)
    cache(["--clear"])
    assert "removed 0.2 KB, 0.1 KB kept" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["new.unfinished"]


def test_a_fill_whose_trunk_is_cleared_and_limit_is_reached_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFT_MRPC_TRUNKS", str(tmp_path))
    monkeypatch.setattr(
        "peft_mrpc.training.activation_cache.fill.FILE_BYTES", 1
    )  # a file for each batch
    monkeypatch.setattr("peft_mrpc.training.activation_cache.fill.FILL_BATCH", 1)
    rows = KeyedRows.of([{"input_ids": [n], "attention_mask": [1]} for n in range(6)])

    def fill(number: int, limit: int, after_each: Callable[[], object]) -> tuple[TrunkStore, str]:
        def compute(batch: list[Any]) -> Iterator[tuple[bytes, torch.Tensor]]:
            after_each()
            yield from ((row_key(row), torch.ones(1, 50)) for row in batch)

        store = TrunkStore(tmp_path / (str(number) * 24), 50, torch.float32, 0)
        return store, fill_store(store, rows, {"depth": 1}, compute, limit)

    calls: list[int] = []

    def clear_once() -> None:
        calls.append(1)
        if len(calls) == 4:
            cache(["--clear"])

    store, said = fill(1, 10**6, clear_once)
    assert said == "" and missing_rows(store, rows.keys) == []
    assert len(calls) == 6 + 3  # what was cleared is computed again, the file in work is not
    cache(["--clear"])
    # Another trunk grows meanwhile, so that this one has less room than there was at first.
    other = tmp_path / ("9" * 24)
    other.mkdir()
    _, said = fill(2, 3000, lambda: (other / f"{time.time_ns()}.lengths").write_bytes(b"x" * 500))
    assert "--trunk_cache_limit is 3 KB" in said
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.*")) < 3500


def test_a_place_that_is_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PEFT_MRPC_TRUNKS", str(tmp_path / "file"))
    assert "a file; expected a directory" in fails(cache, "--clear")


def test_the_same_rows_are_kept_once(tmp_path: Path) -> None:
    stores = [TrunkStore(tmp_path / "trunk", 2, torch.float32, 10**6) for _ in range(2)]
    with stores[0].adding() as one, stores[1].adding() as two:
        for writer in (one, two):
            writer.add(b"k" * 16, torch.ones(3, 2))
    assert len(list((tmp_path / "trunk").glob("*.states"))) == 1
    key = split_keys(b"k" * 16)
    for store in stores:
        store.refresh()
        store.take(key)
        assert torch.equal(store.states(key)[0], torch.ones(3, 2))


def test_memory_has_a_limit_over_trainings(
    tiny_bert: str, fit: Callable[..., Run], trunks: Path
) -> None:
    sizes, flags = [], [*PROBE[:2], "--trunk_cache", "memory", "--max_train_samples", "9"]
    for seed in ("1", "2"):  # which draws the pairs
        for limit in ("1MB", "6KB"):
            _HELD.clear() if seed == "1" else None
            fit(seed + limit, tiny_bert, *flags, "--trunk_cache_memory", limit, "--seed", seed)
            (held,) = _HELD.values()
            sizes.append(held.resident)
    assert 0 < max(sizes[1], sizes[3]) <= 6_000


@pytest.mark.parametrize(
    "next_flags",
    [["--trunk_cache_limit", "1"], ["--num_unfrozen_layers", "0", "--max_train_samples", "10"]],
)
def test_memory_has_its_limit_where_disk_is_full_and_where_another_trunk_comes(
    next_flags: list[str],
    tiny_bert: str,
    fit: Callable[..., Run],
    trunks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit, most = 6_000, [0]
    take = TrunkStore.take

    def watch(self: TrunkStore, keys: Any) -> None:
        take(self, keys)
        stores = {id(store): store for store in (*_HELD.values(), self)}
        most.append(sum(store.resident for store in stores.values()))

    monkeypatch.setattr(TrunkStore, "take", watch)
    flags = ["--num_unfrozen_layers", "1", "--trunk_cache_memory", f"{limit}"]
    fit("before", tiny_bert, *flags, *next_flags)
    _HELD.clear()
    fit("one", tiny_bert, *flags, "--max_train_samples", "5")
    size = sum(store.resident for store in _HELD.values())
    assert size > limit / 3
    fit("two", tiny_bert, *flags, *next_flags)
    most += [store.resident for store in _HELD.values()]
    assert max(most) <= limit


@pytest.mark.parametrize("fits", [True, False])
def test_frozen_layers_that_run_out_of_memory_run_fewer_pairs_or_every_time(
    fits: bool,
    tiny_bert: str,
    fit: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flags = ["--num_unfrozen_layers", "1"]
    plain = fit("plain", tiny_bert, *flags, "--trunk_cache", "off")
    compute = Trunk._row_states

    def run(self: Trunk, rows: Any) -> Any:
        if len(rows) > 1 or not fits:
            raise torch.OutOfMemoryError
        return compute(self, rows)

    # What was kept is looked at in batches, too.
    monkeypatch.setattr(Trunk, "_states_fault", lambda *_: "")
    monkeypatch.setattr(Trunk, "_row_states", run)
    found = fit("found", tiny_bert, *flags)
    assert (USED in caplog.text) and ("run out of memory" in caplog.text) != fits
    assert drift(plain, found) < 1e-5


def test_a_training_in_tf32_has_a_trunk_of_its_own(
    tiny_bert: str, fit: Callable[..., Run], trunks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> str:  # as torch does once `--tf32 true` was set
        raise RuntimeError("mix of the legacy and new APIs")

    flags = ["--num_unfrozen_layers", "1", "--trunk_cache", "disk"]
    fit("one", tiny_bert, *flags)
    monkeypatch.setattr("torch.get_float32_matmul_precision", refuse)
    fit("two", tiny_bert, *flags)
    assert len(list(trunks.iterdir())) == 2
