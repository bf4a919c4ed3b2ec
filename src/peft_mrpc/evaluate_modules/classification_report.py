"""The metric that `evaluate.load` finds in this file."""

from peft_mrpc.evaluation.metrics import ClassificationReport

__all__ = ["ClassificationReport"]
