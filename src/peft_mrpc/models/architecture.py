"""Encoder introspection: the stack of layers, what surrounds it, the head, and parameter counts."""

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from peft_mrpc.errors import UserError

# Modules that encoders apply after their layers.
MODULES_AFTER_LAYERS = ("pooler", "norm", "final_norm", "final_layer_norm", "ln_f")
# Names of the head in the sequence classifiers of transformers and in ours.
HEAD_NAMES = ("classifier", "score", "pre_classifier", "head")


def base_classifier(model: nn.Module) -> Any:
    """The transformers model, without the PEFT wrapper that it may have."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of transformer layers, whatever the architecture calls it.

    Raises:
        UserError: If the model has no such stack.
    """
    if (layers := _find_layers(model)) is not None:
        return layers
    depth = getattr(model.config, "num_hidden_layers", None)
    raise UserError(f"model: got {type(model).__name__}, which has no stack of {depth} layers.")


def has_layers(model: PreTrainedModel) -> bool:
    """Whether the model has a stack of layers (ALBERT repeats one layer and has none)."""
    return _find_layers(model) is not None


def _find_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    depth = getattr(model.config, "num_hidden_layers", None)
    stacks = (m for m in model.base_model.modules() if isinstance(m, nn.ModuleList))
    return next((stack for stack in stacks if len(stack) == depth), None)


def modules_before_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that compute the input of the first layer: embeddings and their projection.

    DeBERTa's relative embeddings are not among them: they are an input of every layer.
    """
    layers = encoder_layers(model)
    parent: nn.Module = model.base_model
    before: list[nn.Module] = []
    while parent is not layers:
        for child in parent.children():
            if any(part is layers for part in child.modules()):
                parent = child
                break
            before.append(child)
    return before


def modules_after_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules of the encoder that run after its layers: the pooler or the final norm."""
    return [
        child for name, child in model.base_model.named_children() if name in MODULES_AFTER_LAYERS
    ]


def num_virtual_tokens(model: nn.Module) -> int:
    """How many virtual tokens an adapter adds to the input sequence of each example."""
    adapter = getattr(model, "active_peft_config", None)
    if adapter is None or not adapter.is_prompt_learning or adapter.peft_type == "PREFIX_TUNING":
        return 0
    return int(adapter.num_virtual_tokens)


def is_trained(module: nn.Module) -> bool:
    """Whether a parameter of the module receives gradients."""
    return any(parameter.requires_grad for parameter in module.parameters())


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that receive gradients."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def head_parameter_ids(model: nn.Module) -> set[int]:
    """Identities of the parameters outside the encoder and outside PEFT's own modules: the head.

    DeBERTa's pooler is part of the head: it is a sibling of the encoder and newly initialized.
    """
    classifier = base_classifier(model)
    encoder = {id(parameter) for parameter in classifier.base_model.parameters()}
    return {id(parameter) for parameter in classifier.parameters()} - encoder


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """The numbers of trainable and of all parameters (4-bit weights are counted unpacked).

    PEFT holds a head that it trains twice, as loaded and as trained: it is counted once.
    """
    trainable = total = 0
    for name, parameter in model.named_parameters():
        if "original_module" in name.split("."):
            continue
        shape = getattr(getattr(parameter, "quant_state", None), "shape", parameter.shape)
        count = shape.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def describe_trainable(model: nn.Module) -> str:
    """One line: how many parameters train, their share, and their modules."""
    trainable, total = parameter_counts(model)
    modules = dict.fromkeys(_module_of(name) for name in trainable_names(model))
    # A module inside another one of the list is not repeated.
    outer = [m for m in modules if not any(m.startswith(f"{other}.") for other in modules)]
    return (
        f"{trainable:,} of {total:,} parameters train ({trainable / total:.2%}): {', '.join(outer)}"
    )


def _module_of(name: str) -> str:
    """`bert.encoder.layer.4.attention.self.query.weight` -> `bert.encoder.layer.4`."""
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    end = len(parts) - 1 if numbered is None else numbered + 1
    return ".".join(parts[:end])


def describe_parameters(model: nn.Module) -> dict[str, Any]:
    """Names and counts of the trainable parameters, for `run.json`."""
    trained, total = parameter_counts(model)
    return {"trained": trained, "total": total, "parameters": trainable_names(model)}
