"""Training on cached activations equals training on the whole model."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_tokenizer
from datasets import Dataset
from tiny_models import ARCHITECTURES, SIZES, poolings, tiny_config, write_tiny_model
from training_recorders import largest_difference, losses
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from peft_mrpc.methods.layer_freeze import LayerFreezeOptions
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.models.loading import init_classifier
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.train import main
from peft_mrpc.training.activation_cache.bypass import ACTIVATIONS, FrozenLayers
from peft_mrpc.training.activation_cache.callback import (
    ActivationCacheCallback,
    num_frozen_layers,
)
from peft_mrpc.training.activation_cache.store import (
    ActivationCache,
    CachedCollator,
    example_key,
    pad_activations,
)

USED = "are frozen and run once for each of"
FREEZE = ["--method", "layer_freeze", "--num_unfrozen_layers", "1"]
PROBE = ["--method", "linear_probe"]
ON, OFF = ["--activation_cache", "on"], ["--activation_cache", "off"]


@pytest.fixture
def fit(
    tmp_path: Path, data_flags: list[str], caplog: pytest.LogCaptureFixture
) -> Callable[..., Run]:
    """Train with these options into a directory of this name, with dropout."""
    caplog.set_level("INFO", "peft_mrpc")

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
def batches(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each collated batch held activations."""
    seen: list[bool] = []
    collate = CachedCollator.__call__

    def record(self: CachedCollator, features: Any) -> Any:
        batch = collate(self, features)
        seen.append(ACTIVATIONS in batch)
        return batch

    monkeypatch.setattr(CachedCollator, "__call__", record)
    return seen


# One head for each architecture, and the other combinations for one architecture.
@pytest.mark.parametrize(
    ("architecture", "number", "dropout"),
    [*((name, 1, "0.1") for name in ARCHITECTURES), ("bert", 0, "0.1"), ("bert", 1, "0")],
)
def test_cached_training_equals_uncached_training(
    architecture: str,
    number: int,
    dropout: str,
    models: dict[str, str],
    fit: Callable[..., Run],
    caplog: pytest.LogCaptureFixture,
    batches: list[bool],
) -> None:
    flags = [*FREEZE, "--pooling", poolings(architecture)[number], "--dropout", dropout]
    plain = fit("plain", models[architecture], *flags, *OFF)
    assert USED not in caplog.text and not any(batches)
    batches.clear()
    cached = fit("cached", models[architecture], *flags, *ON)
    assert USED in caplog.text and all(batches) and len(batches) >= len(losses(plain))
    assert largest_difference(plain, cached) < 2e-4
    assert np.std(losses(plain)) > 1e-3, "nothing was learned"


def test_a_tokenizer_that_returns_more_than_the_model_reads(
    models: dict[str, str], fit: Callable[..., Run], tmp_path: Path
) -> None:
    model = str(shutil.copytree(models["distilbert"], tmp_path / "distilbert"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.save_pretrained(model)
    plain, cached = fit("plain", model, *FREEZE, *OFF), fit("cached", model, *FREEZE, *ON)
    assert largest_difference(plain, cached) < 2e-4


def test_pretrained_weights_train_the_same(
    fit: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--method", "layer_freeze", "--pooling", "aligned", "--learning_rate", "4e-4"]
    plain = fit("plain", "builtin:minilm", *flags, *OFF)
    cached = fit("cached", "builtin:minilm", *flags, *ON)
    assert "the first 4 of 6 layers" in caplog.text
    assert largest_difference(plain, cached) < 2e-4


@pytest.mark.parametrize(
    "flags",
    [
        PROBE,
        [*FREEZE, "--unfreeze_every", "1"],
        ["--method", "layer_freeze", "--frozen_modules", "embeddings", "layer.0"],
        [*FREEZE, "--swap_sentences", "true"],
        [*FREEZE, "--eval_strategy", "epoch", "--load_best_model_at_end", "true"]
        + ["--metric_for_best_model", "loss"],
        [*FREEZE, "--gradient_checkpointing", "true"],
        [*FREEZE, "--gradient_accumulation_steps", "2"]
        + ["--train_sampling_strategy", "group_by_length"],
        [*FREEZE, "--layer_decay", "0.5", "--gradient_accumulation_steps", "2"]
        + ["--dataloader_num_workers", "2"],
    ],
    ids=lambda flags: flags[-2].strip("-"),
)
def test_other_options_with_the_cache_train_the_same(
    flags: list[str], tiny_bert: str, fit: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    flags = [*flags, "--pooling", "aligned"]
    cached = fit("cached", tiny_bert, *flags, *ON)
    assert USED in caplog.text
    assert largest_difference(fit("plain", tiny_bert, *flags, *OFF), cached) < 2e-4


def test_a_convolution_after_the_first_layer_reads_the_embeddings(
    tmp_path: Path, fit: Callable[..., Run]
) -> None:
    model = write_tiny_model("deberta-v2", tmp_path / "conv", conv_kernel_size=3)
    plain, cached = fit("plain", model, *FREEZE, *OFF), fit("cached", model, *FREEZE, *ON)
    assert largest_difference(plain, cached) < 2e-4


def test_later_seeds_compute_nothing(
    tiny_bert: str, fit: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    fit("seeds", tiny_bert, *FREEZE, "--seeds", "1,2")
    assert caplog.text.count(f"{USED} 9 examples") == 2  # 9 of 18 rows are distinct
    assert "computed now" in caplog.text and "computed before" in caplog.text


@pytest.mark.parametrize("fails_late", [False, True])
def test_the_temporary_file_is_removed(
    fails_late: bool,
    tiny_bert: str,
    fit: Callable[..., Run],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    seen: list[int] = []
    compute = FrozenLayers.compute

    def record(self: FrozenLayers, batch: Any) -> torch.Tensor:
        seen.append(len(list(folder.glob("*/activations"))))
        if fails_late and seen[-1]:
            raise KeyboardInterrupt
        return compute(self, batch)

    monkeypatch.setattr(FrozenLayers, "compute", record)
    with pytest.raises(KeyboardInterrupt) if fails_late else nullcontext():
        fit("run", tiny_bert, *FREEZE, *ON)
    assert 1 in seen and not list(folder.iterdir())


def test_a_cache_filled_by_workers_serves_other_layers_and_examples(
    tiny_bert: str, fit: Callable[..., Run]
) -> None:
    for number, flags in enumerate((FREEZE, PROBE, [*FREEZE, "--max_train_samples", "6"])):
        plain = fit(f"plain-{number}", tiny_bert, *flags, *OFF)
        cached = fit(f"cached-{number}", tiny_bert, *flags, *ON, "--dataloader_num_workers", "2")
        assert largest_difference(plain, cached) < 2e-4


def test_the_reason_is_logged_or_raised(
    tiny_bert: str,
    fit: Callable[..., Run],
    fails: Callable[..., str],
    data_flags: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fit("few", tiny_bert, *FREEZE, "--max_steps", "1")
    assert "training reads 4 examples, fewer than the 9 to compute" in caplog.text
    base = ["--model", tiny_bert, *data_flags, "--output_dir", str(tmp_path / "refused")]
    unfrozen = ["--method", "layer_freeze", "--num_unfrozen_layers", "2", *ON]
    for more in ([], ["--dry_run"]):
        assert "the first layer of the model is not frozen" in fails(main, *base, *unfrozen, *more)
    assert "lora has no frozen layers" in fails(main, *base, "--method", "lora", *ON)
    text = fails(main, *base, *FREEZE, "--activation_cache", "disk")
    assert "activation_cache: got 'disk'; expected one of" in text
    assert not (tmp_path / "refused").exists()


def test_a_cached_training_resumes_from_its_checkpoint(
    tiny_bert: str, fit: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    flags = [*FREEZE, "--save_strategy", "epoch", *ON]
    whole = fit("whole", tiny_bert, *flags)
    checkpoints = sorted((whole.path / "checkpoints").iterdir(), key=lambda p: int(p.name[11:]))
    resumed = fit("resumed", tiny_bert, *flags, "--resume_from_checkpoint", str(checkpoints[0]))
    assert caplog.text.count(USED) == 2
    probabilities = [run.predictions("validation").probabilities for run in (whole, resumed)]
    assert np.abs(probabilities[0] - probabilities[1]).max() < 1e-5


def test_the_saved_model_is_complete(tiny_bert: str, fit: Callable[..., Run]) -> None:
    run = fit("run", tiny_bert, *FREEZE, "--pooling", "native", *ON)
    model = AutoModelForSequenceClassification.from_pretrained(run.path / "model")
    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    batch = tokenizer("the cat sat on the mat", "on the mat the cat sat", return_tensors="pt")
    with torch.no_grad():
        probabilities = model.eval()(**batch).logits.softmax(-1).numpy()[0]
    expected = run.predictions("validation").probabilities[0]
    assert np.abs(probabilities - expected).max() < 1e-5


def test_layers_that_a_trained_module_feeds_are_not_cached() -> None:
    def depth(architecture: str, **options: Any) -> int:
        model = init_classifier(tiny_config(architecture, 64), "mean")
        METHODS["layer_freeze"].apply(model, LayerFreezeOptions(**options))
        return num_frozen_layers(model)

    assert [depth("bert", num_unfrozen_layers=n) for n in (2, 1, 0)] == [0, 1, 2]
    assert depth("llama", num_unfrozen_layers=0) == 2
    assert depth("bert", num_unfrozen_layers=1, unfrozen_modules=["embeddings"]) == 0
    # The relative embeddings are an input of the first layer too.
    relative = {"unfrozen_modules": ["rel_embeddings"]}
    assert depth("deberta-v2", num_unfrozen_layers=1) == 1
    assert depth("deberta-v2", num_unfrozen_layers=1, **relative) == 0
    assert depth("bert", frozen_modules=["embeddings", "layer.1"]) == 0


@pytest.mark.parametrize(("kind", "reason"), [("longformer", "pads"), ("squeezebert", "call")])
def test_unsupported_architectures_train_without_the_cache(
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
    flags = [*PROBE, "--pooling", "native"]
    run = fit("run", str(tmp_path / kind), *flags)
    assert f"activation cache: not used, {kind}" in caplog.text and reason in caplog.text
    assert len(losses(run)) > 3
    base = ["--model", str(tmp_path / kind), *data_flags, "--output_dir", str(tmp_path / "no")]
    assert f"but {kind}" in fails(main, *base, *flags, *ON)


def test_an_interrupted_training_restores_its_layers(
    tiny_bert: str, fit: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Interrupt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            encoder = kwargs["model"].base_model
            ids = [torch.randint(5, 20, (2, 7)) for _ in range(2)]
            seen.append([encoder, *(encoder(input_ids=one)[0] for one in ids)])
            raise KeyboardInterrupt

    begin = ActivationCacheCallback.on_train_begin

    def add_interrupt(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        callbacks.append(self)

    callbacks: list[Any] = []
    monkeypatch.setattr(ActivationCacheCallback, "on_train_begin", add_interrupt)
    monkeypatch.setattr(
        ActivationCacheCallback, "on_step_end", Interrupt.on_step_end, raising=False
    )
    with pytest.raises(KeyboardInterrupt):
        fit("run", tiny_bert, *PROBE, *ON)
    encoder, *outputs = seen[0]
    assert not torch.equal(*outputs)  # the encoder itself still computes
    assert not any("forward" in vars(layer) for layer in encoder.encoder.layer)
    assert callbacks[0].collator.cache is None


# ---- the cache ----


def test_a_file_that_does_not_fit_is_refused(
    tiny_bert: str,
    fit: Callable[..., Run],
    fails: Callable[..., str],
    data_flags: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("peft_mrpc.training.activation_cache.store.SPARE_BYTES", 1 << 60)
    run = fit("run", tiny_bert, *FREEZE)
    assert "activation cache: not used, no temporary file can be created" in caplog.text
    assert len(losses(run)) > 3
    command = ["--model", tiny_bert, *data_flags, "--output_dir", str(tmp_path / "on")]
    assert "no temporary file can be created" in fails(main, *command, *FREEZE, *ON)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_returns_what_was_computed(dtype: torch.dtype) -> None:
    model = init_classifier(tiny_config("bert", 64), "native", "cpu").to(dtype)
    layers = FrozenLayers(model, 1)
    encoded = [[5], [6, 7, 8, 9], [10, 11]]
    examples = Dataset.from_dict({"input_ids": encoded, "length": [len(ids) for ids in encoded]})

    def collate(features: list[Any]) -> dict[str, torch.Tensor]:
        width = max(len(f["input_ids"]) for f in features)
        ids = [f["input_ids"] + [0] * (width - len(f["input_ids"])) for f in features]
        mask = torch.tensor(ids).ne(0).long()
        return {"input_ids": torch.tensor(ids), "attention_mask": mask}

    layers.compute(collate([examples[0]]))
    cache = ActivationCache()
    cache.fill("layers", examples, layers, collate)
    for example in examples:
        (activations,) = cache.find([example]) or []
        expected = layers.compute(collate([example]))[0]
        assert torch.allclose(activations.float(), expected.float(), atol=1e-6, rtol=1e-2)
        assert activations.dtype == dtype
    assert cache.find([examples[0], {"input_ids": [12]}]) is None
    keys = [example_key(example) for example in examples]
    assert cache.has_all("layers", keys) and not cache.has_all("other layers", keys)
    assert not cache.has_all("layers", [*keys, example_key({"input_ids": [12]})])
    cache.clear()
    assert cache.find([examples[0]]) is None


def test_keys_depend_on_all_that_the_model_reads() -> None:
    def key(*ids: Any) -> bytes:
        return example_key(dict(zip(("input_ids", "token_type_ids"), ids, strict=False)))

    assert key([1, 2], [0, 1]) == key((1, 2), (0, 1))
    assert key([1, 2], [0, 1]) != key([1, 2], [0, 0])
    assert len({key([1, 2, 0]), key([1, 2]), key([1], [2])}) == 3


def test_activations_are_padded_where_the_tokens_are() -> None:
    rows = [torch.ones(2, 1), torch.full((3, 1), 2.0)]
    right = pad_activations(rows, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert right.squeeze(-1).tolist() == [[1, 1, 0], [2, 2, 2]]
    left = pad_activations(rows, torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert left.squeeze(-1).tolist() == [[0, 1, 1], [2, 2, 2]]
