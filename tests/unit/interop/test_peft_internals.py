"""PEFT still has the undocumented parts that `interop/peft_internals.py` uses."""

import pytest
from peft import LoraConfig, OFTConfig, PeftType, get_peft_model
from torch import nn

from peft_mrpc.interop.peft_internals import (
    default_feedforward_modules,
    default_target_modules,
    oft_layer_values,
)


@pytest.mark.parametrize(
    ("peft_type", "targets"),
    [
        (PeftType.LORA, ["query", "value"]),
        (PeftType.OFT, ["query", "value"]),
        (PeftType.VERA, ["query", "value"]),
        (PeftType.IA3, ["key", "value", "output.dense"]),
    ],
)
def test_peft_has_default_targets_for_bert(peft_type: PeftType, targets: list[str]) -> None:
    assert default_target_modules(peft_type, "bert") == targets


def test_peft_has_no_default_targets_for_unknown_architectures() -> None:
    assert default_target_modules(PeftType.LORA, "no-such-model") is None
    assert default_feedforward_modules("no-such-model") is None


def test_peft_has_default_feedforward_modules_for_bert() -> None:
    assert default_feedforward_modules("bert") == ["output.dense"]


def test_oft_layers_have_their_block_sizes() -> None:
    layers = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(12, 16))
    config = OFTConfig(target_modules=["0", "2"], r=0, oft_block_size=4)
    adapted = get_peft_model(layers, config)
    assert oft_layer_values(adapted, "oft_block_size") == {4}
    assert oft_layer_values(adapted, "r") == {4, 3}  # 16 / 4 and 12 / 4 blocks


def test_other_layers_have_no_block_sizes() -> None:
    adapted = get_peft_model(nn.Sequential(nn.Linear(16, 16)), LoraConfig(target_modules=["0"]))
    assert oft_layer_values(adapted, "r") == set()
