"""Dropout on a CPU: what it does to numbers and gradients, and that its chances come again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback

from peft_mrpc.data.loading import load_data
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.runs.run import load_run
from peft_mrpc.train import main
from peft_mrpc.training.build_model import build_classifier
from peft_mrpc.training.build_trainer import build_trainer
from peft_mrpc.training.dropout import dropout, fast_dropout
from peft_mrpc.training.job import parse_request


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_many_are_dropped_and_the_others_make_up_for_them(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    out = dropout(torch.full((500, 401), 3.0, dtype=dtype), p)
    share = float((out == 0).float().mean())
    assert abs(share - p) < 5 * (p * (1 - p) / out.numel()) ** 0.5
    assert out.dtype == dtype
    tolerance = 2e-4 if dtype == torch.float32 else 1e-2  # p to 1/65536, and what bf16 holds
    kept = out[out != 0].float()
    assert torch.allclose(kept, torch.tensor(3 / (1 - p)), rtol=tolerance)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(2)
    zero = (dropout(torch.ones(1000, 1000), 0.3) == 0).double()
    expected, margin = 0.3**2, 5 * (0.09 * 0.91 / 1e6) ** 0.5
    # Next to each other, in one 64-bit word of chances, in the next word, in the next row.
    for shift in [(0, 1), (0, 3), (0, 4), (1, 0)]:
        both = float((zero * zero.roll(shift, dims=(0, 1))).mean())
        assert abs(both - expected) < margin, shift


def test_gradients_flow_where_numbers_do() -> None:
    x = torch.randn(40, 30, dtype=torch.float64, requires_grad=True)
    out = dropout(x, 0.25)
    out.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.where(out == 0, 0.0, 1 / 0.75).double(), rtol=1e-4)


def test_a_seed_and_a_second_forward_give_the_same_chances() -> None:
    x = torch.randn(64, 64, requires_grad=True)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    again = dropout(x, 0.5)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    with fast_dropout():
        seen: list[torch.Tensor] = []

        def block(given: torch.Tensor) -> torch.Tensor:
            seen.append(F.dropout(given, 0.5))
            return seen[-1].sin()

        checkpoint(block, x, use_reentrant=False).sum().backward()
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])


def test_what_is_transposed_keeps_its_shape_and_its_numbers() -> None:
    x = torch.arange(1.0, 13.0).view(3, 4).t()
    out = dropout(x, 0.5)
    assert torch.equal(out[out != 0], 2 * x[out != 0])


def test_torch_has_its_own_again_and_does_what_is_not_ours() -> None:
    own = F.dropout
    with fast_dropout():
        assert F.dropout is dropout
        x = torch.ones(100)
        assert F.dropout(x, 0.5, training=False) is x
        assert torch.equal(F.dropout(x, 1.0), torch.zeros(100))
        assert torch.equal(F.dropout(x, 0.0), x)
        nn.Dropout(0.5, inplace=True)(x)
        assert set(x.tolist()) == {0.0, 2.0}
        torch.manual_seed(5)
        by_module = nn.Dropout(0.5)(torch.ones(100))
        torch.manual_seed(5)
        assert torch.equal(by_module, dropout(torch.ones(100), 0.5))
    assert F.dropout is own
    with pytest.raises(ValueError, match="dropout probability"):
        dropout(torch.ones(3), 1.5)


@pytest.mark.parametrize(("flags", "is_ours"), [([], True), (["--torch_compile"], False)])
def test_a_training_draws_by_it_and_hands_it_back(
    flags: list[str],
    is_ours: bool,
    tiny_bert: str,
    data_flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, seen = F.dropout, []

    class Interrupt(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            seen.append(F.dropout is dropout)
            raise KeyboardInterrupt

    request = parse_request(
        ["--method", "full", "--model", tiny_bert, *data_flags, "--max_steps", "1", *flags]
    )
    data = load_data(request.data)
    classifier = build_classifier(request, resolve_model(tiny_bert), data)
    trainer, _ = build_trainer(request, data, classifier, str(tmp_path))
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert seen == [is_ours] and F.dropout is own


def test_a_training_that_goes_on_drops_what_it_would_have_dropped(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    words = ["--method", "layer_freeze", "--model", tiny_bert, *data_flags, "--dropout", "0.1"]
    words += ["--sam_rho", "0.05", "--max_steps", "4", "--save_strategy", "steps"]
    words += ["--save_steps", "2", "--per_device_train_batch_size", "4"]
    main([*words, "--output_dir", str(tmp_path / "whole")])
    resume = str(tmp_path / "whole" / "checkpoints" / "checkpoint-2")
    main([*words, "--output_dir", str(tmp_path / "on"), "--resume_from_checkpoint", resume])
    whole, on = (load_run(tmp_path / name).predictions("validation") for name in ("whole", "on"))
    assert (whole.probabilities == on.probabilities).all()
