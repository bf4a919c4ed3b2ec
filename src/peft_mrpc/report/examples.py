"""What the report's explorer of examples shows: sentences, labels, each Run's answers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from peft_mrpc.evaluation.plot_style import on_page, run_styles
from peft_mrpc.report.comparison import Comparison
from peft_mrpc.report.sentences import Sentences

MAX_EXAMPLES = 5000
# A document is cut in the report; what was scored is in the data.
MAX_CHARACTERS = 2000


def explorer_data(
    comparison: Comparison, sentences: Sentences, max_examples: int = MAX_EXAMPLES
) -> dict[str, Any]:
    """Examples as columns, small enough to stand in a page.

    Where there are more rows than `max_examples`, those that some Run has wrong come first, and
    the others are drawn by chance.

    Returns:
        `labels`, `runs` (name and colours), `total` rows, and for each row shown `idx`, `truth`,
        `sentence1`, `sentence2`, and by Run `predictions` and `confidences` (in thousandths).
    """
    rows = comparison.predictions
    wrong = np.any([one.predictions != one.references for one in rows], axis=0)
    order = np.lexsort((np.random.default_rng(0).random(len(wrong)), ~wrong))
    kept = np.sort(order[:max_examples])
    shown = [sentences[int(idx)] for idx in rows[0].idx[kept]]
    return {
        "labels": [name.replace("_", " ") for name in comparison.label_names],
        "runs": _runs(comparison),
        "total": len(wrong),
        "idx": rows[0].idx[kept].tolist(),
        "truth": rows[0].references[kept].tolist(),
        "sentence1": [_cut(pair[0]) for pair in shown],
        "sentence2": [_cut(pair[1]) for pair in shown],
        "predictions": [one.predictions[kept].tolist() for one in rows],
        "confidences": [
            np.rint(1000 * one.probabilities[kept, one.predictions[kept]]).astype(int).tolist()
            for one in rows
        ],
    }


def _runs(comparison: Comparison) -> list[Mapping[str, str]]:
    methods = [run.record["method"] for run in comparison.runs]
    colors = {}
    for page in ("light", "dark"):
        with on_page(page):
            colors[page] = [color for color, _ in run_styles(methods)]
    return [
        {"name": name, "light": light, "dark": dark}
        for name, light, dark in zip(comparison.names, colors["light"], colors["dark"], strict=True)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
