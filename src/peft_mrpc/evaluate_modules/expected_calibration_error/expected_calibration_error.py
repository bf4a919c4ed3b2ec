"""What evaluate.load finds here."""

from peft_mrpc.evaluation.metrics import ExpectedCalibrationError

__all__ = ["ExpectedCalibrationError"]
