"""Private parts of PyTorch that the package uses, in one place."""

import torch


def cpu_has_amx() -> bool:
    """Whether the CPU has AMX tiles. Uses `torch.cpu._is_amx_tile_supported`."""
    return bool(torch.cpu._is_amx_tile_supported())


def cpu_has_avx512_bf16() -> bool:
    """Whether the CPU has AVX512-BF16. Uses `torch.cpu._is_avx512_bf16_supported`."""
    return bool(torch.cpu._is_avx512_bf16_supported())
