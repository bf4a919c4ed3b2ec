"""Which layers train: selection, and the callback that holds frozen layers still."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from peft_mrpc.errors import UserError, logger

# What stands in an encoder after its layers.
AFTER_THE_LAYERS = ("pooler", "norm", "final_norm", "final_layer_norm", "ln_f")
# What sequence classifiers of transformers, and ours, call their head.
HEAD_NAMES = ("classifier", "score", "pre_classifier", "head")


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of transformer layers, whatever the architecture calls it.

    Raises:
        UserError: If the model has no such stack.
    """
    depth = getattr(model.config, "num_hidden_layers", None)
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise UserError(f"--model: found no stack of {depth} layers in {type(model).__name__}.")


def frozen_modules(model: PreTrainedModel, num_unfrozen_layers: int) -> list[nn.Module]:
    """All of the encoder but its last `num_unfrozen_layers` layers and what stands after them.

    What stands after them is the pooler or the final norm; DeBERTa's relative embeddings, which
    feed every layer, are frozen like any embeddings.

    Raises:
        UserError: If the model has fewer layers than are to be unfrozen.
    """
    layers = encoder_layers(model)
    if not 0 <= num_unfrozen_layers <= len(layers):
        raise UserError(
            f"--num_unfrozen_layers: got {num_unfrozen_layers}; {model.config.model_type} here has "
            f"{len(layers)} layers, expected 0 to {len(layers)}."
        )
    base = model.base_model
    trained: list[nn.Module] = list(layers[len(layers) - num_unfrozen_layers :])
    trained += [child for name, child in base.named_children() if name in AFTER_THE_LAYERS]
    return _modules_without(base, trained)


def _modules_without(module: nn.Module, trained: list[nn.Module]) -> list[nn.Module]:
    """The largest modules inside `module` that hold none of `trained`."""
    if any(module is one for one in trained):
        return []
    inside = [one for one in trained if any(part is one for part in module.modules())]
    if not inside:
        return [module]
    return [part for child in module.children() for part in _modules_without(child, inside)]


class FreezeCallback(TrainerCallback):
    """Freeze some modules, keep them in eval mode, and say what trains.

    The Trainer builds its optimizer before `on_train_begin` and calls `model.train()` before every
    step: so parameters are frozen in `on_init_end`, and each frozen module goes back to eval mode
    (no dropout) just before it runs, by a hook that lasts as long as the training.

    Args:
        method: Name of the method, for the log.
        select: The modules of a model to freeze.
    """

    def __init__(
        self, method: str, select: Callable[[PreTrainedModel], Sequence[nn.Module]]
    ) -> None:
        self.method = method
        self.select = select
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._trainable: list[str] = []

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        for module in self.select(model):
            module.requires_grad_(False)
        self._trainable = trainable_names(model)
        logger.info("%s: %s", self.method, describe_trainable(model))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        # A later callback or a resumed checkpoint may have touched requires_grad.
        assert trainable_names(model) == self._trainable, "frozen parameters were unfrozen"
        for module in self.select(model):
            self._hooks.append(module.register_forward_pre_hook(_to_eval_mode))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _to_eval_mode(module: nn.Module, args: tuple[Any, ...]) -> None:
    module.eval()


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that receive gradients."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def head_parameter_ids(model: nn.Module) -> set[int]:
    """Identities of the parameters outside the encoder and outside PEFT's own parts: the head."""
    return {
        id(parameter)
        for name, parameter in model.named_parameters()
        if any(part in HEAD_NAMES for part in name.split("."))
    }


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """How many numbers train, and how many there are (a 4-bit weight counts unpacked).

    PEFT keeps a head that it trains twice, as it came and as it is trained: that is one head.
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
    """One line on what trains: count, share, and the modules."""
    trainable, total = parameter_counts(model)
    modules = dict.fromkeys(_module_of(name) for name in trainable_names(model))
    # A module with parameters of its own and in parts of it is named once.
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
