"""The modules of a model that PEFT methods adapt: defaults, and checks of the user's names."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft import PeftType
from transformers import PretrainedConfig, PreTrainedModel

from peft_mrpc.errors import closest
from peft_mrpc.interop.peft_internals import default_feedforward_modules, default_target_modules
from peft_mrpc.models.architecture import encoder_layers
from peft_mrpc.models.modeling_sentence_pair import SentencePairConfig

# Defaults for the encoders that PEFT has none for; PEFT's own defaults have priority.
# Query and value (arXiv:2106.09685, table 5); ModernBERT computes both in one projection.
ATTENTION = {"distilbert": ["q_lin", "v_lin"], "modernbert": ["Wqkv"]}
# All normalization layers, also those of the embeddings: about 0.1 % of a model's parameters.
NORMS: dict[str, list[str] | str] = {
    **{name: ["LayerNorm"] for name in ("bert", "roberta", "xlm-roberta", "electra", "deberta-v2")},
    "distilbert": ["LayerNorm", "sa_layer_norm", "output_layer_norm"],
    # A pattern, because `attn_norm` of the first layer is an Identity.
    "modernbert": r".*(embeddings\.norm|[1-9]\d*\.attn_norm|mlp_norm|final_norm)",
}
# Keys, values and the input of the second feed-forward projection (arXiv:2205.05638, section 3.3).
IA3_TARGETS = {
    "electra": ["key", "value", "output.dense"],
    "xlm-roberta": ["key", "value", "output.dense"],
    "distilbert": ["k_lin", "v_lin", "lin2"],
    "modernbert": ["Wqkv", "mlp.Wo"],
}
IA3_FEEDFORWARD = {
    "electra": ["output.dense"],
    "xlm-roberta": ["output.dense"],
    "distilbert": ["lin2"],
    "modernbert": ["mlp.Wo"],
}

# Options that hold module names (each the end of a module path) or one regular expression.
NAME_OPTIONS = ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save")
# Options that map module names or regular expressions to values.
MAPPING_OPTIONS = ("rank_pattern", "alpha_pattern")


def encoder_type(config: PretrainedConfig) -> str:
    """Return `model_type` of the encoder, also for our own model around it."""
    if isinstance(config, SentencePairConfig):
        return str(config.encoder["model_type"])
    return str(config.model_type)


def default_targets(peft_type: PeftType | str | None, model_type: str) -> list[str] | str | None:
    """Return the modules that a PEFT method adapts by default, None if there is no default."""
    ours: Mapping[str, list[str] | str] = ATTENTION
    if peft_type == PeftType.IA3:
        ours = IA3_TARGETS
    elif peft_type == PeftType.LN_TUNING:
        ours = NORMS
    return default_target_modules(peft_type, model_type) or ours.get(model_type)


def set_default_targets(config: PretrainedConfig, options: Any) -> None:
    """Fill in `target_modules` and `feedforward_modules` where the user gave none.

    PEFT cannot do it: it finds the type of our own model, not that of the encoder inside.

    Args:
        config: The model's configuration.
        options: PEFT's config, changed in place.
    """
    if not hasattr(options, "target_modules"):
        return
    model_type = encoder_type(config)
    if options.target_modules is None:
        targets = default_targets(options.peft_type, model_type)
        options.target_modules = set(targets) if isinstance(targets, list) else targets
    if options.peft_type == PeftType.IA3 and options.feedforward_modules is None:
        defaults = default_feedforward_modules(model_type) or IA3_FEEDFORWARD.get(model_type)
        inputs, targets = set(defaults or ()), options.target_modules
        options.feedforward_modules = inputs & targets if isinstance(targets, set) else inputs


def validate_module_names(model: PreTrainedModel, options: Any) -> list[str]:
    """Return one error for each module name in PEFT options that the model does not have.

    PEFT itself ignores most unknown names.
    """
    paths = [path for path, _ in model.named_modules() if path]
    names = {path.rpartition(".")[2] for path in paths}
    errors = []
    for option, name, pattern in _module_patterns(options):
        try:
            is_known = any(re.fullmatch(pattern, path) for path in paths)
        except re.error as error:
            errors.append(f"{option}: got {name!r}; expected a valid regular expression: {error}.")
            continue
        if not is_known:
            near = closest(name, names)
            errors.append(f"{option}: got {name!r}; expected a module of this model.{near}")
    return errors + _nested_module_errors(paths, options) + _layer_index_errors(model, options)


def _module_patterns(options: Any) -> Iterator[tuple[str, str, str]]:
    """Yield option, value and the regular expression for whole module paths of each value."""
    for option in NAME_OPTIONS:
        value = getattr(options, option, None)
        if isinstance(value, str):
            if value != "all-linear":
                yield option, value, value
        else:
            for name in sorted(value or ()):
                yield option, name, rf"(.*\.)?{re.escape(name)}"
    for option in MAPPING_OPTIONS:
        for pattern in getattr(options, option, None) or ():
            yield option, pattern, rf"(.*\.)?({pattern})"


def _nested_module_errors(paths: Sequence[str], options: Any) -> list[str]:
    """Return errors for `modules_to_save` that match a module and one inside it: PEFT saves both.

    Both copies would be saved, and loading would fail.
    """
    errors = []
    for name in sorted(getattr(options, "modules_to_save", None) or ()):
        matches = [path for path in paths if path.endswith(name)]
        nested = [p for p in matches if any(p.startswith(f"{outer}.") for outer in matches)]
        if nested:
            errors.append(
                f"modules_to_save: got {name!r}, which matches a module and modules inside it; "
                f"expected one of them, such as {nested[0].rpartition('.')[2]}."
            )
    return errors


def _layer_index_errors(model: PreTrainedModel, options: Any) -> list[str]:
    layers = getattr(options, "layers_to_transform", None)
    if layers is None:
        return []
    depth = len(encoder_layers(model))
    return [
        f"layers_to_transform: got {layer}; expected 0 to {depth - 1}."
        for layer in (layers if isinstance(layers, list) else [layers])
        if not 0 <= layer < depth
    ]
