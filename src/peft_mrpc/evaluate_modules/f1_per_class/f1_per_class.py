"""What evaluate.load finds here."""

from peft_mrpc.evaluation.metrics import F1PerClass

__all__ = ["F1PerClass"]
