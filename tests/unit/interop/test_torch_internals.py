"""The private parts of PyTorch exist and have the expected form."""

import torch

from peft_mrpc.interop.torch_internals import cpu_has_amx, cpu_has_avx512_bf16


def test_torch_reports_the_instruction_sets_of_the_cpu() -> None:
    assert callable(torch.cpu._is_amx_tile_supported)
    assert callable(torch.cpu._is_avx512_bf16_supported)
    assert cpu_has_amx() in (True, False)
    assert cpu_has_avx512_bf16() in (True, False)
