"""The training loss: cross-entropy with class weights and label smoothing.

Shapes: B batch, C classes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def loss_faults(class_weights: str, label_smoothing: float) -> list[str]:
    """Errors in the options of the loss that do not depend on the data."""
    faults = []
    if class_weights not in ("none", "balanced") and _numbers(class_weights) is None:
        faults.append(
            f"class_weights: got {class_weights!r}; expected none, balanced, or numbers above 0, "
            "comma-separated, one for each label."
        )
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


def build_loss(class_weights: Tensor | None, label_smoothing: float) -> Callable[..., Tensor]:
    """The loss as a `compute_loss_func` of the Trainer.

    It is also used without any option of the loss. The heads of BERT return a mean and ignore
    `num_items_in_batch`; the Trainer does not divide it by the accumulated batches, so that the
    gradient is too large by their number (transformers 5.23).

    Args:
        class_weights: [C]; ones if None.
        label_smoothing: Share of each label spread over the classes (arXiv:1512.00567, section 7).
    Returns:
        The function. It divides the sum over a batch by `num_items_in_batch`, the examples of an
        optimizer step in all batches on all processes, so that their gradients add up to that of
        one large batch; by B without it.
    """

    def compute(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits = outputs["logits"].float()  # [B, C]
        weights = None if class_weights is None else class_weights.to(logits)
        loss = cross_entropy(
            logits, labels, weights, reduction="sum", label_smoothing=label_smoothing
        )
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return compute
