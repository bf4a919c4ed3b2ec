"""Sharpness-aware minimization (SAM, arXiv:2010.01412): gradients from a little way uphill."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn


@contextlib.contextmanager
def isolated_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the block there are no gradients yet; after it those that there were, and no others.

    What earlier batches of `--gradient_accumulation_steps` gave does not say where uphill is.
    """
    held = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in held:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in held:
            parameter.grad = gradient


@contextlib.contextmanager
def sam_perturbation(parameters: Iterable[nn.Parameter], rho: float) -> Iterator[None]:
    """Within the block parameters stand `rho` further along their gradients; then where they were.

    The distance is that of all of them together (section 3, equation 2, with p = 2).

    Args:
        parameters: Those without a gradient stay.
        rho: How far, in the 2-norm.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in moved]
    try:
        _go_uphill(moved, rho)
        yield
    finally:
        with torch.no_grad():
            for parameter, own in zip(moved, before, strict=True):
                parameter.copy_(own)


@torch.no_grad()
def _go_uphill(parameters: Iterable[nn.Parameter], rho: float) -> None:
    both = [(p, p.grad) for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([gradient for _, gradient in both])
    for parameter, gradient in both:
        parameter.add_(gradient * (rho / (norm + 1e-12)).to(gradient.device))
