"""Accuracy and speed of hard prompts: templates, calibrations, demonstrations, 4-bit weights.

    python benchmarks/hard_prompt.py

SmolLM2-135M-Instruct scores MRPC's validation split, and 400 training pairs to select and to fit
on. Labels of the validation split are used for the metrics only. Speed is measured against
EleutherAI's lm-evaluation-harness (`hard_prompt_speed.py`; its package is in `requirements.txt`).
The results go to `hard_prompt.json` beside this file, the tables to `hard_prompt.md`, the plot to
`hard_prompt.png`. Scores are stored in `--output_dir` while they are computed; a second run
continues. `--only speed` (and so on) repeats one part and keeps the others.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench import build_parser, build_report, goal_table, run
from hard_prompt_rows import accuracy_rows, accuracy_table, draw, speed_rows
from hard_prompt_speed import QUICK_PAIRS, compare_speed, parse_speed_options, speed_table
from hard_prompt_tables import (
    calibrated_table,
    fits_table,
    quantization_table,
)
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.model_selection import StratifiedKFold

from peft_mrpc.config import DataConfig
from peft_mrpc.data.examples import Example
from peft_mrpc.data.loading import load_data
from peft_mrpc.distributed import process_state
from peft_mrpc.evaluation.metrics import compute_metrics
from peft_mrpc.models.loading import load_causal_lm, load_tokenizer
from peft_mrpc.models.sources import resolve_model
from peft_mrpc.prompting.calibration import (
    CONTENT_FREE_TEXTS,
    MAX_FOLDS,
    Calibration,
    affine,
    batch,
    contextual,
    no_calibration,
)
from peft_mrpc.prompting.demonstrations import sample_demonstrations
from peft_mrpc.prompting.local_model import LocalEngine
from peft_mrpc.prompting.prompt_encoder import PromptEncoder
from peft_mrpc.prompting.score_cache import FileScoreCache
from peft_mrpc.prompting.scores import TemplateScores, stack_features, stack_label_scores
from peft_mrpc.prompting.templates import (
    Demonstration,
    Template,
    load_template,
    load_templates,
)

LABELS = ("not_equivalent", "equivalent")
SEED, BATCH_SIZE, BATCH_TOKENS = 42, 16, 8192
SHOWN = "paraphrase_harness"  # the template of the demonstrations
FITTED_ALONE = "channel_in_other_words"
Array = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is scored.

    Attributes:
        dev: Pairs of the validation split; None for all.
        train: Training pairs to select and to fit on.
        more: Further training pairs for the larger fit.
        pool: Training pairs to take demonstrations from; None for all the others.
        templates: Names of the templates.
        seeds: Seeds of the balanced demonstrations.
    """

    dev: int | None = None
    train: int = 400
    more: int = 800
    pool: int | None = None
    templates: str = "all"
    seeds: Sequence[int] = (1, 2, 3, 4, 5)


QUICK = Sizes(
    *(QUICK_PAIRS, QUICK_PAIRS, QUICK_PAIRS, 60),
    templates=f"{SHOWN},channel_in_other_words,channel_that_is",
    seeds=(1,),
)


class Study:
    """Label scores of one model on the validation split and on some training pairs."""

    def __init__(self, dataset: str, folder: Path, sizes: Sizes) -> None:
        data = load_data(DataConfig(dataset=dataset))
        self.sizes = sizes
        pool = list(data.splits["train"])
        rows = np.random.default_rng([SEED, 1]).permutation(len(pool))[: sizes.train]
        self.train = [pool[row] for row in sorted(rows)]
        used = {pair.idx for pair in self.train}
        self.pool = [pair for pair in pool if pair.idx not in used][: sizes.pool]
        self.dev = list(data.splits["validation"])[: sizes.dev]
        self.templates = load_templates(sizes.templates, LABELS)
        self.folder = folder
        self.shares = np.bincount([pair.label for pair in pool]) / len(pool)
        self._models: dict[str, Any] = {}

    def scores(
        self,
        templates: Sequence[Template],
        examples: Sequence[Example],
        quantization: str = "none",
        demonstrations: Sequence[Demonstration] = (),
    ) -> list[TemplateScores]:
        """The scores of N examples by T templates; those of an earlier run are reused."""
        if quantization not in self._models:
            source = resolve_model("builtin:smollm2")
            model = load_causal_lm(source, quantization)
            encoder = PromptEncoder(load_tokenizer(source), LABELS, 8192)
            self._models = {quantization: (encoder, LocalEngine(model, 0, BATCH_TOKENS))}
        encoder, engine = self._models[quantization]
        index = process_state().process_index
        all_scores = []
        for template in templates:
            batch = encoder.encode(template, examples, demonstrations)
            inputs = {"engine": engine.fingerprint(), "prompts": batch.fingerprint()}
            cache = FileScoreCache(self.folder, index, inputs)
            all_scores.append(engine.score(batch, BATCH_SIZE, cache))
        return all_scores

    def reached(self, calibration: Calibration, scores: Sequence[TemplateScores]) -> Row:
        """Metrics on dev."""
        return figures(calibration.predict_proba(scores), references_of(self.dev))

    def calibrated(
        self, scores: Sequence[TemplateScores], on_train: Sequence[TemplateScores]
    ) -> Row:
        """Metrics on dev without calibration, and with each calibration for all templates."""
        labels = stack_label_scores(scores)
        fit = affine(stack_features(on_train), references_of(self.train))
        return {
            "none": self.reached(no_calibration(labels), scores),
            "batch": self.reached(batch(labels), scores),
            "prior": self.reached(batch(labels).with_prior(labels, self.shares), scores),
            "affine": self.reached(fit, scores),
        }


def references_of(pairs: Sequence[Example]) -> NDArray[np.int64]:
    return np.array([pair.label for pair in pairs])


def figures(probabilities: Array, references: NDArray[np.int64]) -> Row:
    values = compute_metrics(references, probabilities.argmax(axis=1), probabilities, LABELS)
    right = round(values["accuracy"] * len(references))
    interval = binomtest(right, len(references)).proportion_ci(method="wilson")
    return {
        "accuracy": values["accuracy"],
        "interval": [interval.low, interval.high],
        "f1": [values["f1"][label] for label in LABELS],
        "roc_auc": values["roc_auc"],
    }


def compare_templates(study: Study) -> list[Row]:
    """Each template alone, and all of them together."""
    templates = study.templates
    dev, train = (study.scores(templates, pairs) for pairs in both(study))
    references = references_of(study.train)
    rows = []
    for template, scores, on_train in zip(templates, dev, train, strict=True):
        row = {"template": template.name} | study.calibrated([scores], [on_train])
        if template.direction == "direct":
            row["mass"] = float(np.exp(scores.labels).sum(axis=1).mean())
            empty = [Example(n, text, text) for n, text in enumerate(CONTENT_FREE_TEXTS)]
            free = stack_label_scores(study.scores([template], empty))
            row["contextual"] = study.reached(contextual(scores.labels[None], free), [scores])
        labels = on_train.labels[None]
        row["train"] = figures(no_calibration(labels).probabilities(labels), references)
        matched = batch(labels).with_prior(labels, study.shares)
        row["train_prior"] = figures(matched.probabilities(labels), references)
        rows.append(row)
    return [*rows, *ensembles(study, templates, dev, train)]


def ensembles(
    study: Study,
    templates: Sequence[Template],
    dev: Sequence[TemplateScores],
    train: Sequence[TemplateScores],
) -> list[Row]:
    """Ensembles of the templates of each direction."""
    rows = []
    for direction in ("direct", "channel", None):
        which = [n for n, t in enumerate(templates) if direction in (t.direction, None)]
        scores, on_train = [dev[n] for n in which], [train[n] for n in which]
        name = f"{direction or 'all'} ({len(which)} together)"
        rows.append({"template": name} | study.calibrated(scores, on_train))
    return rows


def fits(study: Study) -> list[Row]:
    """The affine fit, by templates and by number of training pairs."""
    templates = study.templates
    channel = [number for number, one in enumerate(templates) if one.direction == "channel"]
    groups = {
        FITTED_ALONE: [number for number, one in enumerate(templates) if one.name == FITTED_ALONE],
        f"channel ({len(channel)} together)": channel,
        f"all ({len(templates)} together)": [*range(len(templates))],
    }
    dev, train = (study.scores(templates, pairs) for pairs in both(study))
    chosen = np.random.default_rng([SEED, 2]).permutation(len(study.pool))[: study.sizes.more]
    more = [study.pool[row] for row in sorted(chosen)]
    further = study.scores(templates, more)
    references = references_of([*study.train, *more])
    rows = []
    for name, which in groups.items():
        parts = [stack_features([part[n] for n in which]) for part in (train, further)]
        features = np.concatenate(parts, axis=1)  # [V, N, C]
        for count in (len(study.train), len(references)):
            scores, labels = features[:, :count], references[:count]
            unseen = affine_out_of_fold(scores, labels)
            row: Row = {"templates": name, "pairs": count}
            row["log_loss"] = float(-np.log(unseen[np.arange(count), labels]).mean())
            row["train"] = figures(unseen, labels)
            row["dev"] = study.reached(affine(scores, labels), [dev[n] for n in which])
            rows.append(row)
    return rows


def affine_out_of_fold(features: Array, references: NDArray[np.int64]) -> Array:
    """Probabilities of labelled examples by fits without them, [V, N, C] -> [N, C]."""
    probabilities = np.zeros(features.shape[1:])
    folds = StratifiedKFold(
        min(MAX_FOLDS, int(np.bincount(references).min())), shuffle=True, random_state=0
    )
    for fitted, rest in folds.split(probabilities, references):
        if np.bincount(references[fitted], minlength=len(LABELS)).min() < 2:
            calibration = affine(features, references)  # --quick: too few to leave some out
        else:
            calibration = affine(features[:, fitted], references[fitted])
        probabilities[rest] = calibration.probabilities(features[:, rest])
    return probabilities


def both(study: Study) -> list[list[Example]]:
    return [study.dev, study.train]


def demonstrations(study: Study) -> list[Row]:
    """Demonstrations: balanced samples."""
    template = [load_template(SHOWN)]
    rows = []
    for seed in study.sizes.seeds:
        shots = sample_demonstrations(study.pool, LABELS, 8, "balanced", seed)
        dev, train = (study.scores(template, pairs, demonstrations=shots) for pairs in both(study))
        rows.append({"demonstrations": f"8 balanced, seed {seed}"} | study.calibrated(dev, train))
    return rows


def quantization(study: Study) -> list[Row]:
    """4-bit weights against fp32, on the same rows."""
    templates = [load_template(name) for name in (SHOWN, "channel_in_other_words")]
    full = study.scores(templates, study.dev)
    packed = study.scores(templates, study.dev, "nf4")
    references = references_of(study.dev)
    rows = []
    for number, template in enumerate(templates):
        predictions = []
        row: Row = {"template": template.name}
        for name, part in (("fp32", full[number]), ("nf4", packed[number])):
            scores = part.labels[None]
            calibration = batch(scores).with_prior(scores, study.shares)
            row[name] = study.reached(calibration, [part])
            predictions.append(calibration.probabilities(scores).argmax(axis=1))
        right = [labels == references for labels in predictions]
        row["same_answers"] = float((predictions[0] == predictions[1]).mean())
        row["only_fp32_right"] = int((right[0] & ~right[1]).sum())
        row["only_nf4_right"] = int((right[1] & ~right[0]).sum())
        rows.append(row)
    return rows


PARTS = {
    "templates": compare_templates,
    "fits": fits,
    "demonstrations": demonstrations,
    "quantization": quantization,
}


def main() -> None:
    options = parse_options()
    report = build_report("hard_prompt", options, *(["lm-eval"] if "speed" in options.only else []))
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
    for part, text in tables(parts).items():
        report.show(text, part)
    report.draw(lambda: draw(parts))


def parse_options() -> argparse.Namespace:
    parser = build_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/hard_prompt_study"))
    parser.add_argument("--only", nargs="*", choices=["speed", *PARTS], default=["speed", *PARTS])
    return parse_speed_options(parser)


def tables(parts: dict[str, Any]) -> dict[str, str]:
    """The tables of the page, by their marks."""
    builders: dict[str, Any] = {
        "templates": lambda rows: calibrated_table(rows, "template"),
        "fits": fits_table,
        "demonstrations": lambda rows: calibrated_table(rows, "demonstrations"),
        "quantization": quantization_table,
        "speed": speed_table,
    }
    texts = {part: build(parts[part]) for part, build in builders.items() if part in parts}
    return texts | {"accuracy": accuracy_table(parts), "ratios": goal_table(speed_rows(parts))}


if __name__ == "__main__":
    run(main)
