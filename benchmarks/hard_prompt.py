"""Accuracy and speed of hard prompts: templates, calibration, demonstrations, 4-bit weights.

    python benchmarks/hard_prompt.py

SmolLM2-135M-Instruct scores MRPC's validation split and 400 training pairs. Templates are selected
and calibrations are fitted on the training pairs; labels of the validation split are used for the
metrics only. The speed is compared with EleutherAI's lm-evaluation-harness (`harness_peer.py`). The
results go into `hard_prompt.json` beside this file, the tables into `hard_prompt.md`, the plot into
`hard_prompt.png`. Scores are stored in `--output_dir`, so that a second run continues. `--only
speed` repeats one part and keeps the others.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench import Row, build_parser, build_report, goal_table, markdown, positive, run, speed_row
from harness_peer import compare_speed, speed_table
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.model_selection import StratifiedKFold

from peft_mrpc.config import DataConfig
from peft_mrpc.data.examples import Example
from peft_mrpc.data.loading import load_data
from peft_mrpc.distributed import process_state
from peft_mrpc.evaluation.metrics import compute_metrics
from peft_mrpc.evaluation.significance import wilson_interval
from peft_mrpc.formatting import format_p_value
from peft_mrpc.models.loading import load_causal_lm, load_tokenizer
from peft_mrpc.models.sources import resolve_model
from peft_mrpc.prompting.calibration import (
    CONTENT_FREE_TEXTS,
    MAX_FOLDS,
    Calibration,
    TemplateScores,
    affine,
    batch,
    contextual,
    no_calibration,
    stack_features,
    stack_label_scores,
)
from peft_mrpc.prompting.demonstrations import sample_demonstrations
from peft_mrpc.prompting.loglikelihood import LocalEngine
from peft_mrpc.prompting.prompt_encoder import PromptEncoder
from peft_mrpc.prompting.score_cache import FileScoreCache
from peft_mrpc.prompting.templates import (
    Demonstration,
    Template,
    load_template,
    load_templates,
)

LABELS = ("not_equivalent", "equivalent")
SEED, BATCH_SIZE, BATCH_TOKENS = 42, 16, 8192
DIRECT, CHANNEL = "paraphrase_harness", "channel_in_other_words"
# Goals: ratio to the speed of the harness by number of demonstrations, and accuracies.
SPEED_GOALS = {"0": 1.5, "8": 6.0, "16": 10.0}
CHANNEL_GOALS, BEST_GOAL, MIN_F1 = (0.70, 0.45), 0.73, 0.30
WITH_PRIOR = "batch calibration, training prior"
BLUE, GREY, RED = "#0072B2", "#999999", "#D55E00"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sizes:
    """Numbers of pairs, templates and seeds.

    Attributes:
        dev: Pairs of the validation split; None for all.
        train: Training pairs for selection and calibration.
        more: Additional training pairs of the larger calibration set.
        pool: Training pairs to sample demonstrations from; None for all that remain.
        templates: Names of the templates, as in `--template`.
        seeds: Seeds of the balanced demonstrations.
    """

    dev: int | None = None
    train: int = 400
    more: int = 800
    pool: int | None = None
    templates: str = "all"
    seeds: Sequence[int] = (1, 2, 3, 4, 5)


QUICK = Sizes(12, 12, 12, 60, f"{DIRECT},{CHANNEL},channel_that_is", (1,))


class Study:
    """Scores of one model on the validation split and on the training pairs."""

    def __init__(self, dataset: str, folder: Path, sizes: Sizes) -> None:
        data = load_data(DataConfig(dataset=dataset))
        self.sizes = sizes
        train = list(data.splits["train"])
        rows = np.random.default_rng([SEED, 1]).permutation(len(train))[: sizes.train]
        self.train = [train[row] for row in sorted(rows)]
        used = {pair.idx for pair in self.train}
        self.pool = [pair for pair in train if pair.idx not in used][: sizes.pool]
        self.dev = list(data.splits["validation"])[: sizes.dev]
        self.templates = load_templates(sizes.templates, LABELS)
        self.folder = folder
        self.prior = np.bincount([pair.label for pair in train]) / len(train)
        self._models: dict[str, Any] = {}

    def score(
        self,
        templates: Sequence[Template],
        examples: Sequence[Example],
        quantization: str = "none",
        demonstrations: Sequence[Demonstration] = (),
    ) -> list[TemplateScores]:
        """Scores of N examples by T templates, from the score cache where possible."""
        if quantization not in self._models:
            source = resolve_model("builtin:smollm2")
            model = load_causal_lm(source, quantization)
            encoder = PromptEncoder(load_tokenizer(source), LABELS, 8192)
            self._models = {quantization: (encoder, LocalEngine(model, 0, BATCH_TOKENS))}
        encoder, engine = self._models[quantization]
        index = process_state().process_index
        all_scores = []
        for template in templates:
            prompts = encoder.encode(template, examples, demonstrations)
            inputs = {"engine": engine.fingerprint(), "prompts": prompts.fingerprint()}
            cache = FileScoreCache(self.folder, index, inputs)
            all_scores.append(engine.score(prompts, BATCH_SIZE, cache))
        return all_scores

    def score_dev_and_train(
        self, templates: Sequence[Template], demonstrations: Sequence[Demonstration] = ()
    ) -> list[list[TemplateScores]]:
        return [
            self.score(templates, pairs, demonstrations=demonstrations)
            for pairs in (self.dev, self.train)
        ]

    def evaluate(self, calibration: Calibration, scores: Sequence[TemplateScores]) -> Row:
        """Metrics on the validation split."""
        return summarize(calibration.predict_proba(scores), references_of(self.dev))

    def calibrate(self, dev: Sequence[TemplateScores], train: Sequence[TemplateScores]) -> Row:
        """Metrics on the validation split by calibration, over all templates."""
        labels = stack_label_scores(dev)
        fitted = affine(stack_features(train), references_of(self.train))
        return {
            "none": self.evaluate(no_calibration(labels), dev),
            "batch": self.evaluate(batch(labels), dev),
            "batch_prior": self.evaluate(batch(labels).with_prior(labels, self.prior), dev),
            "affine": self.evaluate(fitted, dev),
        }


def references_of(pairs: Sequence[Example]) -> NDArray[np.int64]:
    return np.array([pair.label for pair in pairs])


def summarize(probabilities: Array, references: NDArray[np.int64]) -> Row:
    """Accuracy with its interval, F1 of both labels and ROC-AUC."""
    values = compute_metrics(references, probabilities.argmax(axis=1), probabilities, LABELS)
    num_correct = round(values["accuracy"] * len(references))
    return {
        "accuracy": values["accuracy"],
        "interval": list(wilson_interval(num_correct, len(references))),
        "f1": [values["f1"][label] for label in LABELS],
        "roc_auc": values["roc_auc"],
    }


# ---- parts ----


def compare_templates(study: Study) -> list[Row]:
    """Each template, and the ensembles of each direction."""
    templates = study.templates
    dev, train = study.score_dev_and_train(templates)
    references = references_of(study.train)
    rows = []
    for template, scores, on_train in zip(templates, dev, train, strict=True):
        row = {"template": template.name} | study.calibrate([scores], [on_train])
        if template.direction == "direct":
            empty = [Example(n, text, text) for n, text in enumerate(CONTENT_FREE_TEXTS)]
            content_free = stack_label_scores(study.score([template], empty))
            fitted = contextual(content_free)
            row["contextual"] = study.evaluate(fitted, [scores])
        labels = on_train.labels[None]
        row["train"] = summarize(no_calibration(labels).probabilities(labels), references)
        with_prior = batch(labels).with_prior(labels, study.prior)
        row["train_prior"] = summarize(with_prior.probabilities(labels), references)
        rows.append(row)
    for direction in ("direct", "channel", "all"):
        members = [n for n, t in enumerate(templates) if direction in (t.direction, "all")]
        name = f"{direction} (ensemble of {len(members)})"
        scores_of = [[part[n] for n in members] for part in (dev, train)]
        rows.append({"template": name} | study.calibrate(*scores_of))
    return rows


def compare_affine(study: Study) -> list[Row]:
    """Affine calibration by templates and by number of training pairs."""
    templates = study.templates
    channel = [n for n, template in enumerate(templates) if template.direction == "channel"]
    groups = {
        CHANNEL: [n for n, template in enumerate(templates) if template.name == CHANNEL],
        f"channel (ensemble of {len(channel)})": channel,
        f"all (ensemble of {len(templates)})": list(range(len(templates))),
    }
    dev, train = study.score_dev_and_train(templates)
    sample = np.random.default_rng([SEED, 2]).permutation(len(study.pool))[: study.sizes.more]
    more = [study.pool[row] for row in sorted(sample)]
    on_more = study.score(templates, more)
    references = references_of([*study.train, *more])
    rows = []
    for name, members in groups.items():
        parts = [stack_features([part[n] for n in members]) for part in (train, on_more)]
        features = np.concatenate(parts, axis=1)  # [V, N, C]
        for count in (len(study.train), len(references)):
            scores, labels = features[:, :count], references[:count]
            probabilities = cross_validate_affine(scores, labels)
            log_loss = -np.log(probabilities[np.arange(count), labels]).mean()
            rows.append(
                {
                    "templates": name,
                    "pairs": count,
                    "log_loss": float(log_loss),
                    "train": summarize(probabilities, labels),
                    "dev": study.evaluate(affine(scores, labels), [dev[n] for n in members]),
                }
            )
    return rows


def cross_validate_affine(features: Array, references: NDArray[np.int64]) -> Array:
    """Out-of-fold probabilities of the affine calibration, [V, N, C] -> [N, C]."""
    probabilities = np.zeros(features.shape[1:])
    num_folds = min(MAX_FOLDS, int(np.bincount(references).min()))
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=0)
    for fitted, rest in folds.split(probabilities, references):
        if np.bincount(references[fitted], minlength=len(LABELS)).min() < 2:
            calibration = affine(features, references)  # --quick: too few pairs for folds
        else:
            calibration = affine(features[:, fitted], references[fitted])
        probabilities[rest] = calibration.probabilities(features[:, rest])
    return probabilities


def compare_demonstrations(study: Study) -> list[Row]:
    """Eight balanced demonstrations by seed."""
    template = [load_template(DIRECT)]
    rows = []
    for seed in study.sizes.seeds:
        demonstrations = sample_demonstrations(study.pool, LABELS, 8, "balanced", seed)
        dev, train = study.score_dev_and_train(template, demonstrations)
        rows.append({"demonstrations": f"8 balanced, seed {seed}"} | study.calibrate(dev, train))
    return rows


def compare_quantization(study: Study) -> list[Row]:
    """4-bit weights and fp32 on the same pairs."""
    templates = [load_template(name) for name in (DIRECT, CHANNEL)]
    scores = {name: study.score(templates, study.dev, name) for name in ("none", "nf4")}
    references = references_of(study.dev)
    rows = []
    for number, template in enumerate(templates):
        row: Row = {"template": template.name}
        predictions = {}
        for name, quantization in (("fp32", "none"), ("nf4", "nf4")):
            part = scores[quantization][number]
            labels = part.labels[None]
            calibration = batch(labels).with_prior(labels, study.prior)
            row[name] = study.evaluate(calibration, [part])
            predictions[name] = calibration.probabilities(labels).argmax(axis=1)
        fp32, nf4 = (labels == references for labels in predictions.values())
        row["same_predictions"] = float((predictions["fp32"] == predictions["nf4"]).mean())
        row["only_fp32_correct"] = int((fp32 & ~nf4).sum())
        row["only_nf4_correct"] = int((nf4 & ~fp32).sum())
        rows.append(row)
    return rows


PARTS = {
    "templates": compare_templates,
    "affine": compare_affine,
    "demonstrations": compare_demonstrations,
    "quantization": compare_quantization,
}


def main() -> None:
    options = parse_options()
    peers = ["lm-eval"] if "speed" in options.only else []
    report = build_report("hard_prompt", options, *peers)
    study = Study(options.dataset, options.output_dir, QUICK if options.quick else Sizes())
    parts: dict[str, Any] = report.read().get("parts", {})
    for part in options.only:
        if part == "speed":
            parts[part] = compare_speed(options)
        else:
            parts[part] = PARTS[part](study)
            majority = np.bincount(references_of(study.dev)).max() / len(study.dev)
            parts["data"] = {"num_dev": len(study.dev), "majority_accuracy": float(majority)}
        report.write([*speed_rows(parts), *accuracy_rows(parts)], parts=parts)
    for part, text in build_tables(parts).items():
        report.show(text, part)
    report.draw(lambda: plot_results(parts))


def parse_options() -> argparse.Namespace:
    parser = build_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/hard_prompt_study"))
    parser.add_argument("--only", nargs="*", choices=["speed", *PARTS], default=["speed", *PARTS])
    parser.add_argument("--pairs", type=positive, help="timed validation pairs (default: 48)")
    parser.add_argument("--demonstrations", type=int, nargs="+", default=[0, 8, 16])
    parser.add_argument("--peer_batch_sizes", type=positive, nargs="+", help="default: 1 8")
    parser.add_argument("--repeats", type=positive, help="timed repeats (default: 2)")
    options = parser.parse_args()
    # On a CPU the harness was fastest with a batch size of 1 in every measurement.
    pairs, sizes, repeats = (24, [1], 1) if options.quick else (48, [1, 8], 2)
    options.pairs, options.repeats = options.pairs or pairs, options.repeats or repeats
    options.peer_batch_sizes = options.peer_batch_sizes or sizes
    return options


# ---- results ----


def speed_rows(parts: Mapping[str, Any]) -> list[Row]:
    """Speeds of `hard_prompt` and of the harness."""
    return [
        speed_row(
            f"{count} demonstrations vs. lm-evaluation-harness",
            speed["pairs_per_second"],
            speed["peer_pairs_per_second"],
            SPEED_GOALS.get(count),
            num_pairs=speed["num_pairs"],
            peak_memory={"ours": speed["peak_bytes"], "peer": speed["peer_peak_bytes"]},
        )
        for count, speed in parts.get("speed", {}).items()
    ]


def accuracy_rows(parts: Mapping[str, Any]) -> list[Row]:
    """Accuracies with their goals, and of 4-bit weights."""
    rows: list[Row] = []
    if templates := parts.get("templates"):
        majority = parts["data"]["majority_accuracy"]
        for on_train, on_dev, calibration in (
            ("train", "none", "uncalibrated"),
            ("train_prior", "batch_prior", WITH_PRIOR),
        ):
            single = [row for row in templates if on_train in row]
            best = max(single, key=lambda row: sum(row[on_train]["f1"]))
            name = f"template selected on train ({best['template']}), {calibration}"
            rows.append(accuracy_row(name, best[on_dev], majority, MIN_F1))
        for row in templates:
            if "train" not in row:
                name = row["template"]
                goals = CHANNEL_GOALS if name.startswith("channel") else (None, None)
                rows.append(accuracy_row(f"{name}, {WITH_PRIOR}", row["batch_prior"], *goals))
                goal = BEST_GOAL if name.startswith("all") else None
                rows.append(accuracy_row(f"{name}, affine calibration", row["affine"], goal))
    affine_rows = parts.get("affine", ())
    most = max((row["pairs"] for row in affine_rows), default=0)
    for row in affine_rows:
        if row["pairs"] == most:
            goal = BEST_GOAL if row["templates"].startswith("all") else None
            name = f"{row['templates']}, affine calibration on {most:,} pairs"
            rows.append(accuracy_row(name, row["dev"], goal))
    for row in parts.get("quantization", ()):
        keys = ("same_predictions", "only_fp32_correct", "only_nf4_correct")
        for weights in ("fp32", "nf4"):
            name = f"{row['template']}, {WITH_PRIOR}, {weights}"
            rows.append(accuracy_row(name, row[weights], None))
        rows[-1]["against_fp32"] = {key: row[key] for key in keys}
    return rows


def accuracy_row(name: str, metrics: Row, goal: float | None, f1_goal: float | None = None) -> Row:
    """An accuracy with its goal; the goal of F1 is that of the rarer label."""
    return {
        "name": name,
        "ours": metrics["accuracy"],
        "goal": goal,
        "f1": dict(zip(LABELS, metrics["f1"], strict=True)),
        "f1_goal": None if f1_goal is None else {LABELS[0]: f1_goal},
        "interval": metrics["interval"],
        "roc_auc": metrics["roc_auc"],
        "unit": "accuracy",
    }


# ---- tables and plot ----


def build_tables(parts: dict[str, Any]) -> dict[str, str]:
    """The tables of the page by the name of their mark."""
    builders: dict[str, Any] = {
        "templates": lambda rows: calibration_table(rows, "template"),
        "affine": affine_table,
        "demonstrations": lambda rows: calibration_table(rows, "demonstrations"),
        "quantization": quantization_table,
        "speed": speed_table,
    }
    tables = {part: build(parts[part]) for part, build in builders.items() if part in parts}
    return tables | {"accuracy": accuracy_table(parts), "ratios": goal_table(speed_rows(parts))}


def format_metrics(metrics: Row) -> str:
    low, high = metrics["interval"]
    f1 = "/".join(f"{value:.2f}" for value in metrics["f1"])
    return f"{metrics['accuracy']:.3f} [{low:.2f}, {high:.2f}] {f1}"


def accuracy_table(parts: Mapping[str, Any]) -> str:
    lines = []
    for row in accuracy_rows(parts):
        f1_goal = "-" if row["f1_goal"] is None else f"{row['f1_goal'][LABELS[0]]:.2f}"
        goal = "-" if row["goal"] is None else f"{row['goal']:.3f}"
        f1 = f"{row['f1'][LABELS[0]]:.2f}"
        lines.append([row["name"], f"{row['ours']:.3f}", goal, f1, f1_goal])
    return markdown(["setting", "accuracy", "goal", "F1 not equivalent", "goal"], lines)


def calibration_table(rows: Sequence[Row], key: str) -> str:
    kinds = ["none", "contextual", "batch", "batch_prior", "affine"]
    lines = []
    for row in rows:
        cells = [format_metrics(row[kind]) if kind in row else "-" for kind in kinds]
        lines.append([row[key], f"{row['none']['roc_auc']:.3f}", *cells])
    head = [key, "ROC-AUC", "uncalibrated", "contextual", "batch", "batch, training prior"]
    return markdown([*head, "affine"], lines)


def affine_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        train, dev = row["train"], row["dev"]
        train_cells = [format_metrics(train), f"{row['log_loss']:.3f}", f"{train['roc_auc']:.3f}"]
        dev_cells = [format_metrics(dev), f"{dev['roc_auc']:.3f}"]
        lines.append([row["templates"], str(row["pairs"]), *train_cells, *dev_cells])
    head = ["templates", "training pairs", "train, cross-validated", "log loss", "ROC-AUC"]
    return markdown([*head, "dev", "ROC-AUC"], lines)


def quantization_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        fp32, nf4 = row["only_fp32_correct"], row["only_nf4_correct"]
        p_value = binomtest(fp32, fp32 + nf4).pvalue if fp32 + nf4 else 1.0
        lines.append(
            [
                row["template"],
                format_metrics(row["fp32"]),
                format_metrics(row["nf4"]),
                f"{row['fp32']['roc_auc']:.3f} / {row['nf4']['roc_auc']:.3f}",
                f"{row['same_predictions']:.1%}",
                str(fp32),
                str(nf4),
                format_p_value(p_value),
            ]
        )
    head = ["template", "fp32", "nf4", "ROC-AUC", "same predictions", "only fp32 correct"]
    return markdown([*head, "only nf4 correct", "p"], lines)


def plot_results(parts: Mapping[str, Any]) -> Figure:
    """Plot the accuracy of each template with its interval, and the speeds."""
    templates: Sequence[Row] = parts.get("templates", ())
    speeds = speed_rows(parts)
    figure = Figure(figsize=(9, 1.2 + 0.27 * max(len(templates), 2 * len(speeds))))
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    styles = {
        "none": ("uncalibrated", GREY, -0.15),
        "batch_prior": ("batch, training prior", BLUE, 0.15),
    }
    for height, row in enumerate(templates):
        for key, (label, color, offset) in styles.items():
            left.plot(row[key]["interval"], [height + offset] * 2, color=color)
            label = "_" if height else label
            left.plot(row[key]["accuracy"], height + offset, "o", color=color, label=label)
    left.set_yticks(range(len(templates)), [row["template"] for row in templates])
    left.set_xlabel("accuracy, 95 % interval")
    if templates:
        left.axvline(parts["data"]["majority_accuracy"], color=RED, linestyle=":", label="majority")
        left.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.6, -0.12), ncols=3)
    for height, row in enumerate(speeds):
        label = "_" if height else "hard_prompt"
        right.barh(height - 0.2, row["ours"], 0.38, color=BLUE, label=label)
        label = "_" if height else "lm-evaluation-harness"
        right.barh(height + 0.2, row["peer"], 0.38, color=GREY, label=label)
        right.text(row["ours"], height - 0.2, f" {row['ratio']:.1f} x", va="center")
    right.set_yticks(range(len(speeds)), [row["name"].split(" ")[0] for row in speeds])
    right.set_ylabel("demonstrations")
    right.set_xlabel("pairs per second")
    right.margins(x=0.2)
    if speeds:
        right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    run(main)
