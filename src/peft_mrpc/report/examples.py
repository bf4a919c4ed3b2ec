"""The example browser of a report: sentences, labels and each Run's predictions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from peft_mrpc.evaluation.plot_style import DARK, LIGHT
from peft_mrpc.report.comparison import Comparison
from peft_mrpc.serialization import read_json_lines

# Longer texts are cut in the report.
MAX_CHARACTERS = 2000


def browser_data(comparison: Comparison, max_examples: int) -> dict[str, Any]:
    """Collect examples by column, in a compact form for the page.

    If there are more than `max_examples`, examples that a Run predicts incorrectly come first, and
    the others are drawn at random.

    Returns:
        `labels`, `runs` (name and colours), `total` examples, and for each included example `idx`,
        `truth`, `sentence1`, `sentence2`, and by Run `predictions` and `confidences` (in
        thousandths).
    """
    predictions = comparison.predictions
    has_error = np.any([~rows.is_correct for rows in predictions], axis=0)
    order = np.lexsort((np.random.default_rng(0).random(len(has_error)), ~has_error))
    chosen = np.sort(order[:max_examples])
    idx = predictions[0].idx[chosen]
    rows = {
        row["idx"]: row
        for row in read_json_lines(comparison.runs[0].predictions_path(comparison.split))
    }
    return {
        "labels": [name.replace("_", " ") for name in comparison.label_names],
        "runs": _runs(comparison),
        "total": len(has_error),
        "idx": idx.tolist(),
        "truth": predictions[0].references[chosen].tolist(),
        **{
            name: [_cut(rows[int(i)].get(name) or "") for i in idx]
            for name in ("sentence1", "sentence2")
        },
        "predictions": [rows.predictions[chosen].tolist() for rows in predictions],
        "confidences": [
            np.rint(1000 * rows.probabilities[chosen, rows.predictions[chosen]])
            .astype(int)
            .tolist()
            for rows in predictions
        ],
    }


def _runs(comparison: Comparison) -> list[Mapping[str, str]]:
    methods = [run.record["method"] for run in comparison.runs]
    light, dark = LIGHT.method_styles(methods), DARK.method_styles(methods)
    return [
        {"name": name, "light": on_light[0], "dark": on_dark[0]}
        for name, on_light, on_dark in zip(comparison.names, light, dark, strict=True)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
