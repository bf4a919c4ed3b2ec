"""What evaluate.load finds here."""

from peft_mrpc.metrics import F1PerClass

__all__ = ["F1PerClass"]
