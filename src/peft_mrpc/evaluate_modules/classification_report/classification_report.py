"""What evaluate.load finds here."""

from peft_mrpc.metrics import ClassificationReport

__all__ = ["ClassificationReport"]
