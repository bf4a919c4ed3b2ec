"""Write the files of a Run."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.data.examples import UNKNOWN_LABEL, DataSplits, Example, label_counts
from peft_mrpc.environment import describe_environment, peak_memory
from peft_mrpc.evaluation.metrics import compute_metrics
from peft_mrpc.evaluation.plot_style import method_styles, save_figure
from peft_mrpc.evaluation.plots import plot_confusion_matrix, plot_roc_curves
from peft_mrpc.evaluation.thresholds import predict_labels
from peft_mrpc.runs.model_card import build_card
from peft_mrpc.runs.run import CARD_FILE, FORMAT_VERSION, METRICS_FILE, PLOT_FILES, RUN_FILE, Run
from peft_mrpc.serialization import write_json, write_json_lines


def describe_data(data: DataSplits, splits: Sequence[str]) -> dict[str, Any]:
    """Describe the data for `run.json`.

    Returns:
        `name`, `label_names`, and for each split its size, label counts and fingerprint; for splits
        with training examples among them their number, `num_leaked`; for splits with invalid rows
        the number of dropped ones by reason, `dropped`.
    """
    return {
        "name": data.name,
        "label_names": list(data.label_names),
        "splits": {
            split: {
                "num_examples": len(data.splits[split]),
                "labels": label_counts(data.splits[split], data.label_names),
                "fingerprint": data.fingerprint(split),
                **({"num_leaked": count} if (count := data.num_leaked.get(split)) else {}),
                **({"dropped": dict(rows)} if (rows := data.dropped.get(split)) else {}),
            }
            for split in splits
        },
    }


def write_run(
    folder: Path,
    record: Mapping[str, Any],
    data: DataSplits,
    probabilities: Mapping[str, NDArray[np.float64]],
    threshold: float = 0.5,
) -> Run:
    """Write all files of a Run except the model, adapter or prompt, which must be there already.

    Args:
        folder: The staging directory.
        record: The strategy's entries of `run.json`.
        data: The examples that were scored.
        probabilities: [N, C] for each scored split, in dataset order.
        threshold: Of two labels, the last one is predicted where its probability exceeds this.
    """
    common = {
        "format_version": FORMAT_VERSION,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "peak_memory": peak_memory(),
    }
    run = Run(folder, {**common, **record, **describe_environment()}, {})
    for split, rows in probabilities.items():
        examples = data.splits[split]
        predicted = predict_labels(rows, threshold)
        write_predictions(run.predictions_path(split), examples, predicted, rows, data.label_names)
        labelled = [n for n, example in enumerate(examples) if example.label != UNKNOWN_LABEL]
        if labelled:
            references = np.array([examples[n].label for n in labelled])
            scores = (references, predicted[labelled], rows[labelled])
            run.metrics[split] = compute_metrics(*scores, data.label_names)
            plotted = split, references, rows[labelled]
    write_json(folder / RUN_FILE, run.record)
    write_json(folder / METRICS_FILE, run.metrics)
    if run.metrics:  # the last labelled split: test if it is labelled, else validation
        _write_plots(run, *plotted)
    (folder / CARD_FILE).write_text(build_card(run), encoding="utf-8")
    return run


def write_predictions(
    path: Path,
    examples: Sequence[Example],
    predictions: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    label_names: Sequence[str],
) -> None:
    """Write one JSON line for each example, in dataset order."""
    rows = []
    for example, label, row in zip(examples, predictions, probabilities, strict=True):
        line: dict[str, Any] = {"idx": example.idx, "sentence1": example.sentence1}
        if example.sentence2 is not None:
            line["sentence2"] = example.sentence2
        if example.label != UNKNOWN_LABEL:
            line["label"] = label_names[example.label]
        line["prediction"] = label_names[int(label)]
        line["probabilities"] = dict(zip(label_names, map(float, row), strict=True))
        rows.append(line)
    write_json_lines(path, rows)


def _write_plots(
    run: Run, split: str, references: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> None:
    values, method = run.metrics[split], run.record["method"]
    title = f"{run.name}\n{run.record['data']['name']} {split}, {values['num_examples']} examples"
    folder = run.path / "plots"
    folder.mkdir(exist_ok=True)
    matrix = plot_confusion_matrix(
        np.array(values["confusion_matrix"]),
        run.label_names,
        f"{title}, accuracy {values['accuracy']:.3f}",
    )
    styles = method_styles([method])
    curve = plot_roc_curves({method: (references, probabilities)}, styles, title)
    for name, figure in zip(PLOT_FILES, (matrix, curve), strict=True):
        save_figure(figure, folder / name)
