"""The model card of a Run: metadata for the Hub, description, results and usage."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from peft_mrpc.runs.run import Run
from peft_mrpc.runs.summary import format_metrics
from peft_mrpc.serialization import read_asset, read_json

VIRTUAL_TOKEN_POSITIONS = {"before": "before the sentences", "after": "after the first token"}


def build_card(run: Run, repo_id: str | None = None) -> str:
    """Build the card. It contains no local paths.

    Args:
        run: The Run.
        repo_id: The repository on the Hub; None for the card in the Run's directory.
    Returns:
        Markdown with a YAML header, in the format of the Hub.
    """
    record = run.record
    dataset = str(record["data"]["name"])
    short_dataset = dataset.rsplit(":", 1)[-1].rsplit("/", 1)[-1]
    name = repo_id.split("/")[-1] if repo_id else f"{record['method']}-{short_dataset}"
    data = ModelCardData(
        library_name=_library(run),
        base_model=record["base_model_id"],
        base_model_relation="adapter" if run.artifact.name == "adapter" else "finetune",
        pipeline_tag="text-classification",
        tags=[
            *("peft-mrpc", "sentence-pair-classification", record["method"]),
            *(["custom_code"] if _has_code(run) else []),
        ],
        datasets=_hub_datasets(dataset),
        metrics=["accuracy", "f1", "roc_auc"],
        model_name=name,
        eval_results=_eval_results(run),
    )
    body = _template().render(_values(run, name, repo_id))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _library(run: Run) -> str:
    """The library that loads the folder, with the code in it if there is some."""
    if run.artifact.name == "prompt":
        return "peft-mrpc"
    return "peft" if (run.artifact / "adapter_config.json").is_file() else "transformers"


def _has_code(run: Run) -> bool:
    """Whether the model has the code of its architecture beside it."""
    return "auto_map" in _read(run, "config.json")


def _call(run: Run) -> str:
    """The call of a pipeline with two sentences; decoders read them as two lines."""
    if _read(run, "tokenizer_config.json").get("sep_token"):
        inputs = '{"text": "The first sentence.", "text_pair": "The second sentence."}'
    else:
        inputs = '"Sentence 1: The first sentence.\\nSentence 2: The second sentence."'
    return f"classifier({inputs}, truncation=True)"


def _read(run: Run, name: str) -> dict[str, Any]:
    path = run.artifact / name
    content: dict[str, Any] = read_json(path) if path.is_file() else {}
    return content


def _template() -> Any:
    # Markdown, not HTML: nothing is escaped.
    environment = Environment(autoescape=False, undefined=StrictUndefined)
    return environment.from_string(read_asset("assets/model_card.md.jinja"))


def _values(run: Run, name: str, repo_id: str | None) -> dict[str, Any]:
    """The values of the template."""
    record, config, kind = run.record, run.record["config"], run.artifact.name
    return {
        "name": name,
        "record": {"trainable": None, **record},
        "config": {"num_demonstrations": 0, **config},
        "kind": kind,
        "label_names": run.label_names,
        "labels": ", ".join(f"`{label}`" for label in run.label_names),
        "virtual_tokens": _virtual_tokens(record),
        "head": _head(config),
        "library": _library(run),
        "id2label": dict(enumerate(run.label_names)),
        "has_code": _has_code(run),
        "call": _call(run),
        "threshold": record.get("threshold", 0.5),
        "selection": _selection(record),
        "results": _results(run),
        "seeds": record["seeds"] if run.members else None,
        "leaked": _leaked(run),
        "repo": repo_id or "path/to/this/run",
        "artifact": repo_id or f"path/to/this/run/{kind}",
        "templates": _templates(config) if kind == "prompt" else [],
        "label_uses": (record.get("uses_labels") or {}).get("for"),
    }


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
        for split, values in run.model_run.metrics.items()  # of the published weights
        for metric in ("accuracy", "macro_f1", "roc_auc")
        if values.get(metric) is not None
    ]
    return results or None


def _virtual_tokens(record: Mapping[str, Any]) -> str:
    count = (record.get("method_options") or {}).get("num_virtual_tokens")
    if count is None:
        return ""
    position = VIRTUAL_TOKEN_POSITIONS[record["config"].get("prompt_position", "before")]
    return f"{count} virtual tokens are inserted {position}."


def _head(config: Mapping[str, Any]) -> str:
    if (pooling := config.get("pooling", "native")) == "native":
        return ""
    layer = config.get("head_layer", "last")
    position = "the last layer" if layer == "last" else f"layer {layer}"
    return f"The head is `{pooling}` on {position} of the encoder."


def _selection(record: Mapping[str, Any]) -> str:
    """How training examples were used for model selection."""
    if not (selection := record.get("selection")):
        return ""
    choices = [f"epoch {selection['best_epoch']:g}"] if selection["best_step"] else []
    choices += ["the threshold"] if record["config"]["threshold"] == "auto" else []
    purpose = f"to select {' and '.join(choices)}" if choices else "for monitoring only"
    return f"{selection['num_examples']:,} more training examples were held out {purpose}."


def _results(run: Run) -> Mapping[str, Any] | None:
    """Header and lines of the table of results."""
    if not run.metrics:
        return None
    f1 = [f"F1 {name}" for name in run.label_names]
    columns = ["split", "examples", "majority", "accuracy", *f1, "ROC-AUC"]
    lines = []
    for split, values in run.metrics.items():
        lines.append(_result_line(split, values, run.label_names))
        if run.members:
            title = f"{split}, seed {run.record['seed']}"
            lines.append(_result_line(title, run.model_run.metrics[split], run.label_names))
    return {
        "header": f"| {' | '.join(columns)} |",
        "rule": "|---" * len(columns) + "|",
        "lines": lines,
    }


def _result_line(title: str, values: Mapping[str, Any], label_names: Sequence[str]) -> str:
    return (
        f"| {title} | {values['num_examples']} | {values['majority_accuracy']:.3f} | "
        f"{' | '.join(format_metrics(values, label_names))} |"
    )


def _leaked(run: Run) -> list[str]:
    """Warnings about evaluation examples that are training examples too."""
    splits = run.record["data"]["splits"]
    return [
        f"{count} of the {splits[split]['num_examples']} {split} examples are also training "
        "examples: the metrics overestimate performance on unseen examples."
        for split in run.metrics
        if (count := splits[split].get("num_leaked")) and "trainable" in run.record
    ]


def _templates(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each template, with the label words as text."""
    templates = []
    for template in config.get("templates") or [config["template"]]:
        parts = []
        for label, words in template["label_words"].items():
            words = [words] if isinstance(words, str) else words
            parts.append(f"{label}: {' or '.join(words) or 'no words'}")
        templates.append(
            {
                "system": template.get("system"),
                "text": template["text"],
                "label_words": "; ".join(parts),
            }
        )
    return templates
