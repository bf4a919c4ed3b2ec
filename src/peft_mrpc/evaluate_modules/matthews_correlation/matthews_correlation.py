"""What evaluate.load finds here."""

from peft_mrpc.evaluation.metrics import MatthewsCorrelation

__all__ = ["MatthewsCorrelation"]
