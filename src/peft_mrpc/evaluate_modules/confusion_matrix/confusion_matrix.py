"""What evaluate.load finds here."""

from peft_mrpc.evaluation.metrics import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
