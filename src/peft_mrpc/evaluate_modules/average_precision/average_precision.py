"""What evaluate.load finds here."""

from peft_mrpc.metrics import AveragePrecision

__all__ = ["AveragePrecision"]
