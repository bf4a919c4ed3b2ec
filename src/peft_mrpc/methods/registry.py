"""How a model is made trainable: one entry for each method."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from importlib import resources
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
from transformers import PreTrainedModel, TrainerCallback

from peft_mrpc.errors import UserError, one_line, raise_faults, unknown_name
from peft_mrpc.methods.freezing import FreezeCallback
from peft_mrpc.methods.layer_freeze import LayerFreezeOptions, frozen_stages
from peft_mrpc.methods.option_types import build_nested, option_types
from peft_mrpc.methods.peft_adapters import add_adapter, targets_linear_in_some_layers
from peft_mrpc.methods.peft_options import listed_names, option_faults
from peft_mrpc.models.architecture import describe_trainable
from peft_mrpc.serialization import load_yaml

# Hidden size and layers of the model that the recipes' learning rates were found on (MiniLM).
RECIPE_WIDTH, RECIPE_DEPTH = 384, 6
# What PEFT's config says about the run and not about the method.
RESERVED_PEFT_FIELDS = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "inference_mode",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    # The model's own tokenizer, as it was loaded, and the model's own sizes.
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
    "token_dim",
    "num_transformer_submodules",
    "num_attention_heads",
    "num_layers",
}
# Options that stand in the place of one of the recipe's.
INSTEAD = {"oft": {"r": {"oft_block_size": 0}}}
# PEFT refuses a text without one.
UNKNOWN_TOKENIZER = "the model's own"


@dataclass
class NoOptions:
    """A method without options."""


@dataclass(frozen=True)
class Method:
    """A way of making a model trainable.

    Attributes:
        apply: Takes the loaded model and the options, returns the model to train.
        options: Dataclass of the options (PEFT's own config for its methods).
        callbacks: Trainer callbacks that the method needs.
        fixed: Options that make the method what it is, and so are no flags of it.
        trains_matrices: Whether what it trains are matrices over the hidden size, whose best rate
            falls with the width; vectors and virtual tokens keep theirs.
        compares: What its head does with tokens under `--pooling auto`. Where the matrices of the
            encoder are frozen a head gains by a weight for each token; where they train, it learns
            the training pairs by heart so (benchmarks/accuracy.md).
        source: Where the method is described.
    """

    apply: Callable[[PreTrainedModel, Any], Any]
    options: type = NoOptions
    callbacks: Callable[[Any], list[TrainerCallback]] = lambda _: []
    fixed: Mapping[str, Any] = field(default_factory=dict)
    trains_matrices: bool = False
    compares: str = "weighted"
    source: str = ""

    @property
    def is_peft(self) -> bool:
        """Whether an adapter is saved rather than a whole model."""
        return issubclass(self.options, PeftConfig)

    def option_types(self) -> dict[str, Any]:
        """Names and annotations of the options that are flags."""
        hidden = RESERVED_PEFT_FIELDS | set(self.fixed)
        return {n: kind for n, kind in option_types(self.options).items() if n not in hidden}

    def build_options(self, given: Mapping[str, Any]) -> Any:
        """The options with what was given set.

        Raises:
            UserError: If PEFT's config refuses a value.
        """
        given = {**given, **listed_names(self.options, given)}
        raise_faults(option_faults(given))
        reserved = {"task_type": "SEQ_CLS"} if self.is_peft else {}
        if given.get("prompt_tuning_init") == "TEXT":
            reserved["tokenizer_name_or_path"] = UNKNOWN_TOKENIZER
        later = {}  # what PEFT's config refuses, and `add_adapter` makes names of
        if targets_linear_in_some_layers(given):
            later["target_modules"] = given.pop("target_modules")
        try:
            nested = build_nested(self.options, given)
            options = self.options(**reserved, **self.fixed, **{**given, **nested})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.options.__name__}: {one_line(error)}") from error
        vars(options).update(later)
        return options

    def freezes(self, options: Any) -> bool:
        """Whether a callback of the method keeps modules as they are."""
        return any(isinstance(callback, FreezeCallback) for callback in self.callbacks(options))

    def freeze(self, model: Any, options: Any) -> str:
        """Freeze what the callbacks would, without a Trainer; what trains, in words."""
        said = [
            callback.freeze(model)
            for callback in self.callbacks(options)
            if isinstance(callback, FreezeCallback)
        ]
        return said[-1] if said else describe_trainable(model)


def train_everything(model: PreTrainedModel, options: NoOptions) -> PreTrainedModel:
    """Leave every parameter trainable (but for what a callback freezes)."""
    return model


def freeze_layers(model: PreTrainedModel, options: LayerFreezeOptions) -> PreTrainedModel:
    """Check the options; the freezing itself is the callback's, once the Trainer has the model."""
    frozen_stages(model, options)
    return model


def train_biases(model: PreTrainedModel, options: NoOptions) -> PreTrainedModel:
    """Train the encoder's biases and the head (BitFit, arXiv:2106.10199, section 2).

    Frozen weights stand beside trained biases in every layer, so the layers keep their dropout.
    """
    for name, parameter in model.base_model.named_parameters():
        parameter.requires_grad = name.endswith("bias")
    return model


METHODS: dict[str, Method] = {
    "full": Method(
        train_everything, trains_matrices=True, compares="aligned", source="arXiv:1810.04805"
    ),
    "layer_freeze": Method(
        freeze_layers,
        LayerFreezeOptions,
        lambda options: [
            FreezeCallback(
                "layer_freeze", lambda model: frozen_stages(model, options), options.unfreeze_every
            )
        ],
        trains_matrices=True,
        compares="aligned",
        source="arXiv:1911.03090",
    ),
    # The head alone: what every frozen or prompted figure has to be read beside.
    "linear_probe": Method(
        train_everything,
        callbacks=lambda _: [
            FreezeCallback("linear_probe", lambda model: [list(model.base_model.parameters())])
        ],
        trains_matrices=True,
        source="arXiv:1610.01644",
    ),
    "bitfit": Method(train_biases, source="arXiv:2106.10199"),
    "ln_tuning": Method(add_adapter, LNTuningConfig, source="arXiv:2312.11420"),
    "ia3": Method(add_adapter, IA3Config, source="arXiv:2205.05638"),
    "vera": Method(add_adapter, VeraConfig, source="arXiv:2310.11454"),
    "lora": Method(
        add_adapter,
        LoraConfig,
        trains_matrices=True,
        compares="aligned",
        source="arXiv:2106.09685",
    ),
    "dora": Method(
        add_adapter,
        LoraConfig,
        fixed={"use_dora": True},
        trains_matrices=True,
        compares="aligned",
        source="arXiv:2402.09353",
    ),
    "oft": Method(add_adapter, OFTConfig, source="arXiv:2306.07280"),
    "prompt_tuning": Method(add_adapter, PromptTuningConfig, source="arXiv:2104.08691"),
    "p_tuning": Method(add_adapter, PromptEncoderConfig, source="arXiv:2103.10385"),
    "prefix_tuning": Method(add_adapter, PrefixTuningConfig, source="arXiv:2101.00190"),
}


def find_method(name: str) -> Method:
    """The method of this name.

    Raises:
        UserError: If there is none.
    """
    if name not in METHODS:
        raise unknown_name("--method", name, METHODS)
    return METHODS[name]


def load_default_recipe(name: str, asked: Container[str] = ()) -> dict[str, Any]:
    """The packaged recipe of a method: its defaults, beside the options that were asked for."""
    text = (resources.files("peft_mrpc") / "recipes" / f"{name}.yaml").read_text("utf-8")
    recipe: dict[str, Any] = load_yaml(text)
    for option, others in INSTEAD.get(name, {}).items():
        if option in asked:
            recipe |= others
    return recipe


def fitted_rates(name: str, hidden_size: int, num_layers: int) -> dict[str, float]:
    """The recipe's learning rates for a model of another size than the one they were found on.

    Under Adam the best rate of a matrix falls with the width (arXiv:2203.03466, table 3): half of
    MiniLM's for bert-base, a tenth for a model of 4,096. A decay from layer to layer is spread over
    the layers that there are: the lowest has the same share of the highest rate in every model.
    """
    recipe, method = load_default_recipe(name), find_method(name)
    factor = min(1.0, RECIPE_WIDTH / hidden_size)
    rates = {"head_learning_rate": factor, "learning_rate": factor if method.trains_matrices else 1}
    fitted = {rate: float(recipe[rate]) * by for rate, by in rates.items() if rate in recipe}
    if "layer_decay" in recipe:
        fitted["layer_decay"] = float(recipe["layer_decay"]) ** (RECIPE_DEPTH / num_layers)
    return fitted


def method_flags() -> dict[str, str]:
    """Every option of every method, with the methods it belongs to."""
    owners: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        for option in method.option_types():
            owners.setdefault(option, []).append(name)
    return {
        flag: " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), names[-1]])
        for flag, names in owners.items()
    }
