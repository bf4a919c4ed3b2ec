"""The Hugging Face Trainer with what pairs need of it."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    Trainer,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from peft_mrpc.methods.freezing import FreezeCallback
from peft_mrpc.models.architecture import trainable_names
from peft_mrpc.training.activation_cache.callback import CacheTrunk
from peft_mrpc.training.attention import TrainingAttention
from peft_mrpc.training.checkpoints import load_trained, save_trained
from peft_mrpc.training.epochs import EpochSeeded, SetEpochCallback
from peft_mrpc.training.parameter_groups import learning_rates
from peft_mrpc.training.sam import isolated_gradients, sam_perturbation
from peft_mrpc.training.samplers import ResumableLengthGroupedSampler


class ClassificationTrainer(Trainer):
    """The Trainer, with learning rates by part, gradual unfreezing and checkpoints that are exact.

    A soft prompt wants a rate a hundred times that of the head it is trained with.

    Args:
        head_learning_rate: Peak rate of the head; None for `args.learning_rate`.
        layer_decay: The rate of each layer over that of the layer above; None for 1.
        sam_rho: How far uphill each gradient is taken (`sharpness.uphill`); 0 for where it is.
        kwargs: The Trainer's own.
    """

    def __init__(
        self,
        *,
        head_learning_rate: float | None,
        layer_decay: float | None = None,
        sam_rho: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._epochs = SetEpochCallback()
        if isinstance(self.train_dataset, EpochSeeded):
            self._epochs.drawn.append(self.train_dataset)
        self.add_callback(self._epochs)
        self.sam_rho = sam_rho
        self.head_learning_rate = head_learning_rate
        self.layer_decay = layer_decay
        # As DDP sees them: frozen by now is frozen for good.
        self._trained_names = trainable_names(cast("nn.Module", self.model))
        self._gradual = [
            callback
            for callback in self.callback_handler.callbacks
            if isinstance(callback, FreezeCallback) and callback.every is not None
        ]
        needs_gradients = bool(self._gradual or sam_rho)
        assert not (needs_gradients and self._is_sharded), "the flags are checked for it"

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as ever; however it ends, frozen layers and attention run again as before."""
        try:
            output = super().train(*args, **kwargs)
            if self.args.load_best_model_at_end and not self._is_sharded:
                self._share_trained()
            return output
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, CacheTrunk | TrainingAttention):
                    callback.leave()

    def _share_trained(self) -> None:
        """End everywhere with what the first process has: others may have no disk in common."""
        if self.args.world_size > 1:
            for parameter in cast("nn.Module", self.model).parameters():
                if parameter.requires_grad:
                    torch.distributed.broadcast(parameter.data, 0)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Build the optimizer as ever, then part its groups by their learning rates."""
        optimizer = super().create_optimizer(model)
        rates = learning_rates(
            cast("nn.Module", self.model),
            *(self.args.learning_rate, self.head_learning_rate, self.layer_decay),
        )
        if not rates:
            return optimizer
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            by_rate: dict[float, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                by_rate.setdefault(rates.get(id(parameter), group["lr"]), []).append(parameter)
            groups += [{**group, "params": own, "lr": rate} for rate, own in by_rate.items()]
        # The rate of the first group is what the Trainer logs.
        optimizer.param_groups = sorted(groups, key=lambda g: g["lr"] != self.args.learning_rate)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on a batch, and drop what it gave to layers whose turn has not come.

        After every process has the same gradients, and before they are clipped: by a norm that
        counts only what trains. The loss is that of the weights as they are, wherever the gradients
        are taken. Uphill is where the batches of all processes together have it, as for one process
        that has all of their rows.
        """
        if not self.sam_rho:
            return self._step(*args, **kwargs)
        trained = [p for p in cast("nn.Module", self.model).parameters() if p.requires_grad]
        with contextlib.ExitStack() as moved:
            with isolated_gradients(trained):
                loss = self._step(*args, **kwargs)
                self._share_gradients(trained)
                moved.enter_context(sam_perturbation(trained, self.sam_rho))
            self._step(*args, **kwargs)
        return loss

    def _share_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Have everywhere their mean, where DDP leaves it to a later batch of the step."""
        if self.args.world_size > 1 and not self.accelerator.sync_gradients:
            for gradient in (p.grad for p in parameters if p.grad is not None):
                gradient.copy_(cast("torch.Tensor", self.accelerator.reduce(gradient, "mean")))

    def _step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        for callback in self._gradual:
            callback.drop_gradients()
        return loss

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
        elif self.is_world_process_zero():  # which has written it; `train` hands it to the others
            self._load_trained(str(self.state.best_model_checkpoint))

    def _load_trained(self, folder: str) -> None:
        load_trained(cast("nn.Module", self.model), self._trained_names, Path(folder))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """As ever, but that one by length is the same again when a training goes on."""
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler = ResumableLengthGroupedSampler(
                sampler.batch_size, sampler.lengths, self.args.data_seed
            )
            self._epochs.drawn.append(sampler)
        return sampler

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
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TrainingAttention):
                callback.rest()
        output = super().evaluation_loop(*args, **kwargs)
        if self.compute_loss_func is not None and output.label_ids is not None:
            logits, labels = torch.tensor(output.predictions), torch.tensor(output.label_ids)
            loss = self.compute_loss_func({"logits": logits}, labels)
            prefix = kwargs.get("metric_key_prefix", "eval")
            metrics = {**(output.metrics or {}), f"{prefix}_loss": float(loss)}
            output = output._replace(metrics=metrics)
        return output
