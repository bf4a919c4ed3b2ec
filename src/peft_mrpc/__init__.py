"""Adapt pretrained language models to sentence-pair classification and compare the strategies."""

import importlib
import logging
from typing import Any

__version__ = "0.1.0"

# Module of each public name, imported at the first use: `import peft_mrpc` loads no library.
_MODULES = {
    "DataConfig": "config",
    "PromptConfig": "config",
    "TrainConfig": "config",
    "UserError": "errors",
    "compare_runs": "api",
    "evaluate_prompt": "api",
    "load_classifier": "api",
    "load_run": "runs.run",
    "train_classifier": "api",
}
__all__ = sorted(_MODULES)

# bitsandbytes reports a missing optional CPU kernel as an error each time it is imported. Users
# cannot act on it, and it would be the first line that they see.
logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
