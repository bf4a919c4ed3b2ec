"""The frozen layers at the bottom of a model, run once for each pair and not once an epoch.

What leaves the last of them is the same for the same pair in every epoch, seed and trial. It is
computed once, by the model itself, and kept; from then on these layers are left out. Parameters,
their names, checkpoints and the saved model are those of the whole model, because it is the whole
model.

Shapes: B batch, T tokens, H hidden.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedModel

from peft_mrpc.errors import logger
from peft_mrpc.models.architecture import encoder_layers, modules_before_layers
from peft_mrpc.training.activation_cache.bypass import LeftOut
from peft_mrpc.training.activation_cache.disk import fill_refusal, find_room, trunks_dir
from peft_mrpc.training.activation_cache.fill import fill_store, missing_rows
from peft_mrpc.training.activation_cache.fingerprint import describe_frozen, trunk_name
from peft_mrpc.training.activation_cache.plan import TrunkPlan, in_bytes
from peft_mrpc.training.activation_cache.rows import KeyedRows, row_key, row_keys
from peft_mrpc.training.activation_cache.store import TrunkCollator, TrunkStore

# How far activations and logits may lie apart by rounding, as a share of their size. How mixed
# precision rounds depends on the batch, whatever dtype the last operation leaves.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
TOLERANCE_IN = {"fp32": 1e-3, "fp16": 5e-3, "bf16": 2e-2, "fp8": 2e-1}
# The store of the last training in this process, for the next seed or trial.
_HELD: dict[str, TrunkStore] = {}


class _Reached(Exception):
    """Carries out of the model what the last frozen layer gave."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


class _Unfit(Exception):
    """These layers cannot be left out, and why."""


class Trunk:
    """A model's frozen layers, and what they gave.

    Args:
        model: The model, frozen, on its device.
        depth: How many of its first layers are meant, 1 or more.
        plan: Where the activations are kept.
        collator: Pads encoded pairs; gets the store to give out what is in it.
    """

    def __init__(
        self, model: PreTrainedModel, depth: int, plan: TrunkPlan, collator: TrunkCollator
    ) -> None:
        self.model = model
        self.depth = depth
        self.plan = plan
        self.collator = collator
        self._layers = list(encoder_layers(model)[:depth])
        self.num_new = 0  # of the rows prepared, those that the layers ran for
        self._dtype: torch.dtype | None = None
        self._gives_tuple = False
        self._embeddings: nn.Module | None = None  # where they can be left out, too
        self._why_memory = ""  # what was in the way on disk

    def prepare(self, rows: Any, visits: int | None = None) -> str:
        """Have the activations of these rows, computing those that are not there yet.

        Args:
            rows: Encoded pairs.
            visits: How many pairs will be read, by this training and those after it; fewer than
                are to be computed do not pay.
        Returns:
            Why it is better to do without; nothing if all is there.
        """
        keyed = KeyedRows.of(rows)
        by_length = np.argsort(keyed.lengths, kind="stable")
        try:  # of either length: some pad inside themselves
            self._states([rows[by_length[-1]]])
            sample = self._look_at([rows[by_length[0]]])
        except _Unfit as reason:
            return str(reason)
        precision = self.plan.precision
        about = describe_frozen(self.model, self.depth, precision, sample.dtype, self._kept_dtype)
        store = self._open(name := trunk_name(about), int(sample.shape[-1]))
        if store is not _HELD.get(name):
            _HELD.clear()  # two at once would be beyond the limit
        missing = missing_rows(store, keyed.keys)
        size = int(keyed.lengths[missing].sum()) * store.token_bytes
        if store.folder is None and store.resident + size > self.plan.memory_bytes:
            # What other trainings kept gives way.
            store = TrunkStore(None, store.width, store.dtype, self.plan.memory_bytes)
            missing = missing_rows(store, keyed.keys)
            size = int(keyed.lengths[missing].sum()) * store.token_bytes
        refusal = self._make_room(store, size)
        if visits is not None:
            refusal = fill_refusal(len(missing), visits) or refusal
        # Machines may differ in what they have, and in room: all do without, or none.
        if said := _first_of_all(refusal):
            return said
        self.num_new = len(missing)
        place = store.folder or f"in memory{self._why_memory}"
        new = f"{len(missing):,} are new ({in_bytes(size)}, {place})"
        logger.info(
            "cached trunk: %d of %d layers are frozen and run once for each of %s pairs; %s",
            *(self.depth, len(encoder_layers(self.model)), f"{len(np.unique(keyed.keys)):,}"),
            new if missing else f"all are in {store.folder or 'memory'}",
        )
        about["model"] = self.plan.model
        said = self._fill(store, keyed.at(missing), about)
        if said and self.plan.mode == "auto" and not self._make_room(store, size, on_disk=False):
            logger.warning("%s; kept in memory", said)
            store.folder = None
            missing = missing_rows(store, keyed.keys)
            said = self._fill(store, keyed.at(missing), about)
        if said:
            return said
        self.collator.store = store
        _HELD[name] = store
        looked_at = [by_length[len(by_length) * number // 4] for number in range(4)]
        return _first_of_all(self._fault([rows[row] for row in (*looked_at, by_length[-1])]))

    def left_out(self) -> LeftOut:
        """Within its block the model trains on what was kept."""
        assert self._dtype is not None
        return LeftOut(self.model, self._layers, self._embeddings, self._dtype, self._gives_tuple)

    def _open(self, name: str, width: int) -> TrunkStore:
        """The store of this name: of the training before this one, or on disk."""
        folder = None if self.plan.mode == "memory" else trunks_dir() / name
        held, limit = _HELD.get(name), self.plan.memory_bytes
        # `auto` may have had no room on disk.
        places = {folder, None} if self.plan.mode == "auto" else {folder}
        if held is not None and held.folder in places and held.resident_bytes == limit:
            held.refresh()
            return held
        return TrunkStore(folder, width, self._kept_dtype, limit)

    @property
    def _kept_dtype(self) -> torch.dtype:
        assert self._dtype is not None
        kept: torch.dtype = getattr(torch, self.plan.dtype) if self.plan.dtype else self._dtype
        return kept

    @property
    def _tolerance(self) -> float:
        return max(TOLERANCE[self._kept_dtype], TOLERANCE_IN[self.plan.precision])

    def _make_room(self, store: TrunkStore, size: int, on_disk: bool = True) -> str:
        """Settle where so many bytes go; what is in the way, if anything is."""
        on_disk = on_disk and store.folder is not None
        if on_disk and size == 0:
            return ""  # a place that cannot be written, or is full, can be read
        room = find_room(self.plan, size, not on_disk, store.resident, store.folder)
        if room.in_memory:
            store.folder = None
            self._why_memory = f": {room.reason}" if room.reason else ""
        return room.refusal

    def _fill(self, store: TrunkStore, rows: KeyedRows, about: Mapping[str, Any]) -> str:
        """Compute rows; why they cannot be kept on one of the processes, if so."""
        limit = self.plan.disk_bytes
        return _first_of_all(fill_store(store, rows, about, self._row_states, limit))

    def _row_states(self, rows: Sequence[Any]) -> Iterator[tuple[bytes, torch.Tensor]]:
        """The key of each row, and what the layers give for its own tokens, [T, H]."""
        states = self._states(rows).cpu()
        mask = self.collator.collate([*rows])["attention_mask"].bool()
        for row, own, real in zip(rows, states, mask, strict=True):
            yield row_key(row), own[real]

    def _states(self, rows: Sequence[Any]) -> torch.Tensor:
        """What leaves the last frozen layer, [B, T, H], in eval mode."""

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            self._gives_tuple = isinstance(output, tuple)
            raise _Reached(output[0] if self._gives_tuple else output)

        hook = self._layers[-1].register_forward_hook(stop)
        kind = self.model.config.model_type
        try:
            self._logits(rows, cached=False)
        except _Reached as reached:
            shape = self.collator.collate([dict(row) for row in rows])["attention_mask"].shape
            if reached.states.shape[:2] != shape:
                raise _Unfit(f"{kind} pads pairs inside itself") from None
            return reached.states
        finally:
            hook.remove()
        raise _Unfit(f"{kind} calls none of its layers")

    def _look_at(self, rows: Sequence[Any]) -> torch.Tensor:
        """What leaves the last frozen layer, and whether the embeddings could be that as well.

        As a rule the first layer alone reads them, which is left out: for their shape and dtype.
        """
        before = modules_before_layers(self.model)
        seen: list[Any] = []
        hooks = [m.register_forward_hook(lambda *call: seen.append(call[-1])) for m in before]
        try:
            states = self._states(rows)
        finally:
            for hook in hooks:
                hook.remove()
        self._dtype = states.dtype
        alike = [
            isinstance(one, torch.Tensor) and (one.shape, one.dtype) == (states.shape, states.dtype)
            for one in seen
        ]
        self._embeddings = before[0] if len(before) == 1 and alike == [True] else None
        return states

    @torch.no_grad()
    def _logits(self, rows: Sequence[Any], cached: bool) -> torch.Tensor:
        batch = (self.collator if cached else self.collator.collate)([dict(row) for row in rows])
        batch.pop("labels", None)
        was_training = self.model.training
        self.model.train(False)
        try:
            return cast("torch.Tensor", self.model(**batch.to(self.model.device)).logits)
        finally:
            self.model.train(was_training)

    def _fault(self, rows: Sequence[Any]) -> str:
        """Whether a few rows, of all lengths, get anything else from what was kept."""
        if differs := self._states_fault(rows):
            return differs
        plain = self._logits(rows, cached=False).float()
        with self.left_out():
            cached = self._logits(rows, cached=True).float()
        apart = float((plain - cached).abs().max())
        if apart <= self._tolerance * max(1.0, float(plain.abs().max())):
            return ""
        if self._embeddings is not None:  # something beside the first layer may read them
            self._embeddings = None
            return self._fault(rows)
        return f"{self.model.config.model_type} gives other logits by them ({apart:.2g} apart)"

    def _states_fault(self, rows: Sequence[Any]) -> str:
        """Whether what was kept of some rows is not what the layers give."""
        store = self.collator.store
        assert store is not None
        all_kept = store.states(row_keys(rows))
        if not all_kept:
            return "some of what was kept cannot be read back"
        apart = 0.0
        alone = (one for row in rows for one in self._row_states([row]))  # padded by nothing
        for (_, states), kept in zip(alone, all_kept, strict=True):
            kept, plain = kept.float(), states.float()
            apart = max(apart, float((kept - plain).norm() / plain.norm()))
        if apart <= self._tolerance:
            return ""
        where = (
            f"{store.folder} (`peft-mrpc cache --clear` removes it)" if store.folder else "memory"
        )
        return f"what is kept in {where} is not what the layers give ({apart:.2g} of it apart)"


def _first_of_all(refusal: str) -> str:
    """What the first process that refuses says; nothing if none does."""
    return str(next(filter(None, gather_object([refusal])), ""))
