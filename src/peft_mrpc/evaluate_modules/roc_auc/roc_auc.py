"""What evaluate.load finds here."""

from peft_mrpc.evaluation.metrics import RocAuc

__all__ = ["RocAuc"]
