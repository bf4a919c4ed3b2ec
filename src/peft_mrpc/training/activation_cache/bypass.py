"""Run the frozen first layers of a model alone, or skip them and use cached activations.

Shapes: B batch, T tokens, H hidden.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from peft_mrpc.errors import UserError
from peft_mrpc.models.architecture import encoder_layers

# Key of the cached activations in a batch; it is removed before the model's own forward.
ACTIVATIONS = "cached_activations"


class CacheUnavailableError(UserError):
    """The activation cache cannot be used.

    Attributes:
        reason: The cause, as a clause.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"activation_cache: got 'on', but {reason}; expected auto or off.")
        self.reason = reason


class FrozenLayers:
    """The first layers of a model's encoder.

    Both uses replace the `forward` of some layers for a time and leave the module tree, and so the
    names of the parameters and the checkpoints, as they are. A replaced layer returns its input.

    Args:
        model: The model, on its device.
        depth: How many of its first layers are frozen, 1 or more.
    """

    def __init__(self, model: PreTrainedModel, depth: int) -> None:
        self.model = model
        self.layers = list(encoder_layers(model))
        self.depth = depth
        self.dtype, self.width = torch.float32, 0  # of the activations, known after `compute`
        self._returns_tuple = False
        self._activations: torch.Tensor | None = None  # of the current batch, [B, T, H]

    @torch.no_grad()
    def compute(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the output of the last frozen layer in eval mode, [B, T, H].

        Raises:
            CacheUnavailableError: If this is not the activations of the batch's tokens.
        """
        recorded: list[torch.Tensor] = []

        def record(module: nn.Module, args: Any, output: Any) -> None:
            self._returns_tuple = isinstance(output, tuple)
            recorded.append(output[0] if self._returns_tuple else output)

        hook = self.layers[self.depth - 1].register_forward_hook(record)
        try:
            with replaced_forwards(self.layers[self.depth :], lambda _: self._identity):
                self.logits(batch)
        finally:
            hook.remove()
        name = self.model.config.model_type
        if not recorded:
            raise CacheUnavailableError(f"{name} does not call its layers one by one")
        if recorded[0].shape[:2] != batch["attention_mask"].shape:
            raise CacheUnavailableError(f"{name} pads examples inside the model")
        self.dtype, self.width = recorded[0].dtype, recorded[0].shape[-1]
        return recorded[0]

    @property
    def token_bytes(self) -> int:
        """Size of the activations of a token, known after `compute`."""
        return self.width * self.dtype.itemsize

    @torch.no_grad()
    def logits(self, batch: Mapping[str, Any]) -> Any:
        """The logits of a batch in eval mode, [B, C]."""
        inputs = {
            name: value.to(self.model.device) for name, value in batch.items() if name != "labels"
        }
        was_training = self.model.training
        self.model.train(False)
        try:
            return self.model(**inputs).logits
        finally:
            self.model.train(was_training)

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Within the block the frozen layers do not run for batches that hold `ACTIVATIONS`.

        The last of them returns these. A batch without them runs through all layers.
        """
        hooks = [
            self.model.register_forward_pre_hook(self._begin_batch, with_kwargs=True),
            # The encoder may be called by itself between batches.
            self.model.register_forward_hook(self._end_batch, always_call=True),
        ]
        try:
            with replaced_forwards(self.layers[: self.depth], self._skip):
                yield
        finally:
            for hook in hooks:
                hook.remove()
            self._activations = None

    def _begin_batch(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        activations = kwargs.pop(ACTIVATIONS, None)
        if activations is not None:
            self._activations = activations.to(self.model.device, self.dtype)
        return args, kwargs

    def _end_batch(self, *_: Any) -> None:
        self._activations = None

    def _identity(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # The second item of a tuple holds attention weights.
        return (hidden_states, None) if self._returns_tuple else hidden_states

    def _skip(self, layer: nn.Module) -> Callable[..., Any]:
        compute, is_last = layer.forward, layer is self.layers[self.depth - 1]

        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._activations is None:
                return compute(hidden_states, *args, **kwargs)
            return self._identity(self._activations if is_last else hidden_states)

        return forward


@contextmanager
def replaced_forwards(
    modules: Sequence[nn.Module], build: Callable[[nn.Module], Callable[..., Any]]
) -> Iterator[None]:
    """Within the block each module runs the function that `build` returns for it."""
    # A module may have a `forward` of its own already: accelerate sets one.
    before = [(module, vars(module).get("forward")) for module in modules]
    try:
        for module in modules:
            module.forward = build(module)
        yield
    finally:
        for module, forward in before:
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward
