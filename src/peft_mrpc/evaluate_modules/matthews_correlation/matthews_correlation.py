"""What evaluate.load finds here."""

from peft_mrpc.metrics import MatthewsCorrelation

__all__ = ["MatthewsCorrelation"]
