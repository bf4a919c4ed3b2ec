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
    build_loss,
    class_weight_faults,
    loss_faults,
)


def some_logits(num_classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return 3 * torch.randn(8, num_classes), torch.randint(num_classes, (8,))


def test_a_smoothed_weighted_loss_by_hand() -> None:
    # Smoothing 0.2 over two classes: the truth "no" becomes (0.9, 0.1).
    logits = torch.tensor([[math.log(0.7), math.log(0.3)]])
    compute = build_loss(torch.tensor([2.0, 0.5]), 0.2)
    by_hand = 2.0 * 0.9 * -math.log(0.7) + 0.5 * 0.1 * -math.log(0.3)
    loss = compute({"logits": logits}, torch.tensor([0]))
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert compute({"logits": logits}, torch.tensor([0]), 4).item() == pytest.approx(by_hand / 4)


def test_over_all_training_pairs_it_is_torchs_weighted_mean() -> None:
    logits, labels = some_logits()
    weights = build_class_weights(
        "0.2,1,3", {name: labels.tolist().count(label) for label, name in enumerate("abc")}
    )
    mean = cross_entropy(logits, labels, torch.tensor([0.2, 1.0, 3.0]))
    assert torch.allclose(build_loss(weights, 0.0)({"logits": logits}, labels), mean)


def test_weights_have_mean_one_over_the_pairs() -> None:
    assert build_class_weights("none", {"no": 1, "yes": 1}) is None
    balanced = build_class_weights("balanced", {"no": 1, "yes": 3})
    assert balanced is not None and balanced.tolist() == pytest.approx([2.0, 2 / 3])
    weights = build_class_weights("1,3", {"no": 3, "yes": 1})
    assert weights is not None and weights.tolist() == pytest.approx([4 / 6, 12 / 6])


@pytest.mark.parametrize("wanted", ["x", "1,-1", "0,1", "nan,1", "inf,1", ""])
def test_bad_weights_are_refused(wanted: str) -> None:
    (fault,) = loss_faults(wanted, 0.0)
    assert fault.startswith(f"class_weights: got {wanted!r}; expected none, balanced")


def test_a_smoothing_of_one_is_refused() -> None:
    assert len(loss_faults("none", 1.0)) == 1


def test_weights_must_fit_the_labels() -> None:
    (fault,) = class_weight_faults("1,2,3", {"no": 1, "yes": 1})
    assert "got 3 numbers; expected 2, for no, yes" in fault
    (fault,) = class_weight_faults("balanced", {"no": 2, "yes": 0})
    assert "no training example of yes" in fault


ALL_LOSSES = {"label_smoothing_factor": 0.1, "class_weights": "0.7,0.3"}
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
    options = {**DESCENT, **ALL_LOSSES, "pooling": pooling}
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
