import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import ROWS, write_csv
from torch.nn.functional import cross_entropy

from peft_mrpc.config import DataConfig
from peft_mrpc.training.losses import (
    build_class_weights,
    class_weight_faults,
    classification_loss,
    loss_faults,
)


def some_logits(num_classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return 3 * torch.randn(8, num_classes), torch.randint(num_classes, (8,))


def test_focal_loss_of_one_pair_by_hand() -> None:
    # p(yes) = 0.8: cross-entropy -ln 0.8, turned down by (1 - 0.8)^2 = 0.04.
    logits = torch.tensor([[math.log(0.2), math.log(0.8)]])
    loss = classification_loss(logits, torch.tensor([1]), focal_gamma=2.0)
    assert loss.item() == pytest.approx(0.04 * -math.log(0.8), rel=1e-5)
    weighted = classification_loss(
        logits, torch.tensor([1]), focal_gamma=2.0, class_weights=torch.tensor([9.0, 0.5])
    )
    assert weighted.item() == pytest.approx(0.5 * loss.item(), rel=1e-6)


def test_smoothed_weighted_focal_loss_by_hand() -> None:
    # Smoothing 0.2 over two classes: the truth "no" becomes (0.9, 0.1).
    logits = torch.tensor([[math.log(0.7), math.log(0.3)]])
    loss = classification_loss(
        logits,
        torch.tensor([0]),
        class_weights=torch.tensor([2.0, 0.5]),
        focal_gamma=1.0,
        label_smoothing=0.2,
    )
    by_hand = 2.0 * 0.9 * 0.3 * -math.log(0.7) + 0.5 * 0.1 * 0.7 * -math.log(0.3)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 3.0])])
def test_without_focus_it_is_torchs_cross_entropy(
    smoothing: float, weights: torch.Tensor | None
) -> None:
    logits, labels = some_logits()
    ours = classification_loss(logits, labels, class_weights=weights, label_smoothing=smoothing)
    theirs = cross_entropy(logits, labels, weights, label_smoothing=smoothing, reduction="sum") / 8
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_over_all_training_pairs_it_is_torchs_weighted_mean() -> None:
    logits, labels = some_logits()
    weights = build_class_weights(
        "0.2,1,3", {name: labels.tolist().count(label) for label, name in enumerate("abc")}
    )
    assert weights is not None
    mean = cross_entropy(logits, labels, torch.tensor([0.2, 1.0, 3.0]))
    assert torch.allclose(classification_loss(logits, labels, class_weights=weights), mean)


def test_the_gradient_is_finite_where_a_pair_is_surely_right() -> None:
    logits = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    for gamma in (0.0, 0.5, 2.0):
        loss = classification_loss(logits, torch.tensor([1]), focal_gamma=gamma)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all()


def test_weights_have_mean_one_over_the_pairs() -> None:
    assert build_class_weights("none", {"no": 1, "yes": 1}) is None
    balanced = build_class_weights("balanced", {"no": 1, "yes": 3})
    assert balanced is not None and balanced.tolist() == pytest.approx([2.0, 2 / 3])
    given = build_class_weights("1,3", {"no": 3, "yes": 1})
    assert given is not None and given.tolist() == pytest.approx([4 / 6, 12 / 6])


@pytest.mark.parametrize("wanted", ["x", "1,-1", "0,1", "nan,1", "inf,1", ""])
def test_bad_weights_are_refused(wanted: str) -> None:
    (fault,) = loss_faults(wanted, 0.0, 0.0)
    assert fault.startswith(f"class_weights: got {wanted!r}; expected none, balanced")


@pytest.mark.parametrize(("gamma", "smoothing"), [(-1.0, 0.0), (math.nan, 0.0), (0.0, 1.0)])
def test_bad_numbers_are_refused(gamma: float, smoothing: float) -> None:
    assert len(loss_faults("none", gamma, smoothing)) == 1


def test_weights_must_fit_the_labels() -> None:
    (fault,) = class_weight_faults("1,2,3", {"no": 1, "yes": 1})
    assert "got 3 numbers; expected 2, for no, yes" in fault
    (fault,) = class_weight_faults("balanced", {"no": 2, "yes": 0})
    assert "no training example of yes" in fault


ALL_LOSSES = {"label_smoothing_factor": 0.1, "class_weights": "0.7,0.3", "focal_gamma": 1.0}
DESCENT = {
    **{"optim": "sgd", "learning_rate": 1.0, "head_learning_rate": 1.0, "max_steps": 1},
    **{"max_grad_norm": 0.0, "warmup_steps": 0, "train_sampling_strategy": "sequential"},
    **{"layer_decay": 1.0, "dropout": 0.0, "bf16": False},
}


@pytest.fixture(scope="module")
def nine_examples(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    header = ("sentence1", "sentence2", "label")
    path = str(write_csv(tmp_path_factory.mktemp("nine") / "train.csv", ROWS, header))
    return DataConfig(train_file=path, validation_file=path)


@pytest.mark.parametrize("losses", [{}, ALL_LOSSES], ids=["plain", "all"])
@pytest.mark.parametrize("pooling", ["native", "segments"])
def test_accumulated_batches_give_the_step_of_one_large_batch(
    pooling: str,
    losses: dict[str, Any],
    nine_examples: DataConfig,
    build_tiny: Callable[..., Any],
) -> None:
    options = {**DESCENT, **losses, "pooling": pooling, "data": nine_examples}
    # The accumulated batches are of 4, 4 and 1 examples.
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    trainers = [
        build_tiny("full", **options, **size).trainer
        for size in ({"per_device_train_batch_size": 9}, sizes)
    ]
    for trainer in trainers:
        trainer.train()
    one, three = (trainer.model for trainer in trainers)
    for (name, value), other in zip(one.named_parameters(), three.parameters(), strict=True):
        assert torch.allclose(value, other, atol=1e-6), name


@pytest.mark.parametrize("pooling", ["native", "segments"])
def test_a_step_is_that_of_the_weighted_smoothed_cross_entropy(
    pooling: str, nine_examples: DataConfig, build_tiny: Callable[..., Any]
) -> None:
    options = {**DESCENT, **ALL_LOSSES, "focal_gamma": 0.0, "pooling": pooling}
    trainer = build_tiny(
        "full", **options, data=nine_examples, per_device_train_batch_size=9
    ).trainer
    model = trainer.model
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(9)])
    labels = batch.pop("labels")
    # The divisor of torch's mean is the sum of the weights of all examples, as ours is.
    weights = torch.tensor([0.7, 0.3])
    cross_entropy(model(**batch).logits, labels, weights, label_smoothing=0.1).backward()
    parameters = dict(model.named_parameters())
    expected = {n: (p - p.grad).detach() for n, p in parameters.items() if p.grad is not None}
    model.zero_grad()
    trainer.train()
    for name, parameter in expected.items():
        assert torch.allclose(parameters[name], parameter, atol=1e-6), name
