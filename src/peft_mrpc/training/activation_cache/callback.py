"""The Trainer callback that runs frozen layers once for each example."""

import hashlib
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate.utils import convert_file_size_to_int
from datasets import Dataset, concatenate_datasets
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from peft_mrpc.distributed import is_sharded
from peft_mrpc.errors import UserError
from peft_mrpc.formatting import format_bytes
from peft_mrpc.interop.transformers_internals import attn_implementation
from peft_mrpc.models.architecture import (
    encoder_layers,
    has_layers,
    is_trained,
    modules_after_layers,
)
from peft_mrpc.precision import trainer_precision
from peft_mrpc.training.activation_cache.bypass import FrozenLayers
from peft_mrpc.training.activation_cache.fill import (
    example_keys,
    fill_cache,
    first_refusal,
    missing_rows,
)
from peft_mrpc.training.activation_cache.store import ActivationCache, CachedCollator

logger = logging.getLogger(__name__)

MODES = ("auto", "on", "off")
# Largest relative difference of logits by rounding, by the precision of the training and by the
# dtype of the activations. The rounding of mixed precision depends on the shape of the batch.
TOLERANCE = {
    **{"fp32": 1e-3, "fp16": 5e-3, "bf16": 2e-2, "fp8": 2e-1},
    **{"torch.float32": 1e-3, "torch.float16": 5e-3, "torch.bfloat16": 2e-2},
}
# Fields of a configuration that the activations do not depend on.
IRRELEVANT_FIELDS = {
    *("_name_or_path", "architectures", "dtype", "transformers_version"),
    *("id2label", "label2id", "problem_type"),
}


class ActivationCacheCallback(TrainerCallback):
    """Run the frozen first layers once for each example, and train on their cached activations.

    Args:
        mode: `auto` trains without the cache where it cannot be used or does not pay; `on` raises
            an error where it cannot be used.
        cache: Holds the activations; its owner may use it for the next training too.
        collator: The Trainer's data collator.
        datasets: All encoded examples that training and evaluation read.

    Attributes:
        seconds: Time that the activations took.
        num_computed: Examples that the frozen layers ran for; None if the cache is not used.
        token_bytes: Size of one token's activations.
    """

    def __init__(
        self, mode: str, cache: ActivationCache, collator: CachedCollator, datasets: list[Dataset]
    ) -> None:
        self.mode = mode
        self.cache = cache
        self.collator = collator
        self.examples = concatenate_datasets(datasets)
        self.seconds = 0.0
        self.num_computed: int | None = None
        self.token_bytes = 0
        self._skipped = ExitStack()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        self.restore()  # the Trainer begins again with smaller batches (auto_find_batch_size)
        started = time.perf_counter()
        reads = state.max_steps * args.gradient_accumulation_steps * args.train_batch_size
        reads *= args.world_size * max(1, self.cache.num_trainings)
        self.cache.num_trainings -= 1
        reason = cache_refusal(model, args)
        if not reason:
            reason = self._prepare(model, args, reads)
        self.seconds = time.perf_counter() - started
        if reason:
            self.restore()
            self.num_computed = None
            if self.mode == "on":
                raise ActivationCacheError(reason)
            logger.info("activation cache: not used, %s", reason)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Run the frozen layers for each batch again."""
        self._skipped.close()
        self.collator.cache = None

    def _prepare(self, model: PreTrainedModel, args: TrainingArguments, reads: int) -> str:
        """Compute the missing activations and skip the layers; the reason if that fails."""
        layers = FrozenLayers(model, num_frozen_layers(model))
        lengths = self.examples["length"][:]
        by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
        samples = self.examples.__getitems__(
            [by_length[(len(by_length) - 1) * number // 4] for number in range(5)]
        )
        # The shortest shows padding to a multiple inside the model.
        if refusal := self._layers_refusal(layers, samples[-1]):
            return refusal
        if refusal := self._layers_refusal(layers, samples[0]):
            return refusal
        self.token_bytes = layers.token_bytes
        self.cache.select(fingerprint(model, layers.depth, args))
        keys = example_keys(self.examples)
        missing = missing_rows(self.cache, keys)
        if self.mode == "auto" and (refusal := fill_refusal(len(missing), reads)):
            return refusal
        if missing:
            examples, missing_keys = self.examples.select(missing), [keys[row] for row in missing]
            if refusal := fill_cache(self.cache, layers, self.collator, examples, missing_keys):
                return refusal
        size = format_bytes(sum(lengths[row] for row in missing) * self.token_bytes)
        logger.info(
            "activation cache: the first %d of %d layers are frozen and run once for each of %s "
            "examples (%s)",
            *(layers.depth, len(layers.layers), f"{len({*keys}):,}"),
            f"{len(missing):,} of them now, {size}" if missing else "all of them before",
        )
        self.num_computed = len(missing)
        plain = layers.logits(self.collator.collate(samples)).float()
        self.collator.cache = self.cache
        self._skipped.enter_context(layers.skipped())
        difference = float((layers.logits(self.collator(samples)).float() - plain).abs().max())
        tolerance = max(TOLERANCE[trainer_precision(args)], TOLERANCE[str(layers.dtype)])
        is_equal = difference <= tolerance * max(1.0, float(plain.abs().max()))
        refusal = f"{model.config.model_type} has other logits with it ({difference:.2g} apart)"
        return first_refusal("" if is_equal else refusal)

    def _layers_refusal(self, layers: FrozenLayers, sample: Any) -> str:
        """Why the activations of single tokens cannot be cached; empty if they can."""
        batch = self.collator.collate([sample])
        activations, name = layers.compute(batch), layers.model.config.model_type
        if activations is None:
            return f"{name} does not call its layers one by one"
        is_padded = activations.shape[:2] != batch["attention_mask"].shape
        return f"{name} pads examples inside the model" if is_padded else ""


class ActivationCacheError(UserError):
    """The activation cache was requested and cannot be used.

    Attributes:
        reason: The cause, as a clause.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"activation_cache: got 'on', but {reason}; expected auto or off.")
        self.reason = reason


def cache_faults(mode: str, memory: str) -> list[str]:
    """What is wrong with the two options of the cache."""
    faults = []
    if mode not in MODES:
        faults.append(f"activation_cache: got {mode!r}; expected one of {', '.join(MODES)}.")
    try:
        convert_file_size_to_int(memory)
    except ValueError:
        faults.append(f"activation_cache_memory: got {memory!r}; expected a size such as 2GB.")
    return faults


def num_frozen_layers(model: PreTrainedModel) -> int:
    """How many of the first layers compute the same for an example throughout the training.

    This is 0 if anything else of the encoder trains than the layers above them and the modules
    after all layers: DeBERTa's relative embeddings, for example, are an input of every layer.
    """
    if not has_layers(model):  # ALBERT repeats one layer
        return 0
    layers = encoder_layers(model)
    depth = next((n for n, layer in enumerate(layers) if is_trained(layer)), len(layers))
    above = [*layers[depth:], *modules_after_layers(model)]
    inside = {id(parameter) for module in above for parameter in module.parameters()}
    others = (p for p in model.base_model.parameters() if id(p) not in inside)
    return 0 if any(parameter.requires_grad for parameter in others) else depth


def cache_refusal(model: PreTrainedModel, args: TrainingArguments) -> str:
    """Why the frozen layers of a model cannot be cached; empty if they can."""
    if num_frozen_layers(model) == 0:
        return "the first layer of the model is not frozen"
    return argument_refusal(args)


def argument_refusal(args: TrainingArguments) -> str:
    """Which training argument rules the cache out; empty if there is none."""
    if is_sharded(args):
        return "FSDP and DeepSpeed split the layers among the processes"
    return "torch_compile has compiled the layers" if args.torch_compile else ""


def fill_refusal(num_missing: int, num_reads: int) -> str:
    """Why it does not pay to compute so many activations; empty if it does.

    Args:
        num_missing: Examples to run the layers for.
        num_reads: Examples that this training and the expected ones after it read.
    """
    if num_missing <= num_reads:
        return ""
    return f"training reads {num_reads:,} examples, fewer than the {num_missing:,} to compute"


def fingerprint(model: PreTrainedModel, depth: int, args: TrainingArguments) -> str:
    """A digest of all that the activations depend on, except for the examples."""
    encoder: Any = model.base_model
    config = {
        key: str(value)
        for key, value in sorted(encoder.config.to_diff_dict().items())
        if key not in IRRELEVANT_FIELDS and "drop" not in key
    }
    computation = (trainer_precision(args), args.tf32, attn_implementation(encoder.config))
    digest = hashlib.sha256(repr((config, depth, computation, str(model.device))).encode())
    above: Sequence[Any] = [*encoder_layers(model)[depth:], *modules_after_layers(model)]
    prefixes = tuple(f"{name}." for name, part in encoder.named_modules() if part in above)
    for name, tensor in encoder.state_dict().items():
        if isinstance(tensor, torch.Tensor) and not name.startswith(prefixes):
            digest.update(name.encode())
            values = tensor.detach().cpu().reshape(-1).contiguous()
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()
