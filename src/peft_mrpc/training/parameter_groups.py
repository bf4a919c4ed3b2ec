"""Parameter groups: the learning rate of the head and layer-wise learning rate decay."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from peft_mrpc.models.architecture import (
    base_classifier,
    encoder_layers,
    head_parameter_ids,
    modules_after_layers,
)


def learning_rates(
    model: nn.Module,
    learning_rate: float,
    head_learning_rate: float | None,
    layer_decay: float | None,
) -> dict[int, float]:
    """Learning rates that differ from `learning_rate`, by the identity of the parameter.

    Discriminative fine-tuning (arXiv:1801.06146, section 3.2; arXiv:2006.05987): layer l of L
    trains at `learning_rate * layer_decay ** (L - 1 - l)`, including what a method adds to it, and
    the embeddings at `learning_rate * layer_decay ** L`. Modules after the layers and virtual
    tokens belong to no layer and train at `learning_rate`.

    Args:
        model: The model to train, with or without PEFT.
        learning_rate: Peak rate of the last layer.
        head_learning_rate: Peak rate of the head; None for `learning_rate`.
        layer_decay: Ratio of the rates of a layer and the layer above it; None for 1.
    Raises:
        UserError: If `layer_decay` is given and the model has no stack of layers.
    """
    rates: dict[int, float] = {}
    if layer_decay is not None:
        classifier = base_classifier(model)
        layers = encoder_layers(classifier)
        depths: list[tuple[nn.Module, int]] = [(classifier.base_model, len(layers))]
        # Later entries are parts of the first one and overwrite its rate.
        depths += [(layer, len(layers) - 1 - number) for number, layer in enumerate(layers)]
        depths += [(module, 0) for module in modules_after_layers(classifier)]
        for module, depth in depths:
            rate = learning_rate * layer_decay**depth
            rates |= {id(parameter): rate for parameter in module.parameters()}
    if head_learning_rate is not None:
        rates |= dict.fromkeys(head_parameter_ids(model), head_learning_rate)
    return {key: rate for key, rate in rates.items() if rate != learning_rate}


def split_groups(
    groups: Iterable[Mapping[str, Any]], rates: Mapping[int, float], learning_rate: float
) -> list[dict[str, Any]]:
    """Split parameter groups by learning rate.

    Args:
        groups: Of an optimizer to be built.
        rates: Of single parameters, by identity.
        learning_rate: Of all others. Its groups come first: the Trainer logs the first group's.
    """
    split: list[dict[str, Any]] = []
    for group in groups:
        by_rate: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(rates.get(id(parameter), learning_rate), []).append(parameter)
        split += [{**group, "params": params, "lr": rate} for rate, params in by_rate.items()]
    return sorted(split, key=lambda group: group["lr"] != learning_rate)
