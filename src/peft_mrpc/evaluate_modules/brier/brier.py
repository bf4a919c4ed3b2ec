"""What evaluate.load finds here."""

from peft_mrpc.evaluation.metrics import Brier

__all__ = ["Brier"]
