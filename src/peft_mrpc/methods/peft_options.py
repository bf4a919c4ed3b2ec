"""Rules for the options of PEFT's methods that PEFT does not check itself."""

import re
from collections.abc import Mapping
from typing import Any

from peft_mrpc.options import option_types

# Options of PEFT that count something. PEFT accepts 0 for some of them and fails or trains nothing.
SIZES = {
    *("r", "num_virtual_tokens", "encoder_hidden_size", "encoder_num_layers"),
    *("num_cayley_neumann_terms", "qalora_group_size", "lora_alpha"),
}
# Initializations that `train` cannot use, with the reason.
UNUSED_INITS = {
    **dict.fromkeys(("eva", "corda", "lora_ga"), "is computed from data before the training"),
    "pissa_niter": "is random: a loaded adapter has other values",
}


def option_faults(options: Mapping[str, Any]) -> list[str]:
    """The faults of a method's options that no model can use.

    Args:
        options: The options that were given.
    """
    faults = [
        f"{name}: got {value}; expected at least 1."
        for name, value in options.items()
        # OFT has a number of blocks (r) or a block size, and expects 0 for the other.
        if name in SIZES and value is not None and value < 1 and "oft_block_size" not in options
    ]
    faults += [
        f"{name}: got {value}; expected 0 or more and below 1."
        for name, value in options.items()
        if name.endswith("dropout") and not 0 <= value < 1
    ]
    if options.get("d_initial") == 0:
        faults.append("d_initial: got 0.0, with which VeRA's scales get no gradient; expected 0.1.")
    start = str(options.get("init_lora_weights"))
    if reason := UNUSED_INITS.get(re.sub(r"_\d+$", "", start)):
        faults.append(
            f"init_lora_weights: got {start}, which {reason}; expected pissa, olora, gaussian or "
            "orthogonal."
        )
    if options.get("alora_invocation_tokens") is not None:
        faults.append(
            "alora_invocation_tokens: is for models that generate text; remove it. A classifier "
            "always uses its adapter."
        )
    return faults


def listed_names(kind: type, options: Mapping[str, Any]) -> dict[str, list[str]]:
    """Single module names as lists, because PEFT treats a lone string as a regular expression."""
    takes_list = {name for name, hint in option_types(kind).items() if "list[str]" in str(hint)}
    return {
        name: [value]
        for name, value in options.items()
        if name in takes_list and isinstance(value, str) and re.fullmatch(r"[\w.]+", value)
    }
