"""What evaluate.load finds here."""

from peft_mrpc.evaluation.metrics import AveragePrecision

__all__ = ["AveragePrecision"]
