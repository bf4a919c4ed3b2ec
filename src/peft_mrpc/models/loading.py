"""Load models, configurations and tokenizers; quantized weights by bitsandbytes."""

import copy
import logging
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
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from peft_mrpc.distributed import process_state
from peft_mrpc.errors import UserError, one_line, unknown_name
from peft_mrpc.interop.transformers_internals import (
    copy_quantization_state,
    keep_4bit_weights_trainable,
)
from peft_mrpc.models.architecture import HEAD_NAMES
from peft_mrpc.models.modeling_sentence_pair import (
    SENTENCE_POOLINGS,
    SentencePairConfig,
    SentencePairModel,
)
from peft_mrpc.models.sources import ModelSource, quiet_transformers
from peft_mrpc.precision import compute_dtype

logger = logging.getLogger(__name__)

QUANTIZATIONS = ("none", "nf4", "fp4", "int8")
NO_LIMIT = 1 << 30
HEAD_DROPOUT = 0.1
# Configuration entries with one element per layer (ModernBERT, Longformer, decoders).
PER_LAYER_OPTIONS = ("layer_types", "mlp_layer_types", "attention_window")
# So that AutoModel loads our saved classifiers without `trust_remote_code`.
AutoConfig.register(SentencePairConfig.model_type, SentencePairConfig)
AutoModelForSequenceClassification.register(SentencePairConfig, SentencePairModel)


def load_config(source: ModelSource) -> PretrainedConfig:
    """Load a model's configuration, for the number of layers that its source states.

    Raises:
        UserError: If the configuration cannot be read.
    """
    return limit_layers(source, _load(AutoConfig, source))


def limit_layers(source: ModelSource, config: PretrainedConfig) -> PretrainedConfig:
    """Return a copy of a model's configuration for the number of layers that its source states."""
    config = copy.deepcopy(config)
    for name, value in _layer_options(source, config).items():
        setattr(config, name, value)
    return config


def _layer_options(source: ModelSource, config: PretrainedConfig) -> dict[str, Any]:
    """The configuration entries that limit a model to the first layers."""
    if source.head_layer is None:
        return {}
    by_layer = {name: getattr(config, name, None) for name in PER_LAYER_OPTIONS}
    lists = {name: value for name, value in by_layer.items() if isinstance(value, list)}
    cut = {name: value[: source.head_layer] for name, value in lists.items()}
    return {**cut, "num_hidden_layers": source.head_layer}


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a tokenizer, with a padding token, that pads on the right.

    Padding on the left would lie between virtual tokens and the text, and so change their distance
    with the length of the batch.

    Raises:
        UserError: If the tokenizer cannot be loaded.
    """
    tokenizer = _load(AutoTokenizer, source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def auto_pooling(tokenizer: PreTrainedTokenizerBase, default_pooling: str) -> str:
    """Resolve the pooling `auto`.

    Args:
        tokenizer: The model's tokenizer.
        default_pooling: Pooling of the method, for tokenizers that separate the sentences.
    """
    return "last" if tokenizer.sep_token is None else default_pooling


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
    """Load a model with a classification head, in fp32 on the CPU; the Trainer moves it.

    A quantized model is frozen and on this process's device; its norms, embeddings and head are in
    fp32.

    Args:
        source: The model. Weights of the head that the checkpoint lacks are initialized at random.
        label_names: The C label names.
        tokenizer: The model's tokenizer: decoders need its padding token, our heads its special
            tokens.
        pooling: `native` for the architecture's own head, or a pooling of `SentencePairConfig`.
        trained: Whether the checkpoint is a trained classifier; then missing weights are an error.
        quantization: As in `load_causal_lm`; the head is not quantized.
        dropout: Dropout of encoder and head; None for that of the checkpoint.
        prompt_position: Position of virtual tokens, with our heads (`SentencePairConfig`).
        in_adapter: Names of weights that an adapter will load, which may be missing.
    Raises:
        UserError: If the architecture has no sequence classifier, does not support the pooling, or
            the weights do not load.
    """
    labels: dict[str, Any] = {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }
    weights = weight_options(quantization, torch.float32)
    base_config = load_config(source)
    if dropout is not None:
        weights |= dict.fromkeys(_dropout_names(base_config), dropout)
    if pooling == "native":
        model = _load_native(source, trained, {**weights, **labels}, in_adapter)
    else:
        _check_tokenizer(source, tokenizer, pooling, prompt_position)
        weights |= _layer_options(source, base_config)
        encoder = _load(AutoModel, source, **weights)
        special_ids = sorted({i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id})
        config = SentencePairConfig(
            _config_dict(encoder.config),
            pooling=pooling,
            special_ids=special_ids,
            head_dropout=HEAD_DROPOUT if dropout is None else dropout,
            prompt_position=prompt_position,
            **labels,
        )
        model = SentencePairModel(config)
        model.replace_encoder(encoder)
        if quantization != "none":
            model.classifier.to(encoder.device)
            copy_quantization_state(encoder, model)
    model.config.pad_token_id = tokenizer.pad_token_id
    if quantization != "none":
        prepare_quantized(model)
    return model


def _load_native(
    source: ModelSource, trained: bool, options: dict[str, Any], in_adapter: Collection[str]
) -> PreTrainedModel:
    """Load the architecture's own classifier; if it is trained, no weights may be missing."""
    if in_adapter:  # the head of the base model may have another number of labels
        options["ignore_mismatched_sizes"] = True
    model, report = _load(
        AutoModelForSequenceClassification, source, output_loading_info=True, **options
    )
    missing = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if trained and (missing := missing - set(in_adapter)):
        names = ", ".join(sorted(missing)[:3])
        expected = "; expected a trained classifier."
        if in_adapter:
            expected = ", and so does the adapter. Train it with PEFT's modules_to_save for them."
        raise UserError(f"{source.name}: lacks the weights {names}{expected}")
    loaded: PreTrainedModel = model
    return loaded


def _check_tokenizer(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, pooling: str, prompt_position: str
) -> None:
    """Raise if the tokenizer does not add the special tokens that an option needs.

    Raises:
        UserError: If it adds no separator, or no [CLS] at the beginning.
    """
    if pooling in SENTENCE_POOLINGS and tokenizer.sep_token is None:
        raise UserError(
            f"pooling: got {pooling!r}, but {source.name} has no separator token; "
            "expected native, last or mean."
        )
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.cls_token_id]
    if prompt_position == "after" and not (begins and tokenizer.padding_side == "right"):
        raise UserError(
            f"prompt_position: got after, but {source.name}'s tokenizer does not begin with [CLS]; "
            "expected before."
        )


def _dropout_names(config: PretrainedConfig) -> list[str]:
    """The dropout options of an architecture: `hidden_dropout_prob`, `resid_pdrop`, ..."""
    return [
        name
        for name, value in vars(config).items()
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def init_classifier(
    config: PretrainedConfig, pooling: str, device: str = "meta", dropout: float | None = None
) -> PreTrainedModel:
    """Create a classifier of two labels from its configuration.

    Args:
        config: The encoder's configuration.
        pooling: As in `load_classification_model`.
        device: `meta` for a model with shapes only, or a device for random weights.
        dropout: Dropout of encoder and head; None for that of the configuration.
    """
    config = copy.deepcopy(config)
    for name in _dropout_names(config) if dropout is not None else ():
        setattr(config, name, dropout)
    head_dropout = HEAD_DROPOUT if dropout is None else dropout
    with torch.device(device), quiet_transformers():
        if pooling == "native":
            return AutoModelForSequenceClassification.from_config(config)
        return SentencePairModel(
            SentencePairConfig(_config_dict(config), pooling=pooling, head_dropout=head_dropout)
        )


def _config_dict(config: PretrainedConfig) -> dict[str, Any]:
    """The configuration as a dictionary, without what belongs to the checkpoint only."""
    dropped = ("_name_or_path", "architectures", "quantization_config")
    return {k: v for k, v in config.to_dict().items() if k not in dropped}


def load_encoder(source: ModelSource) -> PreTrainedModel:
    """Load an encoder without a head, in fp32 and in eval mode.

    Raises:
        UserError: If the weights do not load.
    """
    model: PreTrainedModel = _load(AutoModel, source, dtype=torch.float32)
    return model.eval()


def load_causal_lm(
    source: ModelSource, quantization: str, device_map: str = "replica"
) -> PreTrainedModel:
    """Load a causal LM on this process's device, in eval mode.

    A checkpoint that is already quantized (GPTQ, AWQ, bitsandbytes) is loaded as it is.

    Args:
        source: The model.
        quantization: `none`, `nf4` or `fp4` (4-bit with double quantization, arXiv:2305.14314), or
            `int8` (arXiv:2208.07339).
        device_map: `replica` for the whole model on this process's device, `auto` to distribute it
            over the devices of this machine.
    Raises:
        UserError: If the quantization is unknown or the weights do not load.
    """
    if quantization not in QUANTIZATIONS:
        raise unknown_name("quantization", quantization, QUANTIZATIONS)
    config = check_causal_lm(source)
    device = process_state().device
    if saved := getattr(config, "quantization_config", None):
        scheme = saved.get("quant_method") if isinstance(saved, dict) else saved.quant_method
        logger.info("%s: already quantized (%s); quantization is ignored", source.name, scheme)
        options: dict[str, Any] = {"dtype": compute_dtype(device)}
    else:
        options = weight_options(quantization, compute_dtype(device))
    options["device_map"] = "auto" if device_map == "auto" else {"": device}
    model: PreTrainedModel = _load(AutoModelForCausalLM, source, **options)
    return model.eval()


def check_causal_lm(source: ModelSource) -> PretrainedConfig:
    """Load the configuration of a causal LM.

    Raises:
        UserError: If the model's architecture is of another kind.
    """
    config = load_config(source)
    architectures = getattr(config, "architectures", None) or []
    if architectures and not any("LM" in name or "Generation" in name for name in architectures):
        raise UserError(
            f"model: got {source.name!r}, a {architectures[0]}; expected a causal language model."
        )
    return config


def _load(loader: Any, source: ModelSource, **options: Any) -> Any:
    try:
        with quiet_transformers():
            return loader.from_pretrained(source.location, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise UserError(
            f"model: got {source.name!r}, which {loader.__name__} cannot load: "
            f"{one_line(error)[:300]}"
        ) from error


def position_limit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Maximum tokens of a sequence, by the position embeddings and the tokenizer.

    RoBERTa has two more position embeddings than positions; its tokenizer states the limit.
    """
    positions = getattr(config, "max_position_embeddings", None) or NO_LIMIT
    return int(min(positions, tokenizer.model_max_length))


def weight_options(quantization: str, plain_dtype: torch.dtype) -> dict[str, Any]:
    """Options of `from_pretrained` for a quantization.

    Args:
        quantization: One of QUANTIZATIONS.
        plain_dtype: Data type of the weights without quantization.
    """
    if quantization == "none":
        return {"dtype": plain_dtype}
    device = process_state().device
    dtype = compute_dtype(device)
    # One replica per process: "auto" would distribute each copy over all GPUs.
    return {
        "dtype": dtype,
        "device_map": {"": device},
        "quantization_config": _quantization_config(quantization, dtype),
    }


def _quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    # Without a list, transformers skips `lm_head` only. BERT's own list has `classifier.bias`, with
    # which its classifier would be quantized.
    skipped = [*HEAD_NAMES, "pooler", "lm_head"]
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        llm_int8_skip_modules=skipped,
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def prepare_quantized(model: Any) -> None:
    """Freeze a quantized model for training with an adapter; norms, embeddings and head in fp32."""
    from peft import prepare_model_for_kbit_training

    # The Trainer enables gradient checkpointing, if it is requested.
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    keep_4bit_weights_trainable(model)
