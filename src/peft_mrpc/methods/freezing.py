"""The parts of an encoder, and the callback that holds what is frozen still."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftModel
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
    if (layers := _find_layers(model)) is not None:
        return layers
    depth = getattr(model.config, "num_hidden_layers", None)
    raise UserError(f"--model: found no stack of {depth} layers in {type(model).__name__}.")


def has_layers(model: PreTrainedModel) -> bool:
    """Whether there is such a stack."""
    return _find_layers(model) is not None


def _find_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    depth = getattr(model.config, "num_hidden_layers", None)
    stacks = (m for m in model.base_model.modules() if isinstance(m, nn.ModuleList))
    return next((stack for stack in stacks if len(stack) == depth), None)


def modules_before_layers(model: PreTrainedModel) -> list[nn.Module]:
    """All that makes of token ids what the first layer reads: embeddings, their projection.

    DeBERTa's relative embeddings are none of it: they feed every layer, beside the tokens.
    """
    layers = encoder_layers(model)
    around: nn.Module = model.base_model
    before: list[nn.Module] = []
    while around is not layers:
        for child in around.children():
            if any(part is layers for part in child.modules()):
                around = child
                break
            before.append(child)
    return before


def modules_after_layers(model: PreTrainedModel) -> list[nn.Module]:
    """What of the encoder stands after its layers: the pooler or the final norm."""
    return [child for name, child in model.base_model.named_children() if name in AFTER_THE_LAYERS]


def still_modules(model: PreTrainedModel, frozen: Iterable[nn.Parameter]) -> list[nn.Module]:
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
            for module in still_modules(model, frozen):
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


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that receive gradients."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def head_parameter_ids(model: nn.Module) -> set[int]:
    """Identities of the parameters outside the encoder and outside PEFT's own parts: the head.

    DeBERTa's own pooler is one of them: it stands beside the encoder and is new.
    """
    own: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    encoder = {id(parameter) for parameter in own.base_model.parameters()}
    return {id(parameter) for parameter in own.parameters()} - encoder


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


def describe_parameters(model: Any) -> dict[str, Any]:
    """Which parameters train and how many, for `run.json`."""
    trained, total = parameter_counts(model)
    return {"trained": trained, "total": total, "parameters": trainable_names(model)}
