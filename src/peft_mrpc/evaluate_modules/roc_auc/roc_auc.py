"""What evaluate.load finds here."""

from peft_mrpc.metrics import RocAuc

__all__ = ["RocAuc"]
