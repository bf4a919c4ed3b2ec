import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROWS, write_csv
from torch.nn.functional import cross_entropy

from peft_mrpc.data import load_pairs
from peft_mrpc.errors import UserError
from peft_mrpc.losses import build_class_weights, classification_loss, loss_faults
from peft_mrpc.models import find_model
from peft_mrpc.train import build_classifier, parse_request
from peft_mrpc.training import build_trainer

NAMES = ["no", "yes"]


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
    weights = build_class_weights("0.2,1,3", labels.tolist(), ["a", "b", "c"])
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
    assert build_class_weights("none", [0, 1], NAMES) is None
    balanced = build_class_weights("balanced", [0, 1, 1, 1], NAMES)
    assert balanced is not None and balanced.tolist() == pytest.approx([2.0, 2 / 3])
    given = build_class_weights("1,3", [0, 0, 0, 1], NAMES)
    assert given is not None and given.tolist() == pytest.approx([4 / 6, 12 / 6])


@pytest.mark.parametrize("wanted", ["x", "1,-1", "0,1", "nan,1", "inf,1", ""])
def test_bad_weights_are_refused(wanted: str) -> None:
    (fault,) = loss_faults(wanted, 0.0, 0.0)
    assert fault.startswith(f"--class_weights: got {wanted!r}; expected none, balanced")


@pytest.mark.parametrize(("gamma", "smoothing"), [(-1.0, 0.0), (math.nan, 0.0), (0.0, 1.0)])
def test_bad_numbers_are_refused(gamma: float, smoothing: float) -> None:
    assert len(loss_faults("none", gamma, smoothing)) == 1


def test_weights_must_fit_the_labels() -> None:
    with pytest.raises(UserError, match="got 3 numbers; expected 2, for no, yes"):
        build_class_weights("1,2,3", [0, 1], NAMES)
    with pytest.raises(UserError, match="no training pair is yes"):
        build_class_weights("balanced", [0, 0], NAMES)


def one_step(tmp_path: Path, train_file: str, model: str, pooling: str, *flags: str) -> Any:
    """What one optimizer step of plain descent, unclipped and without dropout, gives."""
    request = parse_request(
        ["--method", "full", "--model", model, "--pooling", pooling, "--max_steps", "1"]
        + ["--train_file", train_file, "--validation_file", train_file]
        + ["--optim", "sgd", "--learning_rate", "1", "--max_grad_norm", "0", "--warmup_steps", "0"]
        + ["--label_smoothing_factor", "0.1", "--focal_gamma", "1", "--class_weights", "0.7,0.3"]
        + ["--train_sampling_strategy", "sequential", "--disable_tqdm", "true", *flags]
    )
    torch.manual_seed(0)
    data = load_pairs(request.data)
    classifier = build_classifier(request, find_model(model), data)
    for module in classifier.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer, _ = build_trainer(request, data, classifier, str(tmp_path))
    trainer.train()
    return {name: p.detach().clone() for name, p in classifier.model.named_parameters()}


@pytest.mark.parametrize("pooling", ["native", "segments"])
def test_accumulated_batches_give_the_step_of_one_big_batch(
    pooling: str, tiny_bert: str, tmp_path: Path
) -> None:
    # 9 pairs, so that the batches accumulated are 4, 4 and 1.
    header = ("sentence1", "sentence2", "label")
    train = str(write_csv(tmp_path / "train.csv", ROWS, header))
    size = "--per_device_train_batch_size"
    big = one_step(tmp_path, train, tiny_bert, pooling, size, "9")
    steps = ["--gradient_accumulation_steps", "3"]
    small = one_step(tmp_path, train, tiny_bert, pooling, size, "4", *steps)
    for name, parameter in big.items():
        assert torch.allclose(parameter, small[name], atol=1e-6), name
