"""The metric that `evaluate.load` finds in this file."""

from peft_mrpc.evaluation.metrics import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
