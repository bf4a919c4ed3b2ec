"""The training loss: cross-entropy with class weights, focal loss and label smoothing.

Shapes: B batch, C classes.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

# Keeps the focal factor differentiable at a probability of 1 for gamma below 1.
MIN_COMPLEMENT = 1e-12


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    num_items: Tensor | int | None = None,
    *,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Weighted focal cross-entropy with smoothed labels.

    The loss of an example is the sum over classes c of w_c q_c (1 - p_c)^gamma (-log p_c). q is the
    true label with `label_smoothing` spread evenly over all classes (arXiv:1512.00567, section 7);
    gamma reduces the loss of examples with a correct prediction (arXiv:1708.02002, section 3.2).
    For gamma 0 this is the sum of torch's `cross_entropy(weight, label_smoothing)`.

    Args:
        logits: [B, C].
        labels: True label indices, [B].
        num_items: Divisor of the sum: the examples of an optimizer step in all batches on all
            processes, so that their gradients add up to that of one large batch. B if None.
        class_weights: w, [C]; ones if None.
        focal_gamma: gamma.
        label_smoothing: Share of each label spread over the classes.
    """
    log_p = torch.log_softmax(logits.float(), dim=-1)  # [B, C]
    num_classes = log_p.shape[-1]
    truth = one_hot(labels, num_classes) * (1 - label_smoothing) + label_smoothing / num_classes
    terms = -truth * log_p
    if focal_gamma:
        terms = terms * (-torch.expm1(log_p)).clamp(min=MIN_COMPLEMENT) ** focal_gamma
    if class_weights is not None:
        terms = terms * class_weights.to(terms)
    return terms.sum() / (len(labels) if num_items is None else num_items)


def loss_faults(class_weights: str, focal_gamma: float, label_smoothing: float) -> list[str]:
    """Errors in the options of the loss that do not depend on the data."""
    faults = []
    if class_weights not in ("none", "balanced") and _numbers(class_weights) is None:
        faults.append(
            f"class_weights: got {class_weights!r}; expected none, balanced, or numbers above 0, "
            "comma-separated, one for each label."
        )
    if not (math.isfinite(focal_gamma) and focal_gamma >= 0):
        faults.append(f"focal_gamma: got {focal_gamma}; expected 0 or more.")
    if not 0 <= label_smoothing < 1:
        faults.append(
            f"label_smoothing_factor: got {label_smoothing}; expected at least 0, less than 1."
        )
    return faults


def _numbers(text: str) -> list[float] | None:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return numbers if all(math.isfinite(n) and n > 0 for n in numbers) else None


def class_weight_faults(option: str, counts: Mapping[str, int]) -> list[str]:
    """Errors in the class weights for some training examples.

    Args:
        option: The value of `class_weights`, which has passed `loss_faults`.
        counts: Number of training examples of each label name.
    """
    numbers = _numbers(option)
    if numbers is not None and len(numbers) != len(counts):
        return [
            f"class_weights: got {len(numbers)} numbers; expected {len(counts)}, for "
            f"{', '.join(counts)}."
        ]
    absent = [name for name, count in counts.items() if not count]
    if option == "balanced" and absent:
        return [
            f"class_weights: got balanced, but there is no training example of "
            f"{', '.join(absent)}; expected some of each label, or numbers."
        ]
    return []


def build_class_weights(option: str, counts: Mapping[str, int]) -> Tensor | None:
    """The weight of each class, [C]; None for equal weights.

    The weights have a mean of 1 over the training examples, so that the learning rate need not
    change with them.

    Args:
        option: `none`, `balanced` (the examples of each class weigh the same in total), or numbers.
        counts: Number of training examples of each label name; they have passed
            `class_weight_faults`.
    """
    if option == "none":
        return None
    examples = torch.tensor([*counts.values()]).double()
    numbers = _numbers(option)
    weights = 1 / examples if numbers is None else torch.tensor(numbers).double()
    return weights * examples.sum() / (weights * examples).sum()


def build_loss(
    class_weights: Tensor | None, focal_gamma: float, label_smoothing: float
) -> Callable[..., Tensor]:
    """The loss as a `compute_loss_func` of the Trainer.

    It is also used without any option of the loss. The heads of BERT return a mean and ignore
    `num_items_in_batch`; the Trainer does not divide it by the accumulated batches, so that the
    gradient is too large by their number (transformers 5.23).
    """
    loss = partial(
        classification_loss,
        class_weights=class_weights,
        focal_gamma=focal_gamma,
        label_smoothing=label_smoothing,
    )

    def compute(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return loss(outputs["logits"], labels, num_items_in_batch)

    return compute
