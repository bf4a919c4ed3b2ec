"""What evaluate.load finds here."""

from peft_mrpc.evaluation.metrics import Accuracy

__all__ = ["Accuracy"]
