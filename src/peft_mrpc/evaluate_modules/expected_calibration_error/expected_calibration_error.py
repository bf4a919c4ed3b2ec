"""What evaluate.load finds here."""

from peft_mrpc.metrics import ExpectedCalibrationError

__all__ = ["ExpectedCalibrationError"]
