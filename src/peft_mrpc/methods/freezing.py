"""The callback that freezes parameters and keeps frozen modules in eval mode."""

import logging
from collections.abc import Callable, Iterable, Sequence
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

from peft_mrpc.models.architecture import describe_trainable, encoder_layers, trainable_names

logger = logging.getLogger(__name__)


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
    """Freeze parameters, keep frozen modules in eval mode, and log the trainable parameters.

    The Trainer builds its optimizer before `on_train_begin`, so parameters are frozen in
    `on_init_end`. It calls `model.train()` before every step, so a hook sets each frozen module to
    eval mode (no dropout) before it runs.

    With several stages the encoder is unfrozen gradually (arXiv:1801.06146, section 3.3). DDP does
    not allow `requires_grad` to change during the training, so only the parameters of the last
    stage have none. The gradients of those that an earlier stage freezes are dropped before each
    optimizer step: no update, no weight decay, no momentum. The stage depends on the epoch alone,
    also in a resumed training.

    Args:
        method: Name of the method, for the log.
        select: The parameters of a model to freeze, for each stage.
        every: Epochs of a stage; None for a single stage.
    """

    def __init__(
        self,
        method: str,
        select: Callable[[PreTrainedModel], Sequence[Sequence[nn.Parameter]]],
        every: float | None = None,
    ) -> None:
        self.method = method
        self.select = select
        self.every = every
        self._stages: Sequence[Sequence[nn.Parameter]] = []
        self._stage = 0
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._trainable: list[str] = []

    def freeze(self, model: PreTrainedModel) -> str:
        """Freeze the parameters of the last stage; a description of the others."""
        stages = self.select(model)
        for parameter in stages[-1]:
            parameter.requires_grad = False
        schedule = ""
        if self.every is not None:
            schedule = f"; the last {len(stages) - 1} layers one by one every {self.every:g} epochs"
        return describe_trainable(model) + schedule

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        logger.info("%s: %s", self.method, self.freeze(model))
        self._trainable = trainable_names(model)

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
        self._stages = self.select(model)
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
            logger.info("%s: epoch %.2f, %s unfrozen", self.method, state.epoch, layers)
        self._stage = stage

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._stage < len(self._stages) - 1:
            logger.warning(
                "%s: the training ended with %d of %d layers unfrozen; lower unfreeze_every",
                *(self.method, self._stage, len(self._stages) - 1),
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
