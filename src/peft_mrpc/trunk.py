"""The frozen layers at the bottom of a model, run once for each pair and not once an epoch.

What leaves the last of them is the same for the same pair in every epoch, seed and trial. It is
computed once, by the model itself, and kept; from then on each of these layers hands on what it is
given, and the last of them gives out what was kept. Parameters, their names, checkpoints and the
saved model are those of the whole model, because it is the whole model.

Shapes: B batch, T tokens, H hidden.
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from peft_mrpc.errors import logger, one_line
from peft_mrpc.freezing import encoder_layers, modules_after_layers
from peft_mrpc.kept_trunks import describe_trunk, fill_refusal, find_room, trunks_dir
from peft_mrpc.processes import process_state
from peft_mrpc.scoring import length_sorted_batches
from peft_mrpc.trunk_plan import TrunkPlan, in_bytes
from peft_mrpc.trunk_rows import Writer, raw_bytes, row_key
from peft_mrpc.trunk_store import STATES, TrunkCollator, TrunkStore

Rows = Sequence[Mapping[str, Any]]
# Rows in a forward pass when the activations are computed: nothing is kept for a backward pass.
FILL_BATCH = 32
# How far activations and logits may lie apart by rounding, as a share of their size.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
# What of a configuration changes no activation.
NOT_COMPUTED = {
    *("_name_or_path", "architectures", "dtype", "transformers_version"),
    *("id2label", "label2id", "problem_type"),
}
# Of the files; those of another are not found.
FORMAT = 2
# The store of the last training in this process, for the next seed or trial.
_HELD: dict[str, TrunkStore] = {}


def trunk_depth(model: PreTrainedModel) -> int:
    """How many of the first layers give the same for the same pair throughout the training.

    None, unless all that trains of the encoder stands in the layers above them, or after: what
    stands beside the layers (DeBERTa's relative embeddings) may feed every one of them.
    """
    layers = encoder_layers(model)
    depth = 0
    while depth < len(layers) and not _trains(layers[depth]):
        depth += 1
    above = [*layers[depth:], *modules_after_layers(model)]
    inside = {id(parameter) for part in above for parameter in part.parameters()}
    others = (p for p in model.base_model.parameters() if id(p) not in inside)
    return 0 if any(parameter.requires_grad for parameter in others) else depth


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


class _Reached(Exception):
    """Carries out of the model what the last frozen layer gave."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


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
        self._given: torch.Tensor | None = None  # [B, T, H], of the batch that the model is at
        self._dtype: torch.dtype | None = None
        self._gives_tuple = False
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._own_forwards: list[Any] = []  # of layers that had one of their own

    def prepare(self, rows: Rows, visits: int | None = None) -> str:
        """Have the activations of these rows, computing those that are not there yet.

        Args:
            rows: Encoded pairs.
            visits: How many pairs will be read, by this training and those after it; fewer than
                are to be computed do not pay.
        Returns:
            Why it is better to do without; nothing if all is there.
        """
        by_key = {row_key(row): row for row in rows}
        self._dtype = (sample := self._states([rows[0]])).dtype
        about = self._about()
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
        store = self._open(name, int(sample.shape[-1]))
        missing, size = _missing(store, by_key)
        if store.folder is None and store.resident + size > self.plan.memory_bytes:
            # What other trainings kept gives way.
            store = TrunkStore(None, store.width, store.dtype, self.plan.memory_bytes)
            missing, size = _missing(store, by_key)
        refusal = self._make_room(store, size)
        if visits is not None:
            refusal = fill_refusal(len(missing), visits) or refusal
        # Machines may differ in what they have, and in room: all do without, or none.
        if refusals := [*filter(None, gather_object([refusal]))]:
            return str(refusals[0])
        logger.info(
            "cached trunk: %d of %d layers are frozen and run once for each of %s pairs; %s",
            *(self.depth, len(encoder_layers(self.model)), f"{len(by_key):,}"),
            f"{len(missing):,} are new ({in_bytes(size)}, {store.folder or 'in memory'})"
            if missing
            else f"all are in {store.folder or 'memory'}",
        )
        about["model"] = self.plan.model
        if refusals := [*filter(None, gather_object([self._fill(store, missing, about)]))]:
            return str(refusals[0])
        self.collator.store = store
        _HELD.clear()
        _HELD[name] = store
        faults = gather_object([self._fault(list(by_key.values()))])
        return str(next(filter(None, faults), ""))

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

    def _about(self) -> dict[str, Any]:
        """All that the activations depend on, but for the pairs."""
        encoder = cast("PreTrainedModel", self.model.base_model)
        config = encoder.config.to_diff_dict()
        computed = [key for key in sorted(set(config) - NOT_COMPUTED) if "drop" not in key]
        return {
            "format": FORMAT,
            "weights": self._weights_digest(),
            "config": {key: str(config[key]) for key in computed},
            "depth": self.depth,
            # A last layer that computes one token alone gives that one for all.
            "first_token": getattr(self._layers[-1], "first_token", None),
            "computed_in": [
                *(self.plan.precision, str(self._dtype), self.model.device.type),
                *(torch.get_float32_matmul_precision(), encoder.config._attn_implementation),
            ],
            "kept_in": str(self._kept_dtype),
            "versions": [torch.__version__, transformers.__version__],
        }

    def _weights_digest(self) -> str:
        """Of every weight of the encoder but those above the trunk."""
        encoder = self.model.base_model
        parts = [*encoder_layers(self.model)[self.depth :], *modules_after_layers(self.model)]
        above = tuple(f"{name}." for name, part in encoder.named_modules() if part in parts)
        digest = hashlib.sha256()
        for name, tensor in encoder.state_dict().items():
            if not name.startswith(above) and isinstance(tensor, torch.Tensor):
                digest.update(name.encode())
                digest.update(raw_bytes(tensor.detach().cpu().reshape(-1)))
        return digest.hexdigest()

    def _make_room(self, store: TrunkStore, size: int) -> str:
        """Settle where so many bytes go; what is in the way, if anything is."""
        if store.folder is not None and size == 0:
            return ""  # a place that cannot be written, or is full, can be read
        in_memory, refusal = find_room(self.plan, size, store.folder is None)
        if in_memory:
            store.folder = None
        return refusal

    def _fill(self, store: TrunkStore, rows: Rows, about: Mapping[str, Any]) -> str:
        """Compute the activations of rows, each process its share.

        Returns:
            Why they cannot be kept; nothing if all is well.
        """
        state = process_state()
        index, count = state.process_index, state.num_processes
        if count > 1 and not _is_common(trunks_dir()):
            # Each machine has a disk of its own, and needs every row.
            index = state.local_process_index
            count = int(os.environ.get("LOCAL_WORLD_SIZE", count))
        fault = self._fill_share(store, rows, about, index, count)
        state.wait_for_everyone()
        store.refresh()
        by_key = {row_key(row): row for row in rows}
        # Another job may have come between what each process found missing.
        if not fault and (left := _missing(store, by_key)[0]):
            fault = self._fill_share(store, left, about, 0, 1)
            store.refresh()
            store.take(by_key)
        return fault

    def _fill_share(
        self, store: TrunkStore, rows: Rows, about: Mapping[str, Any], index: int, count: int
    ) -> str:
        """Compute every so-manieth batch of rows; why they cannot be written, if so."""
        batches = length_sorted_batches([len(row["input_ids"]) for row in rows], FILL_BATCH)
        if index >= len(batches):  # nothing to do: a store that is complete may be read-only
            return ""
        silent = not logger.isEnabledFor(logging.INFO)
        bar = tqdm(total=len(rows), desc="frozen layers", unit="pair", disable=silent)
        try:
            if store.folder is not None:
                describe_trunk(store.folder, about)
            with bar, store.adding() as writer:
                for number, batch in enumerate(batches):
                    if number % count == index:
                        self._fill_batch(writer, [rows[row] for row in batch])
                    bar.update(len(batch))
        except OSError as error:
            return f"{store.folder} cannot be written: {one_line(error)}"
        return ""

    def _fill_batch(self, writer: Writer, rows: Rows) -> None:
        states = self._states(rows).to("cpu", self._kept_dtype)
        mask = self.collator.collate([*rows])["attention_mask"].bool()
        for row, own, real in zip(rows, states, mask, strict=True):
            writer.add(row_key(row), own[real])

    def _states(self, rows: Rows) -> torch.Tensor:
        """What leaves the last frozen layer, [B, T, H], in eval mode."""

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            self._gives_tuple = isinstance(output, tuple)
            raise _Reached(output[0] if self._gives_tuple else output)

        hook = self._layers[-1].register_forward_hook(stop)
        try:
            self._logits(rows, cached=False)
        except _Reached as reached:
            return reached.states
        finally:
            hook.remove()
        raise AssertionError("the frozen layers did not run")

    @torch.no_grad()
    def _logits(self, rows: Rows, cached: bool) -> torch.Tensor:
        batch = (self.collator if cached else self.collator.collate)([dict(row) for row in rows])
        batch.pop("labels", None)
        was_training = self.model.training
        self.model.train(False)
        try:
            return cast("torch.Tensor", self.model(**batch.to(self.model.device)).logits)
        finally:
            self.model.train(was_training)

    def _fault(self, rows: Rows) -> str:
        """Whether a few rows, of all lengths, get anything else from what was kept."""
        by_length = sorted(rows, key=lambda row: len(row["input_ids"]))
        some = [by_length[len(rows) * number // 4] for number in range(4)] + by_length[-1:]
        if differs := self._states_fault(some):
            return differs
        plain = self._logits(some, cached=False).float()
        with self:
            cached = self._logits(some, cached=True).float()
        apart = float((plain - cached).abs().max())
        if apart <= TOLERANCE[self._kept_dtype] * max(1.0, float(plain.abs().max())):
            return ""
        return f"{self.model.config.model_type} gives other logits by them ({apart:.2g} apart)"

    def _states_fault(self, rows: Rows) -> str:
        """Whether what was kept of some rows is not what the layers give."""
        store = self.collator.store
        assert store is not None
        states = self._states(rows).float().cpu()
        mask = self.collator.collate([*rows])["attention_mask"].bool()
        apart = 0.0
        for row, own, real in zip(rows, states, mask, strict=True):
            kept, plain = store[row_key(row)].float(), own[real]
            apart = max(apart, float((kept - plain).norm() / plain.norm()))
        if apart <= TOLERANCE[self._kept_dtype]:
            return ""
        where = (
            f"{store.folder} (`peft-mrpc cache --clear` removes it)" if store.folder else "memory"
        )
        return f"what is kept in {where} is not what the layers give ({apart:.2g} of it apart)"

    def __enter__(self) -> "Trunk":
        """From here on the frozen layers hand on what they are given."""
        self._hooks = [
            self.model.register_forward_pre_hook(self._take, with_kwargs=True),
            # What calls the encoder by itself gets what it asks for.
            self.model.register_forward_hook(self._drop, always_call=True),
        ]
        for layer in self._layers:
            self._own_forwards.append(vars(layer).get("forward"))
            layer.forward = self._bypass(layer)
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for layer, own in zip(self._layers, self._own_forwards, strict=True):
            del layer.forward
            if own is not None:  # accelerate's, say
                layer.forward = own
        self._own_forwards.clear()
        self._given = None

    def _drop(self, *_: Any) -> None:
        self._given = None

    def _take(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        given = kwargs.pop(STATES, None)
        self._given = None if given is None else given.to(self.model.device, self._dtype)
        return args, kwargs

    def _bypass(self, layer: nn.Module) -> Callable[..., Any]:
        compute, is_last = layer.forward, layer is self._layers[-1]

        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._given is None:  # a batch without: one of another split, say
                return compute(hidden_states, *args, **kwargs)
            states = self._given if is_last else hidden_states
            return (states, None) if self._gives_tuple else states  # no attention weights

        return forward


def _missing(store: TrunkStore, by_key: Mapping[bytes, Any]) -> tuple[list[Any], int]:
    """The rows that a store lacks, and how many bytes they take; it takes in the others."""
    store.take(by_key)
    missing = [row for key, row in by_key.items() if key not in store]
    return missing, sum(len(row["input_ids"]) for row in missing) * store.token_bytes


def _is_common(folder: Path) -> bool:
    """Whether every process sees this directory."""
    holder = [uuid.uuid4().hex]
    broadcast_object_list(holder)
    mark = folder / f".{holder[0]}"
    if process_state().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    process_state().wait_for_everyone()
    seen = all(gather_object([mark.exists()]))
    if process_state().is_main_process:
        mark.unlink()
    return seen
