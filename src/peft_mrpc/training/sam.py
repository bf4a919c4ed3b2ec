"""Sharpness-aware minimization (SAM, arXiv:2010.01412)."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn


@contextlib.contextmanager
def isolated_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the block parameters have no gradients yet; the earlier ones are restored after it.

    The gradients of earlier batches of an accumulated step are no part of the SAM perturbation.
    """
    saved = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in saved:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in saved:
            parameter.grad = gradient


@contextlib.contextmanager
def sam_perturbation(parameters: Iterable[nn.Parameter], rho: float) -> Iterator[None]:
    """Within the block parameters are moved by `rho` along their gradients.

    The distance is that of all parameters together (section 3, equation 2, with p = 2).

    Args:
        parameters: Those without a gradient are not moved.
        rho: Distance in the 2-norm.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in moved]
    try:
        _perturb(moved, rho)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)


@torch.no_grad()
def _perturb(parameters: Iterable[nn.Parameter], rho: float) -> None:
    pairs = [(p, p.grad) for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([gradient for _, gradient in pairs])
    for parameter, gradient in pairs:
        parameter.add_(gradient * (rho / (norm + 1e-12)).to(gradient.device))
