"""Names of modules among PEFT's options that no module of the model has: PEFT ignores most."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedModel

from peft_mrpc.errors import closest
from peft_mrpc.methods.freezing import encoder_layers

# Options that name modules: by the end of their path, or all at once by a pattern in one text.
NAMING = ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save")
# Options that are mappings, of such names or patterns to a value of their own.
MAPPING = ("rank_pattern", "alpha_pattern")


def module_name_faults(model: PreTrainedModel, options: Any) -> list[str]:
    """What the user's options name that is not there, with the nearest that is."""
    paths = [path for path, _ in model.named_modules() if path]
    known = {path.rpartition(".")[2] for path in paths}
    faults = []
    for flag, name, pattern in _names(options):
        try:
            found = any(re.fullmatch(pattern, path) for path in paths)
        except re.error as error:
            faults.append(f"--{flag}: got {name!r}, which is no regular expression: {error}.")
            continue
        if not found:
            near = closest(name, known)
            faults.append(f"--{flag}: got {name!r}, which is no module of this model.{near}")
    return faults + _saved_faults(paths, options) + _layer_faults(model, options)


def _saved_faults(paths: Sequence[str], options: Any) -> list[str]:
    """Names of modules to be saved that modules inside them end with too: PEFT saves both."""
    faults = []
    for name in sorted(getattr(options, "modules_to_save", None) or ()):
        ending = [path for path in paths if path.endswith(name)]
        inside = [p for p in ending if any(p.startswith(f"{whole}.") for whole in ending)]
        if inside:
            faults.append(
                f"--modules_to_save: got {name!r}, with which names inside it end as well; "
                f"expected such as {inside[0].rpartition('.')[2]}."
            )
    return faults


def _names(options: Any) -> Iterable[tuple[str, str, str]]:
    """Flag, name, and the pattern of whole paths that it stands for, of each."""
    for flag in NAMING:
        value = getattr(options, flag, None)
        if isinstance(value, str):
            if value != "all-linear":
                yield flag, value, value
        else:
            yield from ((flag, n, rf"(.*\.)?{re.escape(n)}") for n in sorted(value or ()))
    for flag in MAPPING:
        yield from ((flag, key, rf"(.*\.)?({key})") for key in getattr(options, flag, None) or ())


def _layer_faults(model: PreTrainedModel, options: Any) -> list[str]:
    asked = getattr(options, "layers_to_transform", None)
    if asked is None:
        return []
    depth = len(encoder_layers(model))
    return [
        f"--layers_to_transform: got {layer}; expected 0 to {depth - 1}."
        for layer in (asked if isinstance(asked, list) else [asked])
        if not 0 <= layer < depth
    ]
