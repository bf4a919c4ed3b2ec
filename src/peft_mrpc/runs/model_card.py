"""The model card of a Run: what it is, how good, and how to load it."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from peft_mrpc.runs.run import Run

LIBRARIES = {"adapter": "peft", "model": "transformers", "prompt": "transformers"}

LOADING = {
    "model": """from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{repo_id}")
tokenizer = AutoTokenizer.from_pretrained("{repo_id}")""",
    "adapter": """from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base = AutoModelForSequenceClassification.from_pretrained("{base_model}", num_labels={num_labels})
model = PeftModel.from_pretrained(base, "{repo_id}")
tokenizer = AutoTokenizer.from_pretrained("{repo_id}")""",
}


POOLED_LOADING = {
    "model": LOADING["model"].replace('("{repo_id}")', '("{repo_id}", trust_remote_code=True)'),
    "adapter": """from peft_mrpc import load_classifier

classifier = load_classifier("{repo_id}")
classifier.predict_proba([("One sentence.", "Another.")])  # [1, {num_labels}]""",
}


def with_spread(mean: float | None, spread: float | None) -> str:
    """A figure, with its standard deviation over seeds where there is one."""
    if mean is None:
        return "-"
    return f"{mean:.3f}" if spread is None else f"{mean:.3f} ± {spread:.3f}"


def figure_texts(values: Mapping[str, Any], label_names: Sequence[str]) -> list[str]:
    """Accuracy, F1 of each class and ROC-AUC, each with its deviation over seeds, if any."""
    spread = values.get("std")
    return [
        with_spread(values["accuracy"], spread and spread["accuracy"]),
        *(with_spread(values["f1"][name], spread and spread["f1"][name]) for name in label_names),
        with_spread(values["roc_auc"], spread and spread["roc_auc"]),
    ]


def build_card(run: Run, repo_id: str | None = None) -> str:
    """Write the card, metadata first.

    Args:
        run: The Run; nothing of its paths goes into the card.
        repo_id: Where it is published; None for the card that stays in the Run.
    Returns:
        Markdown with a YAML header, as the Hub reads it.
    """
    kind = run.artifact.name
    record = run.record
    base = record["base_model_id"]
    name = repo_id.split("/")[-1] if repo_id else f"{record['method']}-{_short_name(record)}"
    data = ModelCardData(
        library_name=LIBRARIES[kind],
        base_model=base,
        pipeline_tag="text-classification",
        tags=["peft-mrpc", "sentence-pair-classification", record["method"]],
        datasets=_hub_datasets(record["data"]["name"]),
        metrics=["accuracy", "f1", "roc_auc"],
        model_name=name,
        eval_results=_eval_results(run),
    )
    body = "\n\n".join(
        filter(None, [f"# {name}", _summary(run), _results(run), _usage(run, repo_id)])
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def _short_name(record: dict[str, Any]) -> str:
    return str(record["data"]["name"]).rsplit(":", 1)[-1].rsplit("/", 1)[-1]


def _hub_datasets(name: str) -> list[str] | None:
    if name == "mrpc":
        return ["nyu-mll/glue"]
    return [name.split(":")[0]] if "/" in name else None


def _eval_results(run: Run) -> list[EvalResult] | None:
    name = run.record["data"]["name"]
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type="nyu-mll/glue" if name == "mrpc" else name,
            dataset_name=name,
            dataset_split=split,
            metric_type=metric,
            metric_value=round(values[metric], 4),
        )
        for split, values in run.model_run.metrics.items()  # of the weights that are published
        for metric in ("accuracy", "macro_f1", "roc_auc")
        if values.get(metric) is not None
    ]
    return results or None


def _summary(run: Run) -> str:
    record = run.record
    base = record["base_model_id"] or "a local model"
    labels = ", ".join(f"`{name}`" for name in run.label_names)
    how = f"`{base}` adapted by **{record['method']}** to tell sentence pairs apart ({labels})."
    if "trainable" in record:
        counts = record["trainable"]
        how += (
            f" {counts['trained']:,} of {counts['total']:,} parameters "
            f"({counts['trained'] / counts['total']:.2%}) were trained"
            f" on {record['data']['splits']['train']['num_examples']:,} pairs of"
            f" `{record['data']['name']}`, seed {record['seed']}."
        )
    return how + _virtual_tokens(record) + _reading(record) + _choice(run)


def _virtual_tokens(record: dict[str, Any]) -> str:
    """Where a soft prompt stands."""
    count = record.get("method_options", {}).get("num_virtual_tokens")
    if count is None:
        return ""
    place = {"before": "before the pair", "after": "after its first token"}
    position = place[record["config"].get("prompt_position", "before")]
    return f" {count} virtual tokens stand {position}."


def _reading(record: dict[str, Any]) -> str:
    """What the head of ours reads, and at which layer."""
    config = record["config"]
    if (pooling := config.get("pooling", "native")) == "native":
        return ""
    layer = config.get("head_layer", "last")
    where = "" if layer == "last" else f" and reads layer {layer} of the encoder"
    return f" The head is `{pooling}`{where}."


def _choice(run: Run) -> str:
    """What was chosen on held-out training pairs, and the threshold where it is not the usual."""
    selection, threshold = run.record.get("selection"), run.record.get("threshold", 0.5)
    said = ""
    if threshold != 0.5:
        said += (
            f" A pair is called `{run.label_names[-1]}` where its probability is above"
            f" {threshold:.4f}; `peft-mrpc predict` does so, other tools have to."
        )
    if selection:
        chosen = [f"epoch {selection['best_epoch']:g}"] if selection["best_step"] else []
        chosen += ["the threshold"] if run.record["config"]["threshold"] == "auto" else []
        said += (
            f" {selection['num_examples']:,} more training pairs were held out"
            f" {'to choose ' + ' and '.join(chosen) + ' on' if chosen else 'to watch'}."
        )
    return said


def _results(run: Run) -> str:
    if not run.metrics:
        return ""
    header = [f"F1 {name}" for name in run.label_names]
    lines = [
        f"| split | rows | majority | accuracy | {' | '.join(header)} | ROC-AUC |",
        "|---" * (5 + len(header)) + "|",
    ]
    for split, values in run.metrics.items():
        lines.append(_result_line(split, values, run.label_names))
        if run.model_run is not run:
            first = f"{split}, seed {run.record['seed']}"
            lines.append(_result_line(first, run.model_run.metrics[split], run.label_names))
    return "## Results\n\n" + "\n".join(lines) + _seeds_note(run) + _trained_note(run)


def _result_line(split: str, values: dict[str, Any], label_names: list[str]) -> str:
    return (
        f"| {split} | {values['num_examples']} | {values['majority_accuracy']:.3f} | "
        f"{' | '.join(figure_texts(values, label_names))} |"
    )


def _seeds_note(run: Run) -> str:
    if run.model_run is run:
        return ""
    seeds = run.record["seeds"]
    return (
        f"\n\nMean ± standard deviation over seeds {', '.join(map(str, seeds))}. The model here is "
        f"that of seed {seeds[0]}, the first and not the best: none was chosen by its results."
    )


def _trained_note(run: Run) -> str:
    """Which figures are in part of pairs that were trained on."""
    splits = run.record["data"]["splits"]
    said = [
        f"{count} of the {splits[split]['num_examples']} {split} pairs are training pairs too."
        for split in run.metrics
        if (count := splits[split].get("num_leaked")) and "trainable" in run.record
    ]
    return "\n\n" + " ".join(said) if said else ""


def _usage(run: Run, repo_id: str | None) -> str:
    where = repo_id or "path/to/this/run"
    kind = run.artifact.name
    parts = [
        "## Use\n\n```bash\npip install peft-mrpc\n"
        f"peft-mrpc predict {where} --input pairs.csv --output labelled.csv\n```"
    ]
    if kind in LOADING:
        # Our own head is code of ours: it travels with a model, an adapter needs the toolkit.
        pooled = run.record["config"].get("pooling", "native") != "native"
        code = (POOLED_LOADING if pooled else LOADING)[kind].format(
            repo_id=repo_id or f"path/to/this/run/{kind}",
            base_model=run.record["base_model_id"] or "path/to/the/base/model",
            num_labels=len(run.label_names),
        )
        how = "In Python" if pooled and kind == "adapter" else "Or without this toolkit"
        parts.append(f"{how}:\n\n```python\n{code}\n```")
    if kind == "prompt":
        parts.append(_questions(run))
    return "\n\n".join(parts)


def _questions(run: Run) -> str:
    """Each wording that was asked, with the words of the labels."""
    config: dict[str, Any] = run.record["config"]
    templates = config.get("templates") or [config["template"]]
    parts = ["The question asked:" if len(templates) == 1 else "The questions asked:"]
    for one in templates:
        words = {
            label: own if isinstance(own, list) else [own]
            for label, own in one["label_words"].items()
        }
        said = "; ".join(
            f"{label}: {' or '.join(own) or 'no words'}" for label, own in words.items()
        )
        before = f"{one['system']}\n\n" if one.get("system") else ""
        parts.append(f"```\n{before}{one['text'].strip()}\n```\n\n{said}")
    if count := config.get("num_demonstrations"):
        parts.append(
            f"Before it {count} labelled training pairs are shown ({config['demonstrations']})."
        )
    if count := run.num_pool_pairs:
        parts.append(f"This repository holds the {count} training pairs they are found among.")
    if config.get("calibration", "none") != "none":
        parts.append(f"Calibration: {config['calibration']}.")
    uses = (run.record.get("uses_labels") or {}).get("for")
    parts.append(
        f"Labels of training pairs were used for {', '.join(uses)}."
        if uses
        else "No label was used."
    )
    return "\n\n".join(parts)
