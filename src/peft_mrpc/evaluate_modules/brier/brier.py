"""What evaluate.load finds here."""

from peft_mrpc.metrics import Brier

__all__ = ["Brier"]
