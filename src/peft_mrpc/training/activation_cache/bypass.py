"""Layers of a model that are left out: they hand on what the batch brings in their place."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from peft_mrpc.training.activation_cache.store import STATES


class LeftOut:
    """Within the block a model's first layers hand on what they are given.

    The last of them gives out what the batch brings under `STATES`, [B, T, H]; a batch that brings
    none goes through all of them as ever.

    Args:
        model: The model, on its device.
        layers: Its first layers.
        embeddings: Module before them that is left out as well; None where that cannot be.
        dtype: Of what leaves the last of the layers.
        gives_tuple: Whether a layer gives that as the first of several things.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[nn.Module],
        embeddings: nn.Module | None,
        dtype: torch.dtype,
        gives_tuple: bool,
    ) -> None:
        self.model = model
        self._layers = layers
        self._embeddings = embeddings
        self._dtype = dtype
        self._gives_tuple = gives_tuple
        self._given: torch.Tensor | None = None  # of the batch that the model is at
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._own_forwards: list[tuple[nn.Module, Any]] = []  # None where it is the class's

    def __enter__(self) -> "LeftOut":
        self._hooks = [
            self.model.register_forward_pre_hook(self._take, with_kwargs=True),
            # What calls the encoder by itself gets what it asks for.
            self.model.register_forward_hook(self._drop, always_call=True),
        ]
        for layer in self._layers:
            self._replace(layer, self._bypass(layer))
        if self._embeddings is not None:
            self._replace(self._embeddings, self._bypass_embeddings(self._embeddings))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for module, own in self._own_forwards:
            del module.forward
            if own is not None:  # accelerate's, say
                module.forward = own
        self._own_forwards.clear()
        self._given = None

    def _replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._own_forwards.append((module, vars(module).get("forward")))
        module.forward = forward

    def _drop(self, *_: Any) -> None:
        self._given = None

    def _take(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        given = kwargs.pop(STATES, None)
        self._given = None if given is None else given.to(self.model.device, self._dtype)
        return args, kwargs

    def _bypass(self, layer: nn.Module) -> Callable[..., Any]:
        compute, is_last = layer.forward, layer is self._layers[-1]

        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._given is None:  # a batch without: one of another split, say
                return compute(hidden_states, *args, **kwargs)
            states = self._given if is_last else hidden_states
            return (states, None) if self._gives_tuple else states  # no attention weights

        return forward

    def _bypass_embeddings(self, embeddings: nn.Module) -> Callable[..., Any]:
        compute = embeddings.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return compute(*args, **kwargs) if self._given is None else self._given

        return forward
