"""The strategies on a GPU give the predictions of the CPU.

These tests need a CUDA device and are skipped without one. They have not been run where this file
was written: run `pytest -m gpu` on a machine with a GPU.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peft_mrpc import DataConfig, PromptConfig, evaluate_prompt
from peft_mrpc.runs.run import Run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Hide the GPU from what runs afterwards."""
    return lambda: monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def largest_difference(one: Run, other: Run) -> float:
    probabilities = [run.predictions("validation").probabilities for run in (one, other)]
    return float(np.abs(np.subtract(*probabilities)).max())


@pytest.mark.parametrize("method", ["layer_freeze", "prompt_tuning"])
def test_a_training_on_the_gpu_equals_one_on_the_cpu(
    method: str, train_tiny: Callable[..., Run]
) -> None:
    options: dict[str, Any] = {"dropout": 0.0, "bf16": False, "swap_sentences": "false"}
    options |= {"train_sampling_strategy": "sequential", "num_train_epochs": 2}
    gpu = train_tiny(method, "gpu", **options)
    cpu = train_tiny(method, "cpu", use_cpu=True, **options)
    assert largest_difference(gpu, cpu) < 1e-3


def test_bf16_training_on_the_gpu_predicts_about_as_fp32(train_tiny: Callable[..., Run]) -> None:
    options: dict[str, Any] = {"dropout": 0.0, "swap_sentences": "false"}
    options |= {"train_sampling_strategy": "sequential"}
    runs = [train_tiny(name=str(bf16), bf16=bf16, **options) for bf16 in (True, False)]
    assert largest_difference(*runs) < 0.05


def test_a_hard_prompt_on_the_gpu_scores_as_on_the_cpu(
    tiny_llama: str, pair_files: dict[str, str], tmp_path: Path, on_cpu: Callable[[], None]
) -> None:
    data = DataConfig(validation_file=pair_files["validation"])
    config = PromptConfig(model=tiny_llama, quantization="none", output_dir=str(tmp_path / "gpu"))
    gpu = evaluate_prompt(config, data)
    on_cpu()
    cpu = evaluate_prompt(replace(config, output_dir=str(tmp_path / "cpu")), data)
    # The GPU computes in bf16 by default.
    assert largest_difference(gpu, cpu) < 0.05
