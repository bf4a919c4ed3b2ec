"""Frozen layers run once for each pair: the Trainer's callback, and why it may not be."""

import math
import time
from collections.abc import Sequence
from typing import Any, cast

from torch.utils.data import ConcatDataset
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from peft_mrpc.errors import UserError, logger
from peft_mrpc.training.activation_cache.bypass import LeftOut
from peft_mrpc.training.activation_cache.cache import Trunk
from peft_mrpc.training.activation_cache.fingerprint import trunk_depth
from peft_mrpc.training.activation_cache.plan import TrunkPlan
from peft_mrpc.training.activation_cache.store import TrunkCollator
from peft_mrpc.training.optimizer_faults import parts_layers


class CacheTrunk(TrainerCallback):
    """Run frozen layers once for each pair, and train on what they gave.

    Args:
        plan: Where that is kept.
        collator: The Trainer's own.
        parts: All encoded pairs that the training reads or evaluates on.
        num_trainings: How many will read them, this one and those after it (seeds, trials).
    """

    def __init__(
        self,
        plan: TrunkPlan,
        collator: TrunkCollator,
        parts: Sequence[Sequence[Any]],
        num_trainings: int = 1,
    ) -> None:
        self.plan = plan
        self.collator = collator
        self.rows: ConcatDataset[Any] = ConcatDataset(cast("Any", parts))
        self.num_trainings = num_trainings
        self._left_out: LeftOut | None = None
        self.seconds = 0.0  # that the activations took
        self.token_bytes = 0  # that those of one token take
        self.num_new: int | None = None  # rows that the layers ran for; None while they run always

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        self.leave()  # the Trainer may begin again with smaller batches
        depth = trunk_depth(model)
        is_asked = self.plan.mode != "auto"
        reason = trunk_refusal(model, args)
        started = time.perf_counter()
        if not reason:
            trunk = Trunk(model, depth, self.plan, self.collator)
            steps = (state.max_steps - state.global_step) * self.num_trainings
            pairs = args.train_batch_size * args.world_size
            visits = math.ceil(steps * args.gradient_accumulation_steps * pairs)
            reason = trunk.prepare(self.rows, None if is_asked else visits)
        if not reason:
            self._left_out = trunk.left_out().__enter__()
            assert self.collator.store is not None
            self.seconds = time.perf_counter() - started
            self.token_bytes = self.collator.store.token_bytes
            self.num_new = trunk.num_new
            return
        if is_asked:
            raise TrunkRefused(self.plan.mode, reason)
        logger.info("frozen layers run every time: %s", reason)
        self.collator.store = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Have the layers run again."""
        if self._left_out is not None:
            self._left_out.__exit__()
            self._left_out = None
        self.collator.store = None


class TrunkRefused(UserError):
    """A trunk that was asked for cannot be; the reason as a part of a sentence."""

    def __init__(self, mode: str, reason: str) -> None:
        super().__init__(f"--trunk_cache: got {mode!r}, but {reason}.")
        self.reason = reason


def trunk_refusal(model: PreTrainedModel, args: TrainingArguments) -> str:
    """Why a model's frozen layers run every time; nothing if they need not."""
    is_bare = trunk_depth(model) == 0
    return "no layer at the bottom is frozen" if is_bare else unfit_for_trunk(args)


def unfit_for_trunk(args: TrainingArguments) -> str:
    """What about the way of training lets no layer be left out; nothing if all is well."""
    if parts_layers(args):
        return "FSDP and DeepSpeed part the layers among the processes"
    return "--torch_compile has compiled them" if args.torch_compile else ""
