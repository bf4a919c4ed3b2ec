"""The Hugging Face Trainer with what pairs need of it, and rows that come in either order."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from peft_mrpc.checkpoints import load_trained, save_trained
from peft_mrpc.freezing import head_parameter_ids, trainable_names


class PairTrainer(Trainer):
    """The Trainer, with a learning rate of the head's own and checkpoints that are exact.

    A soft prompt wants a rate a hundred times that of the head it is trained with.

    Args:
        head_learning_rate: Peak rate of the head; None for `args.learning_rate`.
        kwargs: The Trainer's own.
    """

    def __init__(self, *, head_learning_rate: float | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.head_learning_rate = head_learning_rate
        # As DDP sees them: frozen by now is frozen for good.
        self._trained_names = trainable_names(cast("nn.Module", self.model))

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

    @property
    def _is_sharded(self) -> bool:
        # These save and load their own shards of every parameter, which is exact.
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and not self._is_sharded:
            folder = Path(output_dir or str(self.args.output_dir))
            save_trained(cast("nn.Module", self.model), self._trained_names, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._is_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_trained(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self._is_sharded:
            super()._load_best_model()
        else:
            self._load_trained(str(self.state.best_model_checkpoint))

    def _load_trained(self, folder: str) -> None:
        load_trained(cast("nn.Module", self.model), self._trained_names, Path(folder))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Every held-out row: `--dataloader_drop_last` is for training."""
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = dropped

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as ever, with a loss over the rows alone.

        The Trainer's own counts the rows twice that fill up the last batch of several processes.
        """
        output = super().evaluation_loop(*args, **kwargs)
        if self.compute_loss_func is not None and output.label_ids is not None:
            logits, labels = torch.tensor(output.predictions), torch.tensor(output.label_ids)
            loss = self.compute_loss_func({"logits": logits}, labels)
            prefix = kwargs.get("metric_key_prefix", "eval")
            metrics = {**(output.metrics or {}), f"{prefix}_loss": float(loss)}
            output = output._replace(metrics=metrics)
        return output


class PlainAttention(TrainerCallback):
    """Attention by plain matrix products for as long as the training lasts.

    PyTorch's fused one takes several times as long backward in bf16 on a CPU (2.13.0: a third of
    a training step of SmolLM2), and is no slower in fp32.
    """

    def __init__(self) -> None:
        self._before: dict[PreTrainedModel, str] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        inside = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
        self._before = {part: str(part.config._attn_implementation) for part in inside}
        for part in inside:
            part.set_attn_implementation("eager")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for part, implementation in self._before.items():
            part.set_attn_implementation(implementation)
        self._before.clear()


class EitherOrder(Dataset[dict[str, Any]]):
    """Training rows of which each comes in its own order or in the other, by torch's random state.

    Args:
        rows: Encoded pairs.
        swapped: The same pairs with sentence 2 first.
    """

    def __init__(self, rows: list[dict[str, Any]], swapped: list[dict[str, Any]]) -> None:
        self.orders = (rows, swapped)

    def __len__(self) -> int:
        return len(self.orders[0])

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.orders[int(torch.randint(2, ()))][row]
