"""The metric that `evaluate.load` finds in this file."""

from peft_mrpc.evaluation.metrics import F1PerClass

__all__ = ["F1PerClass"]
