"""The Hugging Face Trainer with parameter groups, SAM, and exact checkpoints and evaluation."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import SchedulerType, Trainer
from transformers.training_args import OptimizerNames

from peft_mrpc.errors import UserError, one_line
from peft_mrpc.interop.transformers_internals import builds_parameter_groups
from peft_mrpc.methods.layer_freeze import FreezeCallback
from peft_mrpc.models.architecture import trainable_names
from peft_mrpc.training.activation_cache.callback import ActivationCacheCallback
from peft_mrpc.training.callbacks import AttentionCallback
from peft_mrpc.training.checkpoints import load_trained, save_trained
from peft_mrpc.training.first_token import FirstTokenCallback
from peft_mrpc.training.parameter_groups import learning_rates, split_groups
from peft_mrpc.training.sam import isolated_gradients, sam_perturbation
from peft_mrpc.training.samplers import (
    EpochSeeded,
    ResumableLengthGroupedSampler,
    SetEpochCallback,
    example_lengths,
)

# Callbacks that change the model's forward pass while it trains.
RESTORING = (ActivationCacheCallback, AttentionCallback, FirstTokenCallback)


class ClassificationTrainer(Trainer):
    """The Trainer with learning rates by module, SAM, gradual unfreezing and exact checkpoints.

    Args:
        head_learning_rate: Peak learning rate of the head; None for `args.learning_rate`.
        layer_decay: Ratio of the learning rates of a layer and the layer above it; None for 1.
        sam_rho: Distance of the SAM perturbation; 0 trains without SAM.
        kwargs: Arguments of the Trainer.
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
        self.sam_rho = sam_rho
        self.head_learning_rate = head_learning_rate
        self.layer_decay = layer_decay
        self._set_epoch = SetEpochCallback()
        if isinstance(self.train_dataset, EpochSeeded):
            self._set_epoch.targets.append(self.train_dataset)
        self.add_callback(self._set_epoch)
        # The parameters that DDP synchronizes: the others stay frozen to the end.
        self._trained_names = trainable_names(cast("nn.Module", self.model))
        self._gradual = [
            callback
            for callback in self.callback_handler.callbacks
            if isinstance(callback, FreezeCallback) and callback.every is not None
        ]
        needs_gradients = bool(self._gradual or sam_rho)
        assert not (needs_gradients and self._is_sharded), "validated before"

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; whether it ends or fails, layers and attention are restored."""
        try:
            output = super().train(*args, **kwargs)
            if self.args.load_best_model_at_end and not self._is_sharded:
                self._broadcast_trained()
            return output
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, RESTORING):
                    callback.restore()

    def _broadcast_trained(self) -> None:
        """Copy the first process's parameters: other machines may not see its checkpoints."""
        if self.args.world_size > 1:
            for parameter in cast("nn.Module", self.model).parameters():
                if parameter.requires_grad:
                    torch.distributed.broadcast(parameter.data, 0)

    # ---- optimizer ----

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Build optimizer and scheduler; what they reject becomes an error in one line."""
        try:
            return super()._prepare_for_training(*args, **kwargs)
        except (ValueError, TypeError, KeyError, ImportError, ArithmeticError) as error:
            raise UserError(
                f"optim: got {OptimizerNames(self.args.optim).value}, with lr_scheduler_type "
                f"{SchedulerType(self.args.lr_scheduler_type).value}, which cannot be built: "
                f"{one_line(error)}"
            ) from error

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Build the optimizer, its parameter groups split by learning rate."""
        rates = learning_rates(
            cast("nn.Module", self.model),
            self.args.learning_rate,
            self.head_learning_rate,
            self.layer_decay,
        )
        if not rates or self.optimizer is not None or self.optimizer_cls_and_kwargs is not None:
            return super().create_optimizer(model)
        trained: Any = self.model if model is None else model
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
        if builds_parameter_groups(optimizer_class, options):
            raise UserError(
                f"optim: got {self.args.optim}, which builds its own parameter groups; expected "
                "another optimizer, or no head_learning_rate and no layer_decay."
            )
        groups = options.get("params") or self._decay_groups(trained)
        options = {**options, "params": split_groups(groups, rates, self.args.learning_rate)}
        self.optimizer_cls_and_kwargs = (optimizer_class, options)
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = None

    def _decay_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The Trainer's own two groups: parameters with weight decay, and without."""
        names = set(self.get_decay_parameter_names(model))
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        decayed = [parameter for name, parameter in trained if name in names]
        others = [parameter for name, parameter in trained if name not in names]
        return [
            {"params": decayed, "weight_decay": self.args.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]

    # ---- training steps ----

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the gradients of a batch, with SAM those at the perturbed parameters.

        The perturbation follows the gradients of the batches of all processes together, as if one
        process had all of their examples. The loss returned is that of the parameters themselves.
        """
        if not self.sam_rho:
            return self._gradual_step(*args, **kwargs)
        trained = [p for p in cast("nn.Module", self.model).parameters() if p.requires_grad]
        with ExitStack() as perturbed:
            with isolated_gradients(trained):
                loss = self._gradual_step(*args, **kwargs)
                self._average_gradients(trained)
                perturbed.enter_context(sam_perturbation(trained, self.sam_rho))
            self._gradual_step(*args, **kwargs)
        return loss

    def _average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Average gradients across processes when DDP defers it (gradient accumulation)."""
        if self.args.world_size > 1 and not self.accelerator.sync_gradients:
            for gradient in (p.grad for p in parameters if p.grad is not None):
                gradient.copy_(cast("torch.Tensor", self.accelerator.reduce(gradient, "mean")))

    def _gradual_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A step of the Trainer, without the gradients of layers that are still frozen.

        They are dropped after the processes have averaged them and before they are clipped, so
        that the norm counts what trains.
        """
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        for callback in self._gradual:
            callback.drop_gradients()
        return loss

    # ---- checkpoints ----

    @property
    def _is_sharded(self) -> bool:
        # FSDP and DeepSpeed save and load shards of every parameter, which is exact.
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
        elif self.is_world_process_zero():  # `train` broadcasts it to the others
            self._load_trained(str(self.state.best_model_checkpoint))

    def _load_trained(self, folder: str) -> None:
        load_trained(cast("nn.Module", self.model), self._trained_names, Path(folder))

    # ---- data ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The Trainer's sampler; the length-grouped one replaced by a resumable one."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        sampler = ResumableLengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            example_lengths(self.train_dataset if train_dataset is None else train_dataset),
            self.args.data_seed,
        )
        self._set_epoch.targets.append(sampler)
        return sampler

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, with the exact mean loss over the examples.

        The Trainer counts those examples twice that complete the last batch of several processes.
        """
        output = super().evaluation_loop(*args, **kwargs)
        if self.compute_loss_func is not None and output.label_ids is not None:
            logits, labels = torch.tensor(output.predictions), torch.tensor(output.label_ids)
            loss = self.compute_loss_func({"logits": logits}, labels)
            prefix = kwargs.get("metric_key_prefix", "eval")
            metrics = {**(output.metrics or {}), f"{prefix}_loss": float(loss)}
            output = output._replace(metrics=metrics)
        return output
