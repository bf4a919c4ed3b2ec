"""Freezing: the method `layer_freeze`, and the callback of every method that freezes modules."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
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

from peft_mrpc.config import option
from peft_mrpc.errors import UserError, closest, raise_faults
from peft_mrpc.methods.target_modules import encoder_type
from peft_mrpc.models.architecture import (
    encoder_layers,
    modules_after_layers,
    modules_before_layers,
)

logger = logging.getLogger(__name__)

NUM_UNFROZEN_LAYERS = 2
# All modules before the first layer, in every architecture.
EMBEDDINGS = "embeddings"


@dataclass
class LayerFreezeOptions:
    """Options of `layer_freeze`.

    Raises:
        UserError: For invalid values, and for options that exclude each other.
    """

    num_unfrozen_layers: int | None = option(
        None,
        f"number of last encoder layers that train (default: {NUM_UNFROZEN_LAYERS})",
    )
    unfrozen_modules: list[str] | None = option(  # noqa: RUF009 - a list as a type only
        None, "modules to train in addition: embeddings, or names or patterns of encoder modules"
    )
    frozen_modules: list[str] | None = option(  # noqa: RUF009
        None, "modules to freeze; all others train"
    )
    unfreeze_every: float | None = option(
        None,
        "gradual unfreezing: train the head first, then unfreeze one layer, from the last, every "
        "so many epochs",
    )

    def __post_init__(self) -> None:
        self.unfrozen_modules = _as_names(self.unfrozen_modules)
        self.frozen_modules = _as_names(self.frozen_modules)
        raise_faults(self._faults())
        if self.frozen_modules is None and self.num_unfrozen_layers is None:
            self.num_unfrozen_layers = NUM_UNFROZEN_LAYERS

    def _faults(self) -> list[str]:
        faults = [
            f"{name}: got no names; expected names such as embeddings or encoder.layer.0."
            for name in ("unfrozen_modules", "frozen_modules")
            if getattr(self, name) == []
        ]
        number, every = self.num_unfrozen_layers, self.unfreeze_every
        if number is not None and type(number) is not int:
            faults.append(f"num_unfrozen_layers: got {number!r}; expected an integer.")
        if every is not None and not _is_positive(every):
            faults.append(f"unfreeze_every: got {every!r}; expected a number of epochs above 0.")
        if self.frozen_modules is not None:
            faults += [
                f"frozen_modules: got {name} as well, but all modules that are not frozen train. "
                "Remove one of the two."
                for name in ("num_unfrozen_layers", "unfrozen_modules", "unfreeze_every")
                if getattr(self, name) is not None
            ]
        elif every is not None and number == 0:
            faults.append(
                f"unfreeze_every: got {every}, but num_unfrozen_layers is 0, so there is no layer "
                "to unfreeze. Remove one of the two."
            )
        return faults


def warn_layers_never_unfrozen(options: Any, arguments: TrainingArguments) -> None:
    """Warn if the training ends before gradual unfreezing reaches all layers."""
    every, wanted = (getattr(options, n, None) for n in ("unfreeze_every", "num_unfrozen_layers"))
    if every is None or wanted is None or arguments.max_steps > 0:
        return
    # A layer that is unfrozen at the end of the last epoch takes no step.
    reached = max(0, math.ceil(arguments.num_train_epochs / every - 1e-6) - 1)
    if reached < wanted:
        logger.warning(
            "unfreeze_every: %g epochs per layer, so %g epochs unfreeze %d of %d layers; lower it",
            every,
            arguments.num_train_epochs,
            reached,
            wanted,
        )


def describe_schedule(options: Any) -> str:
    """Describe gradual unfreezing, as a clause; empty without it."""
    every = getattr(options, "unfreeze_every", None)
    if every is None:
        return ""
    return f"; the last {options.num_unfrozen_layers} layers one by one every {every:g} epochs"


def _as_names(value: Any) -> list[str] | None:
    """Convert one name, several names, or an option without a value (True) to a list."""
    if value is None:
        return None
    values = value if isinstance(value, list) else [] if value is True else [value]
    return [str(name) for name in values]


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def layer_freeze_stages(
    model: PreTrainedModel, options: LayerFreezeOptions
) -> list[list[nn.Parameter]]:
    """Return the parameters to freeze in each stage; without gradual unfreezing there is one.

    The head is not part of the encoder and always trains. Modules after the layers (poolers, final
    norms) train too.

    Raises:
        UserError: If the model has fewer layers than `num_unfrozen_layers`, or lacks a module.
    """
    if options.frozen_modules is not None:
        frozen = find_modules(model, options.frozen_modules, "frozen_modules")
        return [[parameter for part in frozen for parameter in part.parameters()]]
    layers, number = encoder_layers(model), options.num_unfrozen_layers
    if number is None or not 0 <= number <= len(layers):
        raise UserError(
            f"num_unfrozen_layers: got {number}; {encoder_type(model.config)} here has "
            f"{len(layers)} layers; expected 0 to {len(layers)}."
        )
    trained = modules_after_layers(model)
    trained += find_modules(model, options.unfrozen_modules or [], "unfrozen_modules")
    first = number if options.unfreeze_every is None else 0
    return [
        _parameters_without(model.base_model, [*trained, *layers[len(layers) - last :]])
        for last in range(first, number + 1)
    ]


def _parameters_without(module: nn.Module, trained: Sequence[nn.Module]) -> list[nn.Parameter]:
    inside = {id(parameter) for part in trained for parameter in part.parameters()}
    return [parameter for parameter in module.parameters() if id(parameter) not in inside]


def find_modules(model: PreTrainedModel, names: Sequence[str], where: str) -> list[nn.Module]:
    """Return the encoder modules of these names.

    Args:
        model: The model.
        names: Each one is `embeddings` (all modules before the first layer), the end of a dotted
            path (`encoder.layer.0`, `attention`), or a shell-style pattern (`layer.[01]`).
        where: Name of the option, for messages.
    Raises:
        UserError: For each name that matches no module with parameters.
    """
    known = {
        path: module
        for path, module in model.base_model.named_modules()
        if path and any(True for _ in module.parameters())
    }
    matches = {name: _find_module(model, name, known) for name in names}
    ends = {path.split(".", cut)[-1] for path in known for cut in range(path.count(".") + 1)}
    raise_faults(
        [
            f"{where}: got {name!r}, which matches no module of the encoder; expected a name such "
            f"as {EMBEDDINGS} or {_first_layer(model, known)}.{closest(name, {EMBEDDINGS, *ends})}"
            for name, modules in matches.items()
            if not modules
        ]
    )
    return [module for modules in matches.values() for module in modules]


def _find_module(
    model: PreTrainedModel, name: str, known: Mapping[str, nn.Module]
) -> list[nn.Module]:
    if name == EMBEDDINGS:
        return modules_before_layers(model)
    patterns = (name, f"*.{name}")  # the end of a path matches too
    return [
        module
        for path, module in known.items()
        if any(fnmatchcase(path, pattern) for pattern in patterns)
        # The name in the log and in `run.json`.
        or name == f"{model.base_model_prefix}.{path}"
    ]


def _first_layer(model: PreTrainedModel, known: Mapping[str, nn.Module]) -> str:
    first = encoder_layers(model)[0]
    return next(path for path, module in known.items() if module is first)


def frozen_modules(model: PreTrainedModel, frozen: Iterable[nn.Parameter]) -> list[nn.Module]:
    """The largest modules of the encoder whose parameters are all frozen.

    Args:
        model: The model.
        frozen: Its frozen parameters.
    """
    if not any(parameter.requires_grad for parameter in model.base_model.parameters()):
        return [model.base_model]
    frozen_ids = {id(parameter) for parameter in frozen}
    layers = encoder_layers(model)

    def largest(module: nn.Module) -> list[nn.Module]:
        holds_layers = any(part is layers for part in module.modules())
        # A list is not called as a module, and its layers are checkpointed one by one.
        is_container = holds_layers or isinstance(module, nn.ModuleList)
        if not is_container and all(id(p) in frozen_ids for p in module.parameters()):
            return [module]
        children = [
            child
            for child in module.children()
            if holds_layers or any(True for _ in child.parameters())
        ]
        return [part for child in children for part in largest(child)]

    return largest(model.base_model)


class FreezeCallback(TrainerCallback):
    """Keep frozen modules in eval mode, and unfreeze layers gradually.

    The Trainer calls `model.train()` before every step, so a hook sets each frozen module to eval
    mode (no dropout) before it runs.

    With several stages the encoder is unfrozen gradually (arXiv:1801.06146, section 3.3). DDP does
    not allow `requires_grad` to change during the training, so only the parameters of the last
    stage have none. The gradients of those that an earlier stage freezes are dropped before each
    optimizer step: no update, no weight decay, no momentum. The stage depends on the epoch alone,
    also in a resumed training.

    Args:
        stages: The frozen parameters of each stage.
        every: Epochs of a stage; None for a single stage.
    """

    def __init__(
        self, stages: Sequence[Sequence[nn.Parameter]], every: float | None = None
    ) -> None:
        self.every = every
        self._stages = stages
        self._stage = 0
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        self._stage = self._stage_at(state)
        for number, frozen in enumerate(self._stages):
            for module in frozen_modules(model, frozen):
                hook = partial(self._to_eval_mode, number)
                self._hooks.append(module.register_forward_pre_hook(hook))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        stage = self._stage_at(state)
        if stage > self._stage:
            layers = "the last layer" if stage == 1 else f"the last {stage} layers"
            logger.info("layer_freeze: epoch %.2f, %s unfrozen", state.epoch, layers)
        self._stage = stage

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._stage < len(self._stages) - 1:
            logger.warning(
                "unfreeze_every: the training ended with %d of %d layers unfrozen; lower it",
                self._stage,
                len(self._stages) - 1,
            )

    def drop_gradients(self) -> None:
        """Drop the gradients of the parameters that the current stage freezes."""
        for parameter in self._stages[self._stage]:
            parameter.grad = None

    def _stage_at(self, state: TrainerState) -> int:
        if self.every is None:
            return 0
        # 0.3 / 0.1 is less than 3 by rounding.
        passed = int((state.epoch or 0) / self.every + 1e-6)
        return min(passed, len(self._stages) - 1)

    def _to_eval_mode(self, stage: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        if stage == self._stage:
            is_checkpointed = module.training and getattr(module, "gradient_checkpointing", False)
            module.eval()
            # Layers are checkpointed in training mode only; their dropout modules are in eval mode.
            module.training = is_checkpointed
