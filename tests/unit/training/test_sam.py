"""Sharpness-aware minimization: the gradients of a step, and that nothing else changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from peft_mrpc.errors import UserError
from peft_mrpc.training.trainer import isolated_gradients, sam_perturbation

RHO, RATE = 0.2, 0.1
STEPS = {
    **{"optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0},
    **{"learning_rate": RATE, "head_learning_rate": RATE, "weight_decay": 0.0},
    **{"max_grad_norm": 0.0, "dropout": 0.0, "bf16": False, "swap_sentences": "false"},
    "sam_rho": RHO,
}


def test_parameters_move_along_the_joint_gradient_and_are_restored() -> None:
    first, second, other = (nn.Parameter(torch.tensor([value])) for value in (0.1, 0.7, 5.0))
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([-4.0])
    before = [first.clone(), second.clone()]
    with sam_perturbation([first, second, other], 0.5):  # 3, 4, 5
        assert torch.allclose(first, torch.tensor([0.1 + 0.3]))
        assert torch.allclose(second, torch.tensor([0.7 - 0.4]))
        assert other == 5
    assert [first, second] == before  # to the last bit


def test_parameters_are_restored_from_infinite_gradients() -> None:
    parameter = nn.Parameter(torch.tensor([0.3]))
    parameter.grad = torch.tensor([float("inf")])
    with pytest.raises(RuntimeError, match="out of memory"), sam_perturbation([parameter], 0.5):
        raise RuntimeError("out of memory")
    assert parameter == 0.3


def test_parameters_are_restored_after_an_error_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_gradients_of_earlier_batches_are_restored_and_not_used() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    parameter.grad = torch.tensor([2.0])
    with isolated_gradients([parameter]):
        (3 * parameter).sum().backward()
        assert parameter.grad == 3
    assert parameter.grad == 2


@pytest.mark.parametrize("method", ["full", "layer_freeze", "lora", "prompt_tuning"])
def test_a_step_follows_the_paper(method: str, build_tiny: Callable[..., Any]) -> None:
    """w - rate * (the sum over batches of the gradient at w + rho g / |g|), g the batch's own."""
    options = {"max_steps": 1, "gradient_accumulation_steps": 2, "activation_cache": "off"}
    options |= {"layer_decay": 1.0} if method == "full" else {}
    trainer = build_tiny(method, **STEPS, **options).trainer
    model = trainer.model
    trained = [p for p in model.parameters() if p.requires_grad]
    batches: list[dict[str, torch.Tensor]] = []
    collate = trainer.data_collator

    def record(features: Any) -> Any:
        batch = collate(features)
        batches.append({key: value.clone() for key, value in batch.items()})
        return batch

    trainer.data_collator = record
    start = [p.detach().clone() for p in trained]
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainer.train()
    ends = [p.detach().clone() for p in trained]
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    num_examples = sum(len(batch["labels"]) for batch in batches[:2])

    def gradients_at(values: list[torch.Tensor], batch: dict[str, torch.Tensor]) -> Any:
        with torch.no_grad():
            for parameter, value in zip(trained, values, strict=True):
                parameter.copy_(value)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits = model(**inputs).logits.float()
        loss = cross_entropy(logits, batch["labels"], reduction="sum") / num_examples
        return torch.autograd.grad(loss, trained)

    expected = [value.clone() for value in start]
    for batch in batches[:2]:
        gradients = gradients_at(start, batch)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        moved = [v + RHO * g / norm for v, g in zip(start, gradients, strict=True)]
        for value, gradient in zip(expected, gradients_at(moved, batch), strict=True):
            value -= RATE * gradient
    for end, value in zip(ends, expected, strict=True):
        assert torch.allclose(end, value, atol=1e-6)
    changes = [float((end - value).abs().max()) for end, value in zip(ends, start, strict=True)]
    assert max(changes) > 1e-3


def test_layers_to_be_unfrozen_later_do_not_count(build_tiny: Callable[..., Any]) -> None:
    options = {**STEPS, "max_steps": 2, "activation_cache": "off"}
    gradual = build_tiny(num_unfrozen_layers=2, unfreeze_every=50, **options).trainer
    gradual.train()
    head = build_tiny(num_unfrozen_layers=0, **options).trainer
    head.train()
    others = head.model.parameters()
    for (name, value), other in zip(gradual.model.named_parameters(), others, strict=True):
        assert torch.allclose(value, other, atol=1e-6), name


@pytest.mark.parametrize("rho", [-1.0, float("nan")])
def test_a_negative_distance_is_an_error(rho: float, build_tiny: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=f"sam_rho: got {rho}; expected at least 0"):
        build_tiny(sam_rho=rho)


def test_sharded_training_is_without_the_recipes_sam(
    build_tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build_tiny().resolved.config.sam_rho > 0
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for options in ({"sam_rho": 0.05}, {"unfreeze_every": 0.5}):
        with pytest.raises(UserError, match="FSDP or DeepSpeed"):
            build_tiny(**options)
