"""The parts of an encoder, and the callback that holds what is frozen still."""

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

from peft_mrpc.errors import logger
from peft_mrpc.models.architecture import describe_trainable, encoder_layers, trainable_names


def frozen_modules(model: PreTrainedModel, frozen: Iterable[nn.Parameter]) -> list[nn.Module]:
    """The largest modules of the encoder in which nothing trains.

    A module that holds a trained part is not among them, nor is its own dropout.
    """
    if not any(parameter.requires_grad for parameter in model.base_model.parameters()):
        return [model.base_model]
    still = {id(parameter) for parameter in frozen}
    layers = encoder_layers(model)

    def largest(module: nn.Module) -> list[nn.Module]:
        holds_layers = any(part is layers for part in module.modules())
        # A list is never called as a module; layers that are each on their own can be checkpointed.
        is_opened = holds_layers or isinstance(module, nn.ModuleList)
        if not is_opened and all(id(parameter) in still for parameter in module.parameters()):
            return [module]
        inside = [
            child
            for child in module.children()
            if holds_layers or any(True for _ in child.parameters())
        ]
        return [one for child in inside for one in largest(child)]

    return largest(model.base_model)


class FreezeCallback(TrainerCallback):
    """Freeze some parameters, keep modules that are frozen whole in eval mode, say what trains.

    The Trainer builds its optimizer before `on_train_begin` and calls `model.train()` before every
    step: so parameters are frozen in `on_init_end`, and each frozen module goes back to eval mode
    (no dropout) just before it runs, by a hook that lasts as long as the training.

    With several stages the encoder is unfrozen step by step (gradual unfreezing, arXiv:1801.06146,
    section 3.3). DDP allows no change of `requires_grad` once it has begun, so only what the last
    stage freezes is frozen as PyTorch means it; what an earlier one freezes as well loses its
    gradients before each step of the optimizer, which then leaves it alone: no update, no weight
    decay, no momentum. The stage depends on the epoch alone, and so is the same in a training that
    goes on from a checkpoint.

    Args:
        method: Name of the method, for the log.
        select: The parameters of a model to freeze, in each stage.
        every: How many epochs a stage lasts, where there are several.
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
        """Freeze what the last stage does; what trains, in words."""
        stages = self.select(model)
        for parameter in stages[-1]:
            parameter.requires_grad = False
        how = ""
        if self.every is not None:
            how = f"; of the last {len(stages) - 1} layers one more every {self.every:g} epochs"
        return describe_trainable(model) + how

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
            last = "layer trains" if stage == 1 else f"{stage} layers train"
            logger.info("%s: epoch %.2f, the last %s", self.method, state.epoch, last)
        self._stage = stage

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._stage < len(self._stages) - 1:
            logger.warning(
                "%s: the training ended with %d of %d layers unfrozen; lower --unfreeze_every",
                *(self.method, self._stage, len(self._stages) - 1),
            )

    def drop_gradients(self) -> None:
        """Take the gradients from all that this stage freezes."""
        for parameter in self._stages[self._stage]:
            parameter.grad = None

    def _stage_at(self, state: TrainerState) -> int:
        if self.every is None:
            return 0
        # 0.3 / 0.1 is a little less than 3.
        passed = int((state.epoch or 0) / self.every + 1e-6)
        return min(passed, len(self._stages) - 1)

    def _to_eval_mode(self, stage: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        if stage == self._stage:
            is_checkpointed = module.training and getattr(module, "gradient_checkpointing", False)
            module.eval()
            # A layer is checkpointed in training mode only; what drops out are modules inside it.
            module.training = is_checkpointed
