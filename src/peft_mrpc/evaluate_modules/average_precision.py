"""The metric that `evaluate.load` finds in this file."""

from peft_mrpc.evaluation.metrics import AveragePrecision

__all__ = ["AveragePrecision"]
