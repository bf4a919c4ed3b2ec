"""Validation of a Run's JSON files, so that damaged ones give one clear line each.

The schemas are `assets/run.schema.json` and `assets/metrics.schema.json`.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from peft_mrpc.errors import raise_faults

MAX_VALUE_LENGTH = 40


def validate_record(path: Path, content: Any) -> None:
    """Validate the content of `run.json`.

    Raises:
        UserError: With one line for each fault.
    """
    raise_faults([f"{path}: damaged: {fault}." for fault in schema_faults(content, "run")])


def validate_metrics(path: Path, content: Any, label_names: Sequence[str]) -> None:
    """Validate the content of `metrics.json` for the labels of the Run.

    Raises:
        UserError: With one line for each fault.
    """
    faults = schema_faults(content, "metrics")
    if not faults:
        faults = [
            f"{split}.f1 lacks {', '.join(missing)}"
            for split, values in content.items()
            if (missing := sorted(set(label_names) - set(values["f1"])))
        ]
    raise_faults([f"{path}: damaged: {fault}." for fault in faults])


def schema_faults(content: Any, schema: str) -> list[str]:
    """Compare JSON with a schema.

    Args:
        content: Parsed JSON.
        schema: Name of the schema in `assets`, such as `run`.
    Returns:
        One text for each fault, such as `data.splits.test lacks fingerprint`.
    """
    errors = _validator(schema).iter_errors(content)
    ordered = sorted(errors, key=lambda error: list(map(str, error.path)))
    # Each missing key is an error of its own, with the same text.
    return list(dict.fromkeys(map(_format_error, ordered)))


@cache
def _validator(schema: str) -> Draft202012Validator:
    asset = resources.files("peft_mrpc") / "assets" / f"{schema}.schema.json"
    return Draft202012Validator(json.loads(asset.read_text("utf-8")))


def _format_error(error: ValidationError) -> str:
    where = ".".join(map(str, error.path)) or "the file"
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"{where} lacks {', '.join(missing)}"
    value = json.dumps(error.instance, ensure_ascii=False)
    if len(value) > MAX_VALUE_LENGTH:
        value = value[: MAX_VALUE_LENGTH - 1] + "…"
    if error.validator == "type":
        types = error.validator_value
        expected = types if isinstance(types, str) else " or ".join(types)
        return f"{where} is {value}; expected {expected}"
    return f"{where} is {value}; expected {error.validator} {error.validator_value}"
