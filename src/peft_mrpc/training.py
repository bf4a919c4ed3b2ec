"""The Hugging Face Trainer over encoded pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from peft_mrpc.config import DataConfig, TrainConfig
from peft_mrpc.data import PairData
from peft_mrpc.errors import UserError, logger
from peft_mrpc.freezing import FreezeCallback, describe_trainable, head_parameter_ids
from peft_mrpc.methods import Method
from peft_mrpc.predictors import PairClassifier, PairCollator

FINE_TUNING_RATE = 1e-3


@dataclass(frozen=True)
class TrainRequest:
    """What was asked for, parsed and checked as far as flags go."""

    config: TrainConfig
    data: DataConfig
    arguments: TrainingArguments
    method: Method
    options: Any
    given_options: Mapping[str, Any]
    output_dir: Path
    publish: bool


class HeadRateTrainer(Trainer):
    """The Trainer, with a learning rate of the head's own.

    A soft prompt wants a rate a hundred times that of the head it is trained with.

    Args:
        head_learning_rate: Peak rate of the head; None for `args.learning_rate`.
        kwargs: The Trainer's own.
    """

    def __init__(self, *, head_learning_rate: float | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.head_learning_rate = head_learning_rate

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Build the optimizer as ever, then give the head's parameters groups of their own."""
        optimizer = super().create_optimizer(model)
        if self.head_learning_rate is None:
            return optimizer
        head = head_parameter_ids(cast("nn.Module", self.model))
        groups = []
        for group in optimizer.param_groups:
            own = [p for p in group["params"] if id(p) in head]
            rest = [p for p in group["params"] if id(p) not in head]
            groups += [{**group, "params": rest}] if rest else []
            groups += [{**group, "params": own, "lr": self.head_learning_rate}] if own else []
        optimizer.param_groups = groups
        return optimizer


def build_trainer(
    request: TrainRequest, data: PairData, classifier: PairClassifier, staging: str
) -> tuple[Trainer, int]:
    """The Trainer over encoded pairs, and how many training pairs were cut."""
    features, num_cut = classifier.encode(data.splits["train"])
    if num_cut:
        logger.info(
            "%d of %d training pairs (%.1f%%) are longer than %d tokens and were cut",
            *(num_cut, len(features), 100 * num_cut / len(features), classifier.max_length),
        )
    arguments = request.arguments
    arguments.output_dir = f"{staging}/checkpoints"
    arguments.dataloader_pin_memory &= torch.cuda.is_available()  # only a warning without one
    if getattr(request.options, "is_prompt_learning", False):
        _warn_of_low_rate(arguments.learning_rate, request.config.method)
    trainer = HeadRateTrainer(
        head_learning_rate=request.config.head_learning_rate,
        model=classifier.model,
        args=arguments,
        data_collator=PairCollator(classifier.tokenizer, classifier.model.config),
        train_dataset=_labelled(features, data, "train"),
        eval_dataset=_evaluation_rows(request, data, classifier),
        processing_class=classifier.tokenizer,
        compute_metrics=_accuracy_of_logits,
        callbacks=request.method.callbacks(request.options),
    )
    if not any(isinstance(c, FreezeCallback) for c in trainer.callback_handler.callbacks):
        logger.info("%s: %s", request.config.method, describe_trainable(classifier.model))
    return trainer, num_cut


def _warn_of_low_rate(learning_rate: float, method: str) -> None:
    if learning_rate < FINE_TUNING_RATE:
        logger.warning(
            "--learning_rate: %g is a rate for fine-tuning; %s learns little below 1e-2",
            *(learning_rate, method),
        )


def _labelled(
    features: Sequence[dict[str, list[int]]], data: PairData, split: str
) -> list[dict[str, Any]]:
    return [
        {**feature, "labels": pair.label}
        for feature, pair in zip(features, data.splits[split], strict=True)
    ]


def _evaluation_rows(
    request: TrainRequest, data: PairData, classifier: PairClassifier
) -> list[dict[str, Any]] | None:
    """Rows for the Trainer's own evaluation as it trains, where `--eval_strategy` asks for it."""
    if request.arguments.eval_strategy == "no":
        return None
    if "validation" not in data.splits:
        raise UserError(f"--eval_strategy: got one, but {data.name} has no validation split.")
    features, _ = classifier.encode(data.splits["validation"])
    return _labelled(features, data, "validation")


def _accuracy_of_logits(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}
