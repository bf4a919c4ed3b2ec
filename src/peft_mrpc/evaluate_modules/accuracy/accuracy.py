"""What evaluate.load finds here."""

from peft_mrpc.metrics import Accuracy

__all__ = ["Accuracy"]
