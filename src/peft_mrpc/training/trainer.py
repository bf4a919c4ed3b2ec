"""The Hugging Face Trainer with parameter groups, SAM, and exact checkpoints and evaluation."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import SchedulerType, Trainer, TrainerState
from transformers.training_args import OptimizerNames

from peft_mrpc.errors import UserError, one_line
from peft_mrpc.interop.transformers_internals import builds_parameter_groups
from peft_mrpc.methods.layer_freeze import FreezeCallback
from peft_mrpc.models.architecture import (
    base_classifier,
    encoder_layers,
    head_parameter_ids,
    modules_after_layers,
    trainable_names,
)
from peft_mrpc.training.activation_cache.callback import ActivationCacheCallback
from peft_mrpc.training.callbacks import ContextCallback
from peft_mrpc.training.checkpoints import STATE_FILE, load_trained, save_trained
from peft_mrpc.training.samplers import (
    EpochSeeded,
    ResumableLengthGroupedSampler,
    SetEpochCallback,
    example_lengths,
)

# Callbacks that change the model's forward pass while it trains.
RESTORING = (ActivationCacheCallback, ContextCallback)


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

    def load_result(self, checkpoint: str) -> None:
        """Load the result of a training that has ended, from its last checkpoint.

        Resumed there within an epoch, the Trainer takes one step too many (transformers 5.23).
        """
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / STATE_FILE))
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        self._load_trained(best or checkpoint)

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
        with contextlib.ExitStack() as perturbed:
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


# ---- parameter groups: the learning rates of the head and of each layer ----


def learning_rates(
    model: nn.Module,
    learning_rate: float,
    head_learning_rate: float | None,
    layer_decay: float | None,
) -> dict[int, float]:
    """Learning rates that differ from `learning_rate`, by the identity of the parameter.

    Discriminative fine-tuning (arXiv:1801.06146, section 3.2; arXiv:2006.05987): layer l of L
    trains at `learning_rate * layer_decay ** (L - 1 - l)`, including what a method adds to it, and
    the embeddings at `learning_rate * layer_decay ** L`. Modules after the layers and virtual
    tokens belong to no layer and train at `learning_rate`.

    Args:
        model: The model to train, with or without PEFT.
        learning_rate: Peak rate of the last layer.
        head_learning_rate: Peak rate of the head; None for `learning_rate`.
        layer_decay: Ratio of the rates of a layer and the layer above it; None for 1.
    Raises:
        UserError: If `layer_decay` is given and the model has no stack of layers.
    """
    rates: dict[int, float] = {}
    if layer_decay is not None:
        classifier = base_classifier(model)
        layers = encoder_layers(classifier)
        depths: list[tuple[nn.Module, int]] = [(classifier.base_model, len(layers))]
        # Later entries are parts of the first one and overwrite its rate.
        depths += [(layer, len(layers) - 1 - number) for number, layer in enumerate(layers)]
        depths += [(module, 0) for module in modules_after_layers(classifier)]
        for module, depth in depths:
            rate = learning_rate * layer_decay**depth
            rates |= {id(parameter): rate for parameter in module.parameters()}
    if head_learning_rate is not None:
        rates |= dict.fromkeys(head_parameter_ids(model), head_learning_rate)
    return {key: rate for key, rate in rates.items() if rate != learning_rate}


def split_groups(
    groups: Iterable[Mapping[str, Any]], rates: Mapping[int, float], learning_rate: float
) -> list[dict[str, Any]]:
    """Split parameter groups by learning rate.

    Args:
        groups: Of an optimizer to be built.
        rates: Of single parameters, by identity.
        learning_rate: Of all others. Its groups come first: the Trainer logs the first group's.
    """
    split: list[dict[str, Any]] = []
    for group in groups:
        by_rate: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(rates.get(id(parameter), learning_rate), []).append(parameter)
        split += [{**group, "params": params, "lr": rate} for rate, params in by_rate.items()]
    return sorted(split, key=lambda group: group["lr"] != learning_rate)


# ---- sharpness-aware minimization (SAM, arXiv:2010.01412) ----


@contextlib.contextmanager
def isolated_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the block parameters have no gradients yet; the earlier ones are restored after it.

    The gradients of earlier batches of an accumulated step do not belong to the SAM perturbation.
    """
    saved = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in saved:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in saved:
            parameter.grad = gradient


@contextlib.contextmanager
def sam_perturbation(parameters: Iterable[nn.Parameter], rho: float) -> Iterator[None]:
    """Within the block parameters are moved by `rho` along their gradients.

    The distance is that of all parameters together (section 3, equation 2, with p = 2).

    Args:
        parameters: Those without a gradient are not moved.
        rho: Distance in the 2-norm.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in moved]
    try:
        _perturb(moved, rho)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)


@torch.no_grad()
def _perturb(parameters: Iterable[nn.Parameter], rho: float) -> None:
    pairs = [(p, p.grad) for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([gradient for _, gradient in pairs])
    for parameter, gradient in pairs:
        parameter.add_(gradient * (rho / (norm + 1e-12)).to(gradient.device))
