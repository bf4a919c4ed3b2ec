"""What the JSON files of a Run hold, so that a damaged one is told by its place and not by a crash.

A shape is a type, a tuple of types, a list of one shape that all entries have, or a mapping of keys
to shapes; the key `EACH` stands for any other key, and a key that ends in `?` may be missing.
"""

from collections.abc import Mapping
from typing import Any

EACH = "*"
NUMBER = (int, float)
FIGURE = (int, float, type(None))
TYPE_NAMES = {
    str: "text",
    int: "a whole number",
    NUMBER: "a number",
    FIGURE: "a number or null",
    list: "a list",
    dict: "an object",
}

RECORD: Mapping[str, Any] = {
    **dict.fromkeys(("method", "model", "finished"), str),
    "base_model_id": (str, type(None)),
    "seed": int,
    "seeds?": [int],
    **dict.fromkeys(("config", "versions"), dict),
    "data": {
        "name": str,
        "label_names": [str],
        "splits": {EACH: {"num_examples": int, "fingerprint": str, "num_leaked?": int}},
    },
    "timing": {"score_pairs_per_second": NUMBER, "train_seconds?": FIGURE},
    "peak_memory": {"resident_bytes": NUMBER},
    "hardware": {"cpu": str, "gpus": [str]},
    "trainable?": {"trained": NUMBER, "total": NUMBER},
}
METRICS: Mapping[str, Any] = {
    EACH: {
        **dict.fromkeys(("accuracy", "macro_f1", "mcc", "brier", "ece"), NUMBER),
        **dict.fromkeys(("majority_accuracy", "num_examples"), NUMBER),
        **dict.fromkeys(("roc_auc", "average_precision"), FIGURE),
        "f1": {EACH: NUMBER},
        "confusion_matrix": list,
        "std?": dict,
        "seeds?": {EACH: {"accuracy": NUMBER}},
    }
}


def shape_faults(content: Any, shape: Any, place: str = "") -> list[str]:
    """Where JSON is not as it should be.

    Args:
        content: As read.
        shape: What it should be.
        place: Of the content in its file, `data.splits.test`.
    """
    where = place or "the file"
    if isinstance(shape, list) and isinstance(content, list):
        parts = enumerate(content)
        return [f for n, one in parts for f in shape_faults(one, shape[0], f"{where}.{n}")]
    if not isinstance(shape, Mapping):
        shape = list if isinstance(shape, list) else shape
        # To Python a bool is an int.
        if isinstance(content, shape) and not isinstance(content, bool):
            return []
        wanted = TYPE_NAMES.get(shape, "text or null")
        return [f"{where} is {_short(content)}; expected {wanted}"]
    if not isinstance(content, Mapping):
        return [f"{where} is {_short(content)}; expected an object"]
    faults, known = [], {key.removesuffix("?"): part for key, part in shape.items() if key != EACH}
    for key in shape:
        if key != EACH and not key.endswith("?") and key not in content:
            faults.append(f"{where} lacks {key}")
    for key, value in content.items():
        part = known.get(key, shape.get(EACH))
        is_absent = value is None and f"{key}?" in shape
        if part is not None and not is_absent:
            faults += shape_faults(value, part, f"{place}.{key}".lstrip("."))
    return faults


def _short(content: Any) -> str:
    text = repr(content)
    return text if len(text) <= 40 else text[:39] + "…"
