"""The training loss of every head: class weights, focusing and label smoothing, all in one.

Shapes: B batch, C classes.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from peft_mrpc.errors import UserError

# Keeps the power of a focusing below 1 differentiable where a probability is 1.
SMALLEST_MISS = 1e-12


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    num_items: Tensor | int | None = None,
    *,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Weighted, focused cross-entropy against smoothed labels.

    The loss of a pair is the sum over classes c of w_c q_c (1 - p_c)^gamma (-log p_c): q is the
    true label with `label_smoothing` spread evenly over all classes (arXiv:1512.00567, section 7),
    gamma turns the loss from pairs that are right already to those that are not
    (arXiv:1708.02002, section 3.2). Without focusing it is what torch's `cross_entropy(weight,
    label_smoothing)` sums.

    Args:
        logits: [B, C].
        labels: True label indices, [B].
        num_items: What the sum is divided by: pairs in all batches, on all processes, of one
            optimizer step, so that these together give the gradient of one large batch. B if None.
        class_weights: w, [C]; ones if None.
        focal_gamma: gamma.
        label_smoothing: Share of each label spread over the classes.
    """
    log_p = torch.log_softmax(logits.float(), dim=-1)  # [B, C]
    num_classes = log_p.shape[-1]
    truth = one_hot(labels, num_classes) * (1 - label_smoothing) + label_smoothing / num_classes
    terms = -truth * log_p
    if focal_gamma:
        terms = terms * (-torch.expm1(log_p)).clamp(min=SMALLEST_MISS) ** focal_gamma
    if class_weights is not None:
        terms = terms * class_weights.to(terms)
    return terms.sum() / (len(labels) if num_items is None else num_items)


def loss_faults(class_weights: str, focal_gamma: float, label_smoothing: float) -> list[str]:
    """What is wrong with the loss's flags, whatever the data."""
    faults = []
    if class_weights not in ("none", "balanced") and _numbers(class_weights) is None:
        faults.append(
            f"--class_weights: got {class_weights!r}; expected none, balanced, or numbers above 0, "
            "comma-separated, one for each label."
        )
    if not (math.isfinite(focal_gamma) and focal_gamma >= 0):
        faults.append(f"--focal_gamma: got {focal_gamma}; expected a number from 0.")
    if not 0 <= label_smoothing < 1:
        faults.append(
            f"--label_smoothing_factor: got {label_smoothing}; expected at least 0, less than 1."
        )
    return faults


def _numbers(text: str) -> list[float] | None:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return numbers if all(math.isfinite(n) and n > 0 for n in numbers) else None


def build_class_weights(
    wanted: str, labels: Sequence[int], label_names: Sequence[str]
) -> Tensor | None:
    """The weight of each class, [C], of mean 1 over the training pairs.

    So weighted, a training keeps its learning rate, whatever unit the weights were given in.

    Args:
        wanted: `none`, `balanced` (each class weighs as much as every other, summed over its
            pairs), or numbers.
        labels: Label indices of the training pairs, [N].
        label_names: Names of the C labels.
    Raises:
        UserError: If a class to be balanced has no pair, or the numbers are not C.
    """
    if wanted == "none":
        return None
    count_of = Counter(labels)
    counts = torch.tensor([count_of[label] for label in range(len(label_names))]).double()
    numbers = _numbers(wanted)
    if numbers is None:
        absent = [name for name, count in zip(label_names, counts, strict=True) if not count]
        if absent:
            raise UserError(
                f"--class_weights: got balanced, but no training pair is {', '.join(absent)}; "
                "expected some of each label, or weights of your own."
            )
        weights = 1 / counts
    elif len(numbers) != len(label_names):
        raise UserError(
            f"--class_weights: got {len(numbers)} numbers; expected {len(label_names)}, for "
            f"{', '.join(label_names)}."
        )
    else:
        weights = torch.tensor(numbers).double()
    return weights * counts.sum() / (weights * counts).sum()


def build_loss(
    class_weights: Tensor | None, focal_gamma: float, label_smoothing: float
) -> Callable[..., Tensor]:
    """The loss as the Trainer's `compute_loss_func` is called.

    It is always given: the Trainer takes the mean that a BERT head returns, whose forward swallows
    `num_items_in_batch`, for a sum over accumulated batches that was divided already, and so trains
    with as many times the gradient as there are batches in a step (transformers 5.23).
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
