"""What a training does, and how two trainings differ, for tests of one process and of several."""

from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from peft_mrpc.runs.run import Run


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.record["log_history"] if "loss" in row]


def largest_difference(one: Run, other: Run) -> float:
    """Of the losses and the probabilities of two Runs."""
    assert len(losses(one)) == len(losses(other)) > 3
    probabilities = [run.predictions("validation").probabilities for run in (one, other)]
    return float(
        max(
            np.abs(np.subtract(losses(one), losses(other))).max(),
            np.abs(probabilities[0] - probabilities[1]).max(),
        )
    )


class UnfreezingRecorder(TrainerCallback):
    """Which layers each step of the optimizer changed, and whether it knows their momentum."""

    def __init__(self, model: Any) -> None:
        self.layers = list(model.bert.encoder.layer)
        self.before = [self.weights(layer) for layer in self.layers]
        self.changed: list[list[bool]] = []
        self.remembered: list[list[bool]] = []

    def weights(self, layer: Any) -> list[torch.Tensor]:
        # A key's bias moves no attention weight.
        named = layer.named_parameters()
        return [p.detach().clone() for name, p in named if not name.endswith("key.bias")]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        after = [self.weights(layer) for layer in self.layers]
        pairs = [list(zip(a, b, strict=True)) for a, b in zip(self.before, after, strict=True)]
        # All of a layer's weights change, or none.
        for layer in pairs:
            assert len({torch.equal(a, b) for a, b in layer}) == 1
        self.changed.append([not torch.equal(*layer[0]) for layer in pairs])
        known = kwargs["optimizer"].state
        known = {id(parameter) for parameter, value in known.items() if value}
        self.remembered.append(
            [any(id(p) in known for p in layer.parameters()) for layer in self.layers]
        )
        self.before = after


GRADUAL = ["--num_unfrozen_layers", "2", "--unfreeze_every", "1", "--num_train_epochs", "3"]


# Layers 0 and 1 in each of the nine steps.
BY_TURNS = [[False, False]] * 3 + [[False, True]] * 3 + [[True, True]] * 3
