"""The Trainer callback that runs frozen layers once for each example."""

import hashlib
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from peft_mrpc.distributed import is_sharded
from peft_mrpc.formatting import format_bytes
from peft_mrpc.interop.transformers_internals import attn_implementation
from peft_mrpc.models.architecture import (
    encoder_layers,
    has_layers,
    is_trained,
    modules_after_layers,
)
from peft_mrpc.precision import trainer_precision
from peft_mrpc.training.activation_cache.bypass import CacheUnavailableError, FrozenLayers
from peft_mrpc.training.activation_cache.store import (
    ActivationCache,
    CachedCollator,
    example_key,
    raise_on_all,
)

logger = logging.getLogger(__name__)

# Largest relative difference of logits by rounding, by the precision of the training and by the
# dtype of the activations. The rounding of mixed precision depends on the shape of the batch.
TOLERANCE = {
    **{"fp32": 1e-3, "fp16": 5e-3, "bf16": 2e-2, "fp8": 2e-1},
    **{"torch.float32": 1e-3, "torch.float16": 5e-3, "torch.bfloat16": 2e-2},
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
        num_computed: Examples that the frozen layers ran for; None if the cache is not used.
        seconds: Time that this took.
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
        self._skipped = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()  # the Trainer begins again with smaller batches (auto_find_batch_size)
        num_reads = state.max_steps * args.gradient_accumulation_steps * args.train_batch_size
        try:
            self._fill(kwargs["model"], args, num_reads * args.world_size)
        except CacheUnavailableError as error:
            self.restore()
            if self.mode == "on":
                raise
            logger.info("activation cache: not used, %s", error.reason)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Run the frozen layers for each batch again."""
        self._skipped.close()
        self.collator.cache = None

    def _fill(self, model: PreTrainedModel, args: TrainingArguments, num_reads: int) -> None:
        """Compute the activations that the cache lacks, and skip the frozen layers.

        Raises:
            CacheUnavailableError: On every process, if this is not possible or does not pay.
        """
        self.num_computed = None
        check_cacheable(model, args)
        layers = FrozenLayers(model, num_frozen_layers(model))
        lengths = self.examples["length"][:]
        by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
        samples = self.examples.__getitems__(
            [by_length[(len(by_length) - 1) * number // 4] for number in range(5)]
        )
        # The shortest example shows padding to a multiple inside the model.
        layers.compute(self.collator.collate(samples[:1]))
        rows = {example_key(example): row for row, example in enumerate(self.examples)}
        layers_key = fingerprint(model, layers.depth, args)
        num_computed = 0 if self.cache.has_all(layers_key, rows) else len(rows)
        if self.mode == "auto" and num_computed > num_reads:
            raise CacheUnavailableError(
                f"training reads {num_reads:,} examples, fewer than the {num_computed:,} to compute"
            )
        if num_computed:
            started = time.perf_counter()
            examples = self.examples.select(list(rows.values()))
            self.cache.fill(layers_key, examples, layers, self.collator.collate)
            self.seconds = time.perf_counter() - started
        size = format_bytes(sum(lengths[row] for row in rows.values()) * layers.token_bytes)
        logger.info(
            "activation cache: the first %d of %d layers are frozen and run once for each of %s "
            "examples (%s, %s)",
            *(layers.depth, len(layers.layers), f"{len(rows):,}", size),
            "computed now" if num_computed else "computed before",
        )
        plain = layers.logits(self.collator.collate(samples)).float()
        self.collator.cache = self.cache
        self._skipped.enter_context(layers.skipped())
        difference = float((layers.logits(self.collator(samples)).float() - plain).abs().max())
        tolerance = max(TOLERANCE[trainer_precision(args)], TOLERANCE[str(layers.dtype)])
        is_equal = difference <= tolerance * max(1.0, float(plain.abs().max()))
        refusal = f"{model.config.model_type} has other logits with it ({difference:.2g} apart)"
        raise_on_all("" if is_equal else refusal)
        self.num_computed = num_computed


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


def check_cacheable(model: PreTrainedModel, args: TrainingArguments) -> None:
    """Check that the frozen layers of a model can be cached.

    Raises:
        CacheUnavailableError: If not.
    """
    if num_frozen_layers(model) == 0:
        raise CacheUnavailableError("the first layer of the model is not frozen")
    if is_sharded(args):
        raise CacheUnavailableError("FSDP and DeepSpeed split the layers among the processes")
    if args.torch_compile:
        raise CacheUnavailableError("torch_compile has compiled the layers")


def fingerprint(model: PreTrainedModel, depth: int, args: TrainingArguments) -> str:
    """A digest of all that the activations depend on, except for the examples."""
    encoder: Any = model.base_model
    computation = (depth, trainer_precision(args), args.tf32, attn_implementation(encoder.config))
    config = encoder.config.to_json_string()
    digest = hashlib.sha256(repr((computation, str(model.device), config)).encode())
    above: Sequence[Any] = [*encoder_layers(model)[depth:], *modules_after_layers(model)]
    prefixes = tuple(f"{name}." for name, part in encoder.named_modules() if part in above)
    for name, tensor in encoder.state_dict().items():
        if isinstance(tensor, torch.Tensor) and not name.startswith(prefixes):
            values = tensor.detach().cpu().reshape(-1).contiguous()
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()
