"""How models and tokenizers are loaded."""

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from peft_mrpc.distributed import process_state
from peft_mrpc.errors import UserError, logger, one_line, unknown_name
from peft_mrpc.models.hub import ModelSource, quiet_transformers
from peft_mrpc.models.modeling_sentence_pair import (
    READS_SENTENCES,
    SentencePairConfig,
    SentencePairModel,
)
from peft_mrpc.models.quantization import (
    QUANTIZATIONS,
    QUANTIZED_MARKS,
    prepare_quantized,
    weight_options,
)
from peft_mrpc.precision import compute_dtype

NO_LIMIT = 1 << 30
HEAD_DROPOUT = 0.1
# What of a configuration has an entry for each layer (ModernBERT, Longformer, decoders).
BY_LAYER = ("layer_types", "mlp_layer_types", "attention_window")
AutoConfig.register(SentencePairConfig.model_type, SentencePairConfig)
AutoModelForSequenceClassification.register(SentencePairConfig, SentencePairModel)


def load_config(source: ModelSource) -> PretrainedConfig:
    """Load a model's configuration only, of as many layers as its source says.

    Raises:
        UserError: If it cannot be read.
    """
    config: PretrainedConfig = _load(AutoConfig, source)
    for name, value in _kept_layers(source, config).items():
        setattr(config, name, value)
    return config


def _kept_layers(source: ModelSource, config: PretrainedConfig) -> dict[str, Any]:
    """What a configuration says of layers, for as many as are loaded."""
    if source.head_layer is None:
        return {}
    by_layer = {name: getattr(config, name, None) for name in BY_LAYER}
    lists = {name: value for name, value in by_layer.items() if isinstance(value, list)}
    cut = {name: value[: source.head_layer] for name, value in lists.items()}
    return {**cut, "num_hidden_layers": source.head_layer}


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a tokenizer that can pad, behind the text.

    Before it pads would stand between virtual tokens and the text, and move what they say with the
    length of the batch.

    Raises:
        UserError: If there is none.
    """
    tokenizer = _load(AutoTokenizer, source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def auto_pooling(tokenizer: PreTrainedTokenizerBase, compares: str) -> str:
    """What `--pooling auto` comes to: it depends on whether the sentences are separated.

    Args:
        tokenizer: The model's.
        compares: What the method's head does where they are.
    """
    return "last" if tokenizer.sep_token is None else compares


def load_classification_model(
    source: ModelSource,
    label_names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    pooling: str = "native",
    trained: bool = False,
    quantization: str = "none",
    dropout: float | None = None,
    prompt_position: str = "before",
    in_adapter: Collection[str] = (),
) -> PreTrainedModel:
    """Load a model with a classification head, in fp32, on the CPU (the Trainer moves it).

    A quantized one lies frozen on this process's device, its norms, embeddings and head in fp32.

    Args:
        source: The model; a head that the checkpoint lacks is drawn at random,
            unless it is `trained`: then that is an error.
        label_names: Names of the C labels.
        tokenizer: The model's: decoders find the last token by its pad, our head the sentences by
            its special tokens.
        pooling: `native` for the architecture's own head, or one of ours (`SentencePairConfig`).
        quantization: As for `load_causal_lm`; the head is never quantized.
        dropout: Dropout everywhere, in encoder and head; None for the checkpoint's own.
        prompt_position: Where our head's encoder sees virtual tokens (`SentencePairConfig`).
        in_adapter: Weights that an adapter will bring, and a trained checkpoint may lack.
    Raises:
        UserError: If the architecture has no sequence classifier, cannot be pooled so, or the
            weights do not load.
    """
    labels: dict[str, Any] = {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }
    weights = weight_options(quantization, torch.float32)
    if dropout is not None:
        weights |= dict.fromkeys(_dropout_names(load_config(source)), dropout)
    if pooling == "native":
        model = _load_native(source, trained, {**weights, **labels}, in_adapter)
    else:
        _check_tokenizer(source, tokenizer, pooling, prompt_position)
        weights |= _kept_layers(source, load_config(source))  # cut already, and cut no further
        encoder = _load(AutoModel, source, **weights)
        special_ids = sorted({i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id})
        config = SentencePairConfig(
            _without_origin(encoder.config),
            pooling=pooling,
            special_ids=special_ids,
            head_dropout=HEAD_DROPOUT if dropout is None else dropout,
            prompt_position=prompt_position,
            **labels,
        )
        model = SentencePairModel(config)
        model.use_encoder(encoder)
        if quantization != "none":
            model.classifier.to(encoder.device)
            for mark in QUANTIZED_MARKS:
                setattr(model, mark, getattr(encoder, mark, False))
    model.config.pad_token_id = tokenizer.pad_token_id
    if quantization != "none":
        prepare_quantized(model)
    return model


def _load_native(
    source: ModelSource, trained: bool, options: dict[str, Any], in_adapter: Collection[str]
) -> PreTrainedModel:
    """The architecture's own classifier; a trained one lacks no weights."""
    if in_adapter:  # the base's head may have been another's
        options["ignore_mismatched_sizes"] = True
    model, report = _load(
        AutoModelForSequenceClassification, source, output_loading_info=True, **options
    )
    lacking = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if trained and (lacking := lacking - set(in_adapter)):
        some = ", ".join(sorted(lacking)[:3])
        rest = "; expected a trained classifier."
        if in_adapter:
            rest = ", and so does the adapter; train it with these in PEFT's modules_to_save."
        raise UserError(f"{source.name}: lacks the weights {some}{rest}")
    loaded: PreTrainedModel = model
    return loaded


def _check_tokenizer(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, pooling: str, prompt_position: str
) -> None:
    """Refuse what needs special tokens that this tokenizer does not write, or not there."""
    if pooling in READS_SENTENCES and tokenizer.sep_token is None:
        raise UserError(
            f"--pooling: got {pooling!r}, but {source.name} has no separator token; "
            "expected native, last or mean."
        )
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.cls_token_id]
    if prompt_position == "after" and not (begins and tokenizer.padding_side == "right"):
        raise UserError(
            f"--prompt_position: got after, but with {source.name}'s tokenizer a padded pair does "
            "not begin with [CLS]; expected before."
        )


def _dropout_names(config: PretrainedConfig) -> list[str]:
    """What this architecture calls its dropouts: `hidden_dropout_prob`, `resid_pdrop`, ..."""
    return [
        name
        for name, value in vars(config).items()
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def init_classifier(
    config: PretrainedConfig, pooling: str, device: str = "meta", dropout: float | None = None
) -> PreTrainedModel:
    """A classifier of two labels without its weights: shapes only, or random on a real device."""
    config = copy.deepcopy(config)
    for name in _dropout_names(config) if dropout is not None else ():
        setattr(config, name, dropout)
    head_dropout = HEAD_DROPOUT if dropout is None else dropout
    with torch.device(device), quiet_transformers():
        if pooling == "native":
            return AutoModelForSequenceClassification.from_config(config)
        return SentencePairModel(
            SentencePairConfig(_without_origin(config), pooling=pooling, head_dropout=head_dropout)
        )


def _without_origin(config: PretrainedConfig) -> dict[str, Any]:
    """A configuration as a dictionary, without the path it was read from."""
    dropped = ("_name_or_path", "architectures", "quantization_config")
    return {k: v for k, v in config.to_dict().items() if k not in dropped}


def load_encoder(source: ModelSource) -> PreTrainedModel:
    """Load an encoder alone, in fp32 and in eval mode.

    Raises:
        UserError: If the weights do not load.
    """
    model: PreTrainedModel = _load(AutoModel, source, dtype=torch.float32)
    return model.eval()


def load_causal_lm(
    source: ModelSource, quantization: str, device_map: str = "replica"
) -> PreTrainedModel:
    """Load a causal LM onto this process's device, quantized by bitsandbytes or plain.

    A checkpoint that is quantized already (GPTQ, AWQ, bitsandbytes) is loaded as it is.

    Args:
        source: The model.
        quantization: `none`, `nf4` or `fp4` (4-bit with double quantization, arXiv:2305.14314), or
            `int8` (arXiv:2208.07339).
        device_map: `replica` for the whole model on this process's device, `auto` to spread it
            over all that this machine has.
    Raises:
        UserError: If the quantization is unknown or the weights do not load.
    """
    if quantization not in QUANTIZATIONS:
        raise unknown_name("--quantization", quantization, QUANTIZATIONS)
    config = check_causal_lm(source)
    device = process_state().device
    if own := getattr(config, "quantization_config", None):
        kind = own.get("quant_method") if isinstance(own, dict) else own.quant_method
        logger.info("%s: is quantized already (%s) and loaded as it is", source.name, kind)
        options: dict[str, Any] = {"dtype": compute_dtype(device)}
    else:
        options = weight_options(quantization, compute_dtype(device))
    options["device_map"] = "auto" if device_map == "auto" else {"": device}
    model: PreTrainedModel = _load(AutoModelForCausalLM, source, **options)
    return model.eval()


def check_causal_lm(source: ModelSource) -> PretrainedConfig:
    """The configuration of a model that continues texts.

    Raises:
        UserError: If it names architectures that do not.
    """
    config = load_config(source)
    architectures = getattr(config, "architectures", None) or []
    if architectures and not any("LM" in name or "Generation" in name for name in architectures):
        raise UserError(
            f"--model: got {source.name!r}, a {architectures[0]}; expected a causal language model."
        )
    return config


def _load(loader: Any, source: ModelSource, **options: Any) -> Any:
    try:
        with quiet_transformers():
            return loader.from_pretrained(source.location, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise UserError(
            f"--model: got {source.name!r}, which {loader.__name__} cannot load: "
            f"{one_line(error)[:300]}"
        ) from error


def position_limit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens a sequence may have: what the position table and the tokenizer allow.

    RoBERTa's table has two entries more than it has positions; its tokenizer knows.
    """
    positions = getattr(config, "max_position_embeddings", None) or NO_LIMIT
    return int(min(positions, tokenizer.model_max_length))
