"""A learning rate for each part of a model: the head's own, and lower ones for lower layers."""

from typing import Any

from peft import PeftModel
from torch import nn

from peft_mrpc.models.architecture import encoder_layers, head_parameter_ids, modules_after_layers


def learning_rates(
    model: nn.Module,
    learning_rate: float,
    head_learning_rate: float | None,
    layer_decay: float | None,
) -> dict[int, float]:
    """Rates that differ from `learning_rate`, by the identity of the parameter.

    Discriminative fine-tuning (arXiv:1801.06146, section 3.2; arXiv:2006.05987): layer l of L
    learns at `learning_rate * layer_decay ** (L - 1 - l)`, what a method has put into a layer as
    well, and embeddings at `learning_rate * layer_decay ** L`. What stands after the layers, the
    head and virtual tokens are in no layer, and keep their rates.

    Args:
        model: What is trained, under PEFT or not.
        learning_rate: Peak rate of the last layer.
        head_learning_rate: Peak rate of the head; None for `learning_rate`.
        layer_decay: The rate of each layer over that of the layer above; None for 1.
    Raises:
        UserError: If the layers are to differ and the model has no stack of them.
    """
    rates: dict[int, float] = {}
    if layer_decay is not None:
        own: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        layers = encoder_layers(own)
        depths: list[tuple[nn.Module, int]] = [(own.base_model, len(layers))]
        # Later entries are parts of the first one, and overwrite it.
        depths += [(layer, len(layers) - 1 - number) for number, layer in enumerate(layers)]
        depths += [(module, 0) for module in modules_after_layers(own)]
        for module, depth in depths:
            rate = learning_rate * layer_decay**depth
            rates |= {id(parameter): rate for parameter in module.parameters()}
    if head_learning_rate is not None:
        rates |= dict.fromkeys(head_parameter_ids(model), head_learning_rate)
    return {key: rate for key, rate in rates.items() if rate != learning_rate}
