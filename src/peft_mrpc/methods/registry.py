"""The methods of adapting a model, one entry each.

A new method is an entry in `METHODS` and a file of its name in `recipes/`.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
)
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from peft_mrpc.errors import UserError, one_line, raise_faults, unknown_name
from peft_mrpc.methods.layer_freeze import (
    FreezeCallback,
    LayerFreezeOptions,
    layer_freeze_stages,
)
from peft_mrpc.methods.peft_adapters import add_adapter, targets_linear_in_some_layers
from peft_mrpc.methods.peft_options import listed_names, option_faults
from peft_mrpc.options import build_nested, option_types, packaged_recipe

# Hidden size and number of layers of the model that the recipes were tuned on (MiniLM).
RECIPE_WIDTH, RECIPE_DEPTH = 384, 6
# Fields of PEFT's configs that are not options of the method.
RESERVED_PEFT_FIELDS = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "inference_mode",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    # The tokenizer and the sizes of the base model.
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
    "token_dim",
    "num_transformer_submodules",
    "num_attention_heads",
    "num_layers",
}
# Options that exclude one of the recipe: where the first is set, the recipe has these values.
OPTION_CONFLICTS = {"oft": {"r": {"oft_block_size": 0}}}
# PEFT rejects an initial text without a tokenizer; `set_tokenizer` sets the model's.
TOKENIZER_PLACEHOLDER = "base model"


@dataclass
class NoOptions:
    """A method without options."""


@dataclass(frozen=True)
class Method:
    """A method of adapting a model.

    Attributes:
        apply: Returns the model to train, of the loaded model and the options. What the method
            does not train has no gradient.
        options: Dataclass of the options (PEFT's config for its methods).
        frozen_stages: Returns the encoder parameters that are frozen in each stage of the training,
            of the model and the options; None if no module of the encoder is frozen as a whole.
        preset_options: Options with a fixed value; the user cannot set them.
        scale_lr_with_width: Whether the learning rate is scaled down with the hidden size. This
            suits matrices over the hidden size; vectors and virtual tokens keep their rate.
        default_pooling: The head with `pooling: auto`. A head that weighs tokens is better where
            the encoder's matrices are frozen, and overfits where they train
            (benchmarks/accuracy.md).
        source: Publication.
    """

    apply: Callable[[PreTrainedModel, Any], Any]
    options: type = NoOptions
    frozen_stages: Callable[[PreTrainedModel, Any], list[list[nn.Parameter]]] | None = None
    preset_options: Mapping[str, Any] = field(default_factory=dict)
    scale_lr_with_width: bool = False
    default_pooling: str = "weighted"
    source: str = ""

    @property
    def is_peft(self) -> bool:
        """Whether the method saves an adapter, not a whole model."""
        return issubclass(self.options, PeftConfig)

    def option_types(self) -> dict[str, Any]:
        """Names and annotations of the options that the user can set."""
        hidden = RESERVED_PEFT_FIELDS | set(self.preset_options)
        return {n: kind for n, kind in option_types(self.options).items() if n not in hidden}

    def build_options(self, values: Mapping[str, Any]) -> Any:
        """Build the options.

        Args:
            values: Values by name; other options have their defaults.
        Raises:
            UserError: If a value is invalid.
        """
        values = {**values, **listed_names(self.options, values)}
        raise_faults(option_faults(values))
        reserved = {"task_type": "SEQ_CLS"} if self.is_peft else {}
        if values.get("prompt_tuning_init") == "TEXT":
            reserved["tokenizer_name_or_path"] = TOKENIZER_PLACEHOLDER
        later = {}  # PEFT's config rejects this value; `add_adapter` replaces it by names
        if targets_linear_in_some_layers(values):
            later["target_modules"] = values.pop("target_modules")
        try:
            nested = build_nested(self.options, values)
            options = self.options(**reserved, **self.preset_options, **{**values, **nested})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.options.__name__}: {one_line(error)}") from error
        vars(options).update(later)
        return options

    def callbacks(self, model: PreTrainedModel, options: Any) -> list[TrainerCallback]:
        """The Trainer callbacks of a training of the adapted model."""
        if self.frozen_stages is None:
            return []
        every = getattr(options, "unfreeze_every", None)
        return [FreezeCallback(self.frozen_stages(model, options), every)]


def train_everything(model: PreTrainedModel, options: NoOptions) -> PreTrainedModel:
    """Train every parameter."""
    return model


def freeze_layers(model: PreTrainedModel, options: LayerFreezeOptions) -> PreTrainedModel:
    """Freeze what no stage of the training unfreezes.

    DDP does not allow `requires_grad` to change later.
    """
    for parameter in layer_freeze_stages(model, options)[-1]:
        parameter.requires_grad = False
    return model


def freeze_encoder(model: PreTrainedModel, options: NoOptions) -> PreTrainedModel:
    """Train the head only."""
    model.base_model.requires_grad_(False)
    return model


def train_biases(model: PreTrainedModel, options: NoOptions) -> PreTrainedModel:
    """Train the encoder's biases and the head (BitFit, arXiv:2106.10199, section 2).

    Every layer has trained biases, so no layer is set to eval mode.
    """
    for name, parameter in model.base_model.named_parameters():
        parameter.requires_grad = name.endswith("bias")
    return model


METHODS: dict[str, Method] = {
    "full": Method(
        train_everything,
        scale_lr_with_width=True,
        default_pooling="aligned",
        source="arXiv:1810.04805",
    ),
    "layer_freeze": Method(
        freeze_layers,
        LayerFreezeOptions,
        layer_freeze_stages,
        scale_lr_with_width=True,
        default_pooling="aligned",
        source="arXiv:1911.03090",
    ),
    # Only the head trains: the baseline of all methods that freeze the encoder.
    "linear_probe": Method(
        freeze_encoder,
        frozen_stages=lambda model, _: [list(model.base_model.parameters())],
        scale_lr_with_width=True,
        source="arXiv:1610.01644",
    ),
    "bitfit": Method(train_biases, source="arXiv:2106.10199"),
    "ln_tuning": Method(add_adapter, LNTuningConfig, source="arXiv:2312.11420"),
    "ia3": Method(add_adapter, IA3Config, source="arXiv:2205.05638"),
    "vera": Method(add_adapter, VeraConfig, source="arXiv:2310.11454"),
    "lora": Method(
        add_adapter,
        LoraConfig,
        scale_lr_with_width=True,
        default_pooling="aligned",
        source="arXiv:2106.09685",
    ),
    "dora": Method(
        add_adapter,
        LoraConfig,
        preset_options={"use_dora": True},
        scale_lr_with_width=True,
        default_pooling="aligned",
        source="arXiv:2402.09353",
    ),
    "oft": Method(add_adapter, OFTConfig, source="arXiv:2306.07280"),
    "prompt_tuning": Method(add_adapter, PromptTuningConfig, source="arXiv:2104.08691"),
    "p_tuning": Method(add_adapter, PromptEncoderConfig, source="arXiv:2103.10385"),
    "prefix_tuning": Method(add_adapter, PrefixTuningConfig, source="arXiv:2101.00190"),
}


def find_method(name: str) -> Method:
    """Return the method of this name.

    Raises:
        UserError: If there is none.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


def load_default_recipe(name: str, explicit: Container[str] = ()) -> dict[str, Any]:
    """Load the packaged recipe of a method.

    Args:
        name: The method.
        explicit: Names of the options that the user set; some exclude an option of the recipe.
    """
    recipe = packaged_recipe(name)
    for option, values in OPTION_CONFLICTS.get(name, {}).items():
        if option in explicit:
            recipe |= values
    return recipe


def scale_learning_rates(
    name: str, recipe: Mapping[str, Any], hidden_size: int, num_layers: int
) -> dict[str, float]:
    """Scale the learning rates of a method's recipe to the size of a model.

    With Adam the optimal learning rate of a matrix is inversely proportional to the width
    (arXiv:2203.03466, table 3): half of the recipe's for bert-base, a tenth for a hidden size of
    4,096. `layer_decay` is scaled to the number of layers: the ratio of the lowest layer's rate to
    the highest layer's is the same for every depth.

    Args:
        name: The method.
        recipe: Its recipe.
        hidden_size: Width of the model.
        num_layers: Depth of the model.
    Returns:
        Those of `learning_rate`, `head_learning_rate` and `layer_decay` that the recipe sets.
    """
    method = find_method(name)
    factor = min(1.0, RECIPE_WIDTH / hidden_size)
    factors = {
        "head_learning_rate": factor,
        "learning_rate": factor if method.scale_lr_with_width else 1,
    }
    rates = {rate: float(recipe[rate]) * by for rate, by in factors.items() if rate in recipe}
    if "layer_decay" in recipe:
        rates["layer_decay"] = float(recipe["layer_decay"]) ** (RECIPE_DEPTH / num_layers)
    return rates


def option_owners() -> dict[str, str]:
    """Return the methods of each method option, as words: `lora, dora and oft`."""
    owners: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        for option in method.option_types():
            owners.setdefault(option, []).append(name)
    return {
        option: " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), names[-1]])
        for option, names in owners.items()
    }
