"""What is wrong with a method's options, before any model is looked at."""

import re
from collections.abc import Mapping
from typing import Any

from peft import PromptTuningInit

from peft_mrpc.errors import unknown_name
from peft_mrpc.methods.option_types import option_types

# Options of PEFT that count something; it takes 0 for some, and fails or trains nothing.
SIZES = {
    *("r", "num_virtual_tokens", "encoder_hidden_size", "encoder_num_layers"),
    *("num_cayley_neumann_terms", "qalora_group_size", "lora_alpha"),
}
# Initializations that PEFT makes of activations or gradients, by calls of their own; and one that
# it draws anew, otherwise, when the adapter is loaded.
UNUSED_INITS = {
    **dict.fromkeys(("eva", "corda", "lora_ga"), "is computed from data before the training"),
    "pissa_niter": "comes out otherwise each time the adapter is loaded",
}


def option_faults(given: Mapping[str, Any]) -> list[str]:
    """What cannot be among the options that were given, whatever the model."""
    faults = [
        f"--{name}: got {value}; expected at least 1."
        for name, value in given.items()
        # OFT counts blocks (r) or sizes them, and wants 0 for what it is not told.
        if name in SIZES and value is not None and value < 1 and "oft_block_size" not in given
    ]
    faults += [
        f"--{name}: got {value}; expected 0 or more and below 1."
        for name, value in given.items()
        if name.endswith("dropout") and not 0 <= value < 1
    ]
    if given.get("d_initial") == 0:
        faults.append(
            "--d_initial: got 0, from which VeRA's scales never move; expected such as 0.1."
        )
    start = str(given.get("init_lora_weights"))
    if reason := UNUSED_INITS.get(re.sub(r"_\d+$", "", start)):
        faults.append(
            f"--init_lora_weights: got {start}, which {reason}; expected pissa, olora, gaussian or "
            "orthogonal."
        )
    if given.get("alora_invocation_tokens") is not None:
        faults.append(
            "--alora_invocation_tokens: is for models that write text; drop it, a pair invokes "
            "every adapter."
        )
    return faults + _prompt_faults(given)


def _prompt_faults(given: Mapping[str, Any]) -> list[str]:
    """What is wrong with the text that virtual tokens begin as."""
    init, text = given.get("prompt_tuning_init", "RANDOM"), given.get("prompt_tuning_init_text")
    if init not in list(PromptTuningInit):
        known = [i.value for i in PromptTuningInit]
        return [*unknown_name("--prompt_tuning_init", init, known).faults]
    faults = []
    if init == "TEXT" and not (text or "").strip():
        faults.append("--prompt_tuning_init_text: got none; expected the text that TEXT begins as.")
    if init != "TEXT" and text is not None:
        faults.append(
            f"--prompt_tuning_init_text: got a text, which {init} does not read; expected "
            "--prompt_tuning_init TEXT beside it."
        )
    return faults


def listed_names(kind: type, given: Mapping[str, Any]) -> dict[str, list[str]]:
    """Single module names as lists: PEFT takes a lone string for a regular expression."""
    takes_list = {name for name, hint in option_types(kind).items() if "list[str]" in str(hint)}
    return {
        name: [value]
        for name, value in given.items()
        if name in takes_list and isinstance(value, str) and re.fullmatch(r"[\w.]+", value)
    }
