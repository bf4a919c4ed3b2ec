"""Dropout (arXiv:1207.0580) whose chances cost little on a CPU."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

_torch_dropout = torch.nn.functional.dropout
CHANCES = 2**16  # each number is dropped by 16 random bits


@contextlib.contextmanager
def fast_dropout() -> Iterator[None]:
    """Within the block `torch.nn.functional.dropout` is `dropout`, for torch's own modules too."""
    before, torch.nn.functional.dropout = torch.nn.functional.dropout, dropout
    try:
        yield
    finally:
        torch.nn.functional.dropout = before


def dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """Zero each number with probability `p`, rounded to 1/65536, and scale the others to make up.

    PyTorch draws the chances on a CPU one by one, by a generator that takes ten times as long as
    what is done with them: a fifth of a training step of BERT's last layers in bf16. Here one draw
    of its generator begins a stream of SFC64 (NumPy), so that a seed, a checkpoint of the
    generator's state, and a second forward of gradient checkpointing give the same chances again.

    Args:
        input: Any shape; what is not in a CPU's memory is left to PyTorch.
        p: Probability of a zero.
        training: Whether anything is dropped at all.
        inplace: Left to PyTorch.
    """
    threshold = round(p * CHANCES) if 0 < p < 1 else 0
    is_ours = training and not inplace and input.is_floating_point() and input.device.type == "cpu"
    if not is_ours or not 0 < threshold < CHANCES:
        return _torch_dropout(input, p, training, inplace)
    begin = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.SFC64(begin).random_raw(-(-input.numel() * 16 // 64))
    chances = torch.from_numpy(words.view(np.int16)[: input.numel()]).view(input.shape)
    kept = torch.empty_like(input, memory_format=torch.contiguous_format, requires_grad=False)
    torch.ge(chances, threshold - CHANCES // 2, out=kept)  # as 1 and 0, without a pass to convert
    return input * kept.mul_(CHANCES / (CHANCES - threshold))
