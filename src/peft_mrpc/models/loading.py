"""Load models, configurations and tokenizers; quantized weights by bitsandbytes."""

import copy
import importlib.util
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_MAPPING,
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
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file

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
    SentencePairForSequenceClassification,
)
from peft_mrpc.models.modeling_sentence_pair_adapter import (
    SentencePairAdapterConfig,
    SentencePairAdapterForSequenceClassification,
)
from peft_mrpc.models.sources import ModelSource, quiet_transformers
from peft_mrpc.precision import compute_dtype
from peft_mrpc.serialization import read_json

logger = logging.getLogger(__name__)

QUANTIZATIONS = ("none", "nf4", "fp4", "int8")
NO_LIMIT = 1 << 30
# An example needs as many tokens besides virtual tokens.
MIN_LENGTH = 8
HEAD_DROPOUT = 0.1
# Configuration entries with one element per layer (ModernBERT, Longformer, decoders).
PER_LAYER_OPTIONS = ("layer_types", "mlp_layer_types", "attention_window")
# A number of labels that no dimension of a model equals: it identifies the head's output.
MARKER_NUM_LABELS = 7919
# Weights of layers and embeddings; transformers initializes those that are missing at random.
LAYER_WEIGHT = re.compile(r"\.\d+\.|embed")
# Label names of a configuration that has none of its own.
DEFAULT_LABEL = re.compile(r"LABEL_\d+")
# Other tokens that serve for padding, which is masked. Tokenizers with separators have one of the
# first: heads that compare sentences take the last for a word.
PADDING_TOKENS = ("eos_token", "sep_token", "bos_token", "cls_token", "unk_token")
# So that AutoModel loads our saved classifiers by the code of this package, not by the code that is
# saved beside them.
for config_type, model_type in (
    (SentencePairConfig, SentencePairForSequenceClassification),
    (SentencePairAdapterConfig, SentencePairAdapterForSequenceClassification),
):
    AutoConfig.register(config_type.model_type, config_type)
    AutoModelForSequenceClassification.register(config_type, model_type)


def load_config(source: ModelSource) -> PretrainedConfig:
    """Load a model's configuration, for the number of layers that its source states.

    Raises:
        UserError: If the configuration cannot be read.
    """
    config = load_pretrained(AutoConfig, source)
    weights = str(getattr(config, "transformers_weights", None) or "")
    if weights.removesuffix(".index.json").endswith(".bin") and not source.trust.pickle:
        raise _pickle_error(source)
    return limit_layers(source, config)


def has_custom_code(config: PretrainedConfig) -> bool:
    """Whether a configuration's class comes from the files of a model, which then is trusted."""
    return type(config).__module__.startswith("transformers_modules.")


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


def load_tokenizer(
    source: ModelSource, config: PretrainedConfig | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer that fits its model and pads on the right.

    Padding on the left would lie between virtual tokens and the text, and so change their distance
    with the length of the batch.

    Args:
        source: Where the tokenizer is.
        config: The model's configuration; by default it is loaded from the same source.
    Raises:
        UserError: If the tokenizer cannot be loaded or does not fit the model.
    """
    config = load_config(source) if config is None else config
    tokenizer = load_pretrained(AutoTokenizer, source)
    tokenizer.padding_side = "right"
    check_tokenizer(source.name, config, tokenizer)
    return tokenizer


def check_tokenizer(
    name: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Check a tokenizer against its model, and repair what can be repaired without any effect.

    Args:
        name: Name of the model, for messages.
        config: The model's configuration.
        tokenizer: Gets another padding token, and loses its token types, where the model needs it.
    Raises:
        UserError: If the tokenizer has no vocabulary, has more tokens than the model has
            embeddings, or truncates every example to nothing.
    """
    if isinstance(config, SentencePairConfig):
        config = config.encoder_config()
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary.keys() - {*tokenizer.all_special_tokens, "▁"}) < 2:
        # transformers builds a tokenizer without a vocabulary if there are no files.
        raise UserError(
            f"model: got {name!r}, which has no tokenizer files; expected tokenizer.json or a "
            "vocabulary. Save the tokenizer there: tokenizer.save_pretrained(...)"
        )
    rows = getattr(config.get_text_config(), "vocab_size", None)
    last = max(vocabulary, key=lambda token: vocabulary[token])
    if isinstance(rows, int) and vocabulary[last] >= rows:
        raise UserError(
            f"model: got {name!r}, whose tokenizer has the id {vocabulary[last]} ({last!r}), but "
            f"the model has {rows} token embeddings; expected the tokenizer of this model."
        )
    length: Any = tokenizer.model_max_length
    if not isinstance(length, int | float) or not length >= MIN_LENGTH:
        raise UserError(
            f"model: got {name!r}, whose tokenizer has model_max_length {length!r:.40}; expected "
            f"at least {MIN_LENGTH} tokens."
        )
    if tokenizer.pad_token is None:
        tokens = [getattr(tokenizer, token, None) for token in PADDING_TOKENS]
        # Without special tokens: the last token, the rarest of byte-pair encodings.
        tokenizer.pad_token = next((token for token in tokens if token is not None), last)
        logger.info("%s: no padding token, %r is used", name, tokenizer.pad_token)
    padding = getattr(config, "pad_token_id", None)
    if padding not in (None, tokenizer.pad_token_id) and _position_offset(config):
        # RoBERTa counts positions from this id on, whatever the tokenizer pads with.
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding) or tokenizer.pad_token
        logger.info("%s: %r is used for padding, as in the model", name, tokenizer.pad_token)
    types = getattr(config, "type_vocab_size", None)
    if types is not None and max(tokenizer("a", "b").get("token_type_ids", [0])) >= max(types, 1):
        tokenizer.model_input_names = [
            name for name in tokenizer.model_input_names if name != "token_type_ids"
        ]
        logger.info("%s: the model has %d token types, token_type_ids are dropped", name, types)


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
    if len(label_names) > 1:
        labels["problem_type"] = "single_label_classification"
    weights = weight_options(quantization, torch.float32)
    base_config = load_config(source)
    if dropout is not None:
        weights |= dict.fromkeys(_dropout_names(base_config), dropout)
    if pooling == "native":
        model = _load_native(source, trained, {**weights, **labels}, in_adapter)
        if not trained:
            _adopt_labels(source.name, model, base_config, label_names)
    else:
        _check_pooling(source, tokenizer, pooling, prompt_position)
        weights |= _layer_options(source, base_config)
        encoder, _ = load_model(AutoModel, source, **weights)
        special_ids = sorted({i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id})
        config = SentencePairConfig(
            config_dict(encoder.config),
            pooling=pooling,
            special_ids=special_ids,
            head_dropout=HEAD_DROPOUT if dropout is None else dropout,
            prompt_position=prompt_position,
            **labels,
        )
        model = SentencePairForSequenceClassification(config, encoder)
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
    if in_adapter or not trained:  # the head of the base model may have another number of labels
        options["ignore_mismatched_sizes"] = True
    model, report = load_model(AutoModelForSequenceClassification, source, **options)
    mismatched = {key for key, *_ in report["mismatched_keys"]}
    missing = {*report["missing_keys"], *mismatched}
    if trained and (missing := missing - set(in_adapter)):
        names = ", ".join(sorted(missing)[:3])
        expected = "; expected a trained classifier."
        if in_adapter:
            expected = ", and so does the adapter. Train it with PEFT's modules_to_save for them."
        raise UserError(f"{source.name}: lacks the weights {names}{expected}")
    if not trained and mismatched:
        logger.info("%s: its head has other labels; a new head is trained", source.name)
    loaded: PreTrainedModel = model
    return loaded


def _adopt_labels(
    name: str, model: PreTrainedModel, base_config: PretrainedConfig, label_names: Sequence[str]
) -> None:
    """Order the outputs of a trained head by the label names of the data, or start a new head."""
    labels = config_label_names(base_config)
    if has_default_labels(labels) or len(labels) != len(label_names):
        return
    if labels == list(label_names):
        return
    outputs = [model.get_parameter(output) for output in output_names(base_config, name)]
    with torch.no_grad():
        if set(labels) == set(label_names):
            order = [labels.index(label) for label in label_names]
            for parameter in outputs:
                parameter.copy_(parameter[order])
            logger.info("%s: its head's labels are reordered: %s", name, ", ".join(label_names))
            return
        for parameter in outputs:
            nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else parameter.zero_()
    logger.info("%s: its head has the labels %s; a new head is trained", name, ", ".join(labels))


def config_label_names(config: PretrainedConfig | Mapping[str, Any]) -> list[str]:
    """The label names of a classifier's configuration, by index."""
    values = config if isinstance(config, Mapping) else config.to_dict()
    # The keys of a file are text, and sorted as text: "10" before "2".
    labels = sorted((values.get("id2label") or {}).items(), key=lambda item: int(item[0]))
    return [str(name) for _, name in labels] or ["LABEL_0", "LABEL_1"]


def has_default_labels(names: Sequence[str]) -> bool:
    """Whether label names are the numbers that transformers gives to labels without names."""
    return all(DEFAULT_LABEL.fullmatch(name) for name in names)


def output_names(config: PretrainedConfig, name: str) -> list[str]:
    """The names of the weights whose first dimension is the number of labels.

    Args:
        config: The configuration of a classifier with its native head.
        name: Name of the model, for error messages.
    Raises:
        UserError: If the architecture has no sequence classifier.
    """
    config = copy.deepcopy(config)
    config.num_labels = MARKER_NUM_LABELS
    try:
        model = init_classifier(config, "native")
    except ValueError as error:
        raise UserError(
            f"{name}: got a {config.model_type}; expected an architecture with a sequence "
            "classifier."
        ) from error
    return [name for name, p in model.named_parameters() if p.shape[0] == MARKER_NUM_LABELS]


def _check_pooling(
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
            return AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=has_custom_code(config)
            )
        return SentencePairForSequenceClassification(
            SentencePairConfig(config_dict(config), pooling=pooling, head_dropout=head_dropout)
        )


def config_dict(config: PretrainedConfig) -> dict[str, Any]:
    """A configuration as a dictionary, without what belongs to its checkpoint only."""
    dropped = ("_name_or_path", "architectures", "quantization_config")
    return {k: v for k, v in config.to_dict().items() if k not in dropped}


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
    model, _ = load_model(AutoModelForCausalLM, source, **options)
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


def load_model(
    loader: Any, source: ModelSource, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model whose layers and embeddings are whole; a causal LM lacks no weight.

    Args:
        loader: An AutoModel class.
        source: What to load.
        options: More arguments.
    Returns:
        The model, and transformers' report of missing and other weights.
    Raises:
        UserError: If it cannot be loaded, or lacks a weight other than those of a classification
            head or a pooler.
    """
    model, report = load_pretrained(loader, source, output_loading_info=True, **options)
    is_whole = loader is AutoModelForCausalLM
    missing = sorted(k for k in report["missing_keys"] if is_whole or LAYER_WEIGHT.search(k))
    if missing:
        raise UserError(
            f"model: got {source.name!r}, which lacks the weights {', '.join(missing[:3])}; "
            "expected a model with all of its layers and embeddings."
        )
    return model, report


def load_pretrained(loader: Any, source: ModelSource, **options: Any) -> Any:
    """Call `from_pretrained` of a class of transformers.

    No Python file and no pickle file of the source is used unless the source allows it.

    Args:
        loader: The class.
        source: What to load.
        options: More arguments.
    Raises:
        UserError: If it cannot be loaded.
    """
    if loader not in (AutoConfig, AutoTokenizer):
        # None: safetensors are preferred.
        options["use_safetensors"] = None if source.trust.pickle else True
        if not source.trust.pickle and _has_index_of_other_files(source):
            raise _pickle_error(source)
    try:
        with quiet_transformers():
            return loader.from_pretrained(
                source.location, trust_remote_code=source.trust.remote_code, **options
            )
    except Exception as error:  # the errors of transformers' and other libraries' files are many
        raise _load_error(loader, source, one_line(error)) from error


def _has_index_of_other_files(source: ModelSource) -> bool:
    """Whether the index of safetensors files names others; transformers would load them too."""
    try:
        index = str(cached_file(source.location, SAFE_WEIGHTS_INDEX_NAME))
    except OSError:  # there is none
        return False
    content = read_json(Path(index))
    weights = content.get("weight_map") if isinstance(content, dict) else None
    names = {*map(str, weights.values())} if isinstance(weights, dict) else {""}
    return not all(name.endswith(".safetensors") for name in names)


def _load_error(loader: Any, source: ModelSource, message: str) -> UserError:
    got = f"model: got {source.name!r}, which"
    if "trust_remote_code" in message:
        return UserError(
            f"{got} needs Python code from its own files; expected an architecture of "
            "transformers. If you have read and trust the code, set trust_remote_code."
        )
    if "model.safetensors" in message and not source.trust.pickle:
        return _pickle_error(source)
    needs_sentencepiece = loader is AutoTokenizer and re.search("sentencepiece|tiktoken", message)
    if needs_sentencepiece and importlib.util.find_spec("sentencepiece") is None:
        return UserError(
            f"{got} has a SentencePiece tokenizer. Run: pip install sentencepiece "
            "(or 'peft-mrpc[sentencepiece]')"
        )
    return UserError(f"{got} {loader.__name__} cannot load: {message[:300]}")


def _pickle_error(source: ModelSource) -> UserError:
    return UserError(
        f"model: got {source.name!r}, which has no weights in safetensors; expected "
        "model.safetensors. Pickle files (.bin) can execute code: if you trust them, set "
        "allow_pickle."
    )


def position_limit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Maximum tokens of a sequence, by the position embeddings and the tokenizer."""
    positions = getattr(config, "max_position_embeddings", None) or NO_LIMIT
    return int(min(positions - _position_offset(config), tokenizer.model_max_length))


def _position_offset(config: PretrainedConfig) -> int:
    """The number of position embeddings that no token has.

    RoBERTa counts positions from the padding token's id + 1 on.
    """
    if isinstance(config, SentencePairConfig):
        config = config.encoder_config()
    if type(config) not in MODEL_MAPPING:
        return 0
    with torch.device("meta"), quiet_transformers():
        encoder = AutoModel.from_config(config, trust_remote_code=False)
    for name, module in encoder.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(padding) + 1
    return 0


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
