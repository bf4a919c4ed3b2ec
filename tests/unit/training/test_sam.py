"""Sharpness-aware minimization: where gradients are taken, and that nothing else moves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_command
from safetensors.torch import load_file
from tiny_models import FLAGS
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import set_seed

from peft_mrpc.data.loading import load_data
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.runs.run import load_run
from peft_mrpc.train import main
from peft_mrpc.training.build_model import build_classifier
from peft_mrpc.training.build_trainer import build_trainer
from peft_mrpc.training.request import parse_request
from peft_mrpc.training.sam import isolated_gradients, sam_perturbation
from peft_mrpc.training.trainer import ClassificationTrainer
from peft_mrpc.training.tuning.config import common_recipe

RHO, RATE = 0.2, 0.1
SGD = ["--optim", "sgd", "--lr_scheduler_type", "constant", "--warmup_steps", "0"]
SGD += ["--learning_rate", str(RATE), "--head_learning_rate", str(RATE)]
PLAIN = ["--weight_decay", "0", "--max_grad_norm", "0", "--dropout", "0", "--bf16", "false"]


def test_parameters_go_along_all_gradients_together_and_come_back() -> None:
    first, second, other = (nn.Parameter(torch.tensor([value])) for value in (0.1, 0.7, 5.0))
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([-4.0])
    before = [first.clone(), second.clone()]
    with sam_perturbation([first, second, other], 0.5):  # 3, 4, 5
        assert torch.allclose(first, torch.tensor([0.1 + 0.3]))
        assert torch.allclose(second, torch.tensor([0.7 - 0.4]))
        assert other == 5
    assert [first, second] == before  # to the last bit


def test_parameters_come_back_from_gradients_that_are_no_numbers() -> None:
    parameter = nn.Parameter(torch.tensor([0.3]))
    parameter.grad = torch.tensor([float("inf")])
    with pytest.raises(RuntimeError, match="out of memory"), sam_perturbation([parameter], 0.5):
        raise RuntimeError("out of memory")
    assert parameter == 0.3


def test_parameters_come_back_when_the_way_ends_halfway(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = [nn.Parameter(torch.tensor([value])) for value in (0.3, 0.4)]
    for parameter in parameters:
        parameter.grad = torch.ones(1)
    add = torch.Tensor.add_

    def fail_at_second(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if self is parameters[1]:
            raise RuntimeError("out of memory")
        return add(self, other)

    monkeypatch.setattr(torch.Tensor, "add_", fail_at_second)
    with pytest.raises(RuntimeError, match="out of memory"), sam_perturbation(parameters, 0.5):
        pass
    assert [p.item() for p in parameters] == [pytest.approx(0.3), pytest.approx(0.4)]


def test_gradients_of_earlier_batches_are_kept_and_say_nothing() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    parameter.grad = torch.tensor([2.0])
    with isolated_gradients([parameter]):
        (3 * parameter).sum().backward()
        assert parameter.grad == 3
    assert parameter.grad == 2


def trainer_of(method: str, model: str, data_flags: list[str], folder: Path, *flags: str) -> Any:
    request = parse_request(
        ["--method", method, "--model", model, *data_flags, *FLAGS[method], *SGD, *PLAIN]
        + ["--per_device_train_batch_size", "4", "--disable_tqdm", "true"]
        + ["--swap_sentences", "false", "--sam_rho", str(RHO), *flags]
    )
    set_seed(3)
    data = load_data(request.data)
    classifier = build_classifier(request, resolve_model(model), data)
    return build_trainer(request, data, classifier, str(folder))[0]


@pytest.mark.parametrize("method", ["full", "layer_freeze", "lora", "prompt_tuning"])
def test_a_step_is_that_of_the_paper(
    method: str,
    tiny_bert: str,
    data_flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """w - rate * (the sum over batches of the gradient at w + rho g / |g|), g the batch's own."""
    flags = ["--max_steps", "1", "--gradient_accumulation_steps", "2", "--activation_cache", "off"]
    flags += ["--layer_decay", "1"] if method == "full" else []
    trainer = trainer_of(method, tiny_bert, data_flags, tmp_path, *flags)
    model = trainer.model
    trained = [p for p in model.parameters() if p.requires_grad]
    batches: list[dict[str, torch.Tensor]] = []
    step = ClassificationTrainer._step

    def listen(self: ClassificationTrainer, model: Any, inputs: Any, *more: Any) -> torch.Tensor:
        batches.append({key: value.clone() for key, value in inputs.items()})
        return step(self, model, inputs, *more)

    monkeypatch.setattr(ClassificationTrainer, "_step", listen)
    start = [p.detach().clone() for p in trained]
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainer.train()
    ends = [p.detach().clone() for p in trained]
    assert len(batches) == 4 and torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)

    def gradients_at(where: list[torch.Tensor], batch: dict[str, torch.Tensor]) -> Any:
        with torch.no_grad():
            for parameter, value in zip(trained, where, strict=True):
                parameter.copy_(value)
        labels = batch["labels"]
        rest = {key: value for key, value in batch.items() if key != "labels"}
        loss = cross_entropy(model(**rest).logits.float(), labels, reduction="sum") / 8
        return torch.autograd.grad(loss, trained)

    wanted = [one.clone() for one in start]
    for batch in (batches[0], batches[2]):
        there = gradients_at(start, batch)
        norm = torch.cat([one.flatten() for one in there]).norm()
        away = [one + RHO * g / norm for one, g in zip(start, there, strict=True)]
        for one, gradient in zip(wanted, gradients_at(away, batch), strict=True):
            one -= RATE * gradient
    moved = 0.0
    for end, want, begin in zip(ends, wanted, start, strict=True):
        assert torch.allclose(end, want, atol=1e-6)
        moved = max(moved, float((end - begin).abs().max()))
    assert moved > 1e-3


def test_layers_that_wait_stay_and_do_not_count(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--num_unfrozen_layers", "2", "--unfreeze_every", "50", "--max_steps", "2"]
    gradual = trainer_of("layer_freeze", tiny_bert, data_flags, tmp_path, *flags)
    gradual.train()
    head = trainer_of(
        *("layer_freeze", tiny_bert, data_flags, tmp_path, "--num_unfrozen_layers", "0"),
        *("--activation_cache", "off", "--max_steps", "2"),
    )
    head.train()
    for (name, one), other in zip(
        gradual.model.named_parameters(), head.model.parameters(), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-6), name


@pytest.mark.parametrize("batches", [1, 2])
def test_two_processes_go_the_same_way(
    batches: int, tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    words = ["--method", "full", "--model", tiny_bert, *data_flags, *SGD, *PLAIN]
    words += ["--swap_sentences", "false", "--sam_rho", str(RHO), "--max_steps", "2"]
    words += ["--pooling", "cls", "--seed", "7", "--gradient_accumulation_steps", str(batches)]
    words += ["--train_sampling_strategy", "sequential"]
    one, two = tmp_path / "one", tmp_path / "two"
    main([*words, "--per_device_train_batch_size", "4", "--output_dir", str(one)])
    words += ["--per_device_train_batch_size", "2", "--output_dir", str(two)]
    done = run_command("train", *words, processes=2)
    assert done.returncode == 0, done.stderr
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, two)]
    for name, own in weights[0].items():
        assert torch.allclose(own, weights[1][name], atol=2e-5), name
    assert load_run(two).record["config"]["sam_rho"] == RHO


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sam_rho", "-1"], "--sam_rho: got -1.0; expected 0 or more, such as 0.05."),
        (["--sam_rho", "nan"], "--sam_rho: got nan; expected 0 or more, such as 0.05."),
        (
            ["--sam_rho", "0.05", "--optim", "adalomo"],
            "--sam_rho: got 0.05, but --optim adalomo leaves no gradients to work on; drop one",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    flags: list[str], said: str, tiny_bert: str, data_flags: list[str], fails: Callable[..., str]
) -> None:
    assert said in fails(main, "--model", tiny_bert, *data_flags, *flags)


def test_a_recipe_does_without_where_gradients_are_not_to_be_had(
    tiny_bert: str,
    data_flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails: Callable[..., str],
) -> None:
    words = ["--method", "layer_freeze", "--model", tiny_bert, *data_flags]
    assert parse_request(words).config.sam_rho > 0
    said = fails(main, *words, "--optim", "adalomo")  # which is not installed
    assert "--optim: got adalomo" in said and "--sam_rho" not in said
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    request = parse_request(words)
    assert request.config.sam_rho == 0
    assert "layer_freeze: its --sam_rho 0.05 is left out under FSDP or DeepSpeed" in caplog.text
    assert common_recipe(request, {}, [])["sam_rho"] == 0
    for flags in (["--sam_rho", "0.05"], ["--unfreeze_every", "0.5"]):
        said = f"{flags[0]}: got {flags[1]}, but FSDP or DeepSpeed leaves no gradients to work on"
        assert said in fails(main, *words, *flags, "--dry_run")
