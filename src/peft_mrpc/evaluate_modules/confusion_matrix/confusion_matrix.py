"""What evaluate.load finds here."""

from peft_mrpc.metrics import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
