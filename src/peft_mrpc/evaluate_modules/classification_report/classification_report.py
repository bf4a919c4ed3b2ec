"""What evaluate.load finds here."""

from peft_mrpc.evaluation.metrics import ClassificationReport

__all__ = ["ClassificationReport"]
