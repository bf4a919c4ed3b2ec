"""What a prompted model reaches by its wording, its calibration, demonstrations and 4-bit weights.

    python benchmarks/hard_prompt.py

SmolLM2-135M-Instruct is asked about all of dev, and about 400 training pairs to choose and to fit
on: dev's labels are for the figures alone. Speed is measured against EleutherAI's
lm-evaluation-harness (`hard_prompt_speed.py`; its package is in `requirements.txt`). The figures go
into `hard_prompt.json` beside this file, the tables into `hard_prompt.md`, the picture into
`hard_prompt.png`. Scores are kept in `--output_dir` as they come; a rerun goes on where it stood.
`--only speed` (and its kin) measures one part afresh and keeps the others.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from bench import build_parser, build_report, goal_table, run
from hard_prompt_rows import accuracy_rows, accuracy_table, draw, speed_rows
from hard_prompt_speed import QUICK_PAIRS, compare_speed, parse_speed_options, speed_table
from hard_prompt_tables import (
    calibrated_table,
    fits_table,
    prefixes_table,
    quantization_table,
)
from numpy.typing import NDArray
from scipy.stats import binomtest

from peft_mrpc.config import DataConfig
from peft_mrpc.data.examples import Example
from peft_mrpc.data.loading import load_data
from peft_mrpc.distributed import process_state
from peft_mrpc.evaluation.metrics import compute_metrics
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.models.loading import load_causal_lm, load_tokenizer
from peft_mrpc.prompting.calibration import (
    CONTENT_FREE,
    Calibration,
    Scores,
    affine,
    affine_out_of_fold,
    batch,
    contextual,
    evidence_of,
    labels_of,
    no_calibration,
)
from peft_mrpc.prompting.demonstrations import NearestDemonstrations, choose_demonstrations, fixed
from peft_mrpc.prompting.local_model import LocalEngine, PromptClassifier
from peft_mrpc.prompting.score_cache import FileScoreCache
from peft_mrpc.prompting.template_files import load_template, load_templates
from peft_mrpc.prompting.templates import Template, as_demonstration

LABELS = ("not_equivalent", "equivalent")
NUM_TRAIN, NUM_MORE, SEED, BATCH_SIZE, BATCH_TOKENS = 400, 800, 42, 16, 8192
SHOWN = "paraphrase_harness"  # the wording that demonstrations are tried with
FITTED_ALONE = "channel_in_other_words"
Array = NDArray[np.float64]
Row = dict[str, Any]


class Study:
    """Label scores of one model on dev and on some training pairs, and what comes of them."""

    def __init__(
        self, dataset: str, folder: Path, num_dev: int | None = None, num_train: int = NUM_TRAIN
    ) -> None:
        data = load_data(DataConfig(dataset=dataset))
        self.pool = list(data.splits["train"])
        rows = np.random.default_rng([SEED, 1]).permutation(len(self.pool))[:num_train]
        self.train = [self.pool[row] for row in sorted(rows)]
        held = {pair.idx for pair in self.train}
        self.pool = [pair for pair in self.pool if pair.idx not in held]
        self.dev = list(data.splits["validation"])[:num_dev]
        self.folder = folder
        self.shares = np.bincount([p.label for p in data.splits["train"]]) / len(
            data.splits["train"]
        )
        self._models: dict[str, Any] = {}

    def scores(
        self,
        templates: Sequence[Template],
        pairs: Sequence[Example],
        name: str,
        quantization: str = "none",
        show: Any = None,
    ) -> list[Scores]:
        """What T wordings say of N pairs, kept under a name."""
        if quantization not in self._models:
            source = resolve_model("builtin:smollm2")
            model = load_causal_lm(source, quantization)
            self._models = {quantization: (model, load_tokenizer(source))}
        model, tokenizer = self._models[quantization]
        engine = LocalEngine(model, tokenizer, 8192, BATCH_TOKENS)
        classifier = PromptClassifier(engine, templates, list(LABELS))
        if show is not None:
            classifier.show = show
        index = process_state().process_index

        texts = [(pair.sentence1, pair.sentence2) for pair in pairs]
        shown = [[asdict(one) for one in row] for row in classifier.show(pairs)]

        def keep(template: str) -> FileScoreCache:
            one = next(t for t in templates if t.name == template)
            asked = {"name": name, "template": one.record(), "quantization": quantization}
            asked |= {"pairs": texts, "shown": shown, "model": engine.identity()}
            return FileScoreCache(self.folder, index, asked)

        return classifier.ask(pairs, BATCH_SIZE, keep)

    def reached(self, calibration: Calibration, scores: Sequence[Scores]) -> Row:
        """Figures on dev."""
        return figures(calibration.classify(scores), references_of(self.dev))

    def calibrated(self, scores: Sequence[Scores], on_train: Sequence[Scores]) -> Row:
        """Figures on dev as some wordings answer, and by each calibration that they all take."""
        labels = labels_of(scores)
        fit = affine(evidence_of(on_train), references_of(self.train))
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


def wordings(study: Study) -> list[Row]:
    """Each packaged wording alone, and all of them together."""
    templates = load_templates("all", LABELS)
    dev, train = (study.scores(templates, pairs, name) for name, pairs in both(study))
    references = references_of(study.train)
    rows = []
    for template, own, on_train in zip(templates, dev, train, strict=True):
        row = {"wording": template.name} | study.calibrated([own], [on_train])
        if template.direction == "direct":
            row["mass"] = float(np.exp(own.labels).sum(axis=1).mean())
            empty = [Example(n, text, text) for n, text in enumerate(CONTENT_FREE)]
            free = labels_of(study.scores([template], empty, "content-free"))
            row["contextual"] = study.reached(contextual(own.labels[None], free), [own])
        labels = on_train.labels[None]
        row["train"] = figures(no_calibration(labels).probabilities(labels), references)
        matched = batch(labels).with_prior(labels, study.shares)
        row["train_prior"] = figures(matched.probabilities(labels), references)
        rows.append(row)
    return [*rows, *ensembles(study, templates, dev, train)]


def ensembles(
    study: Study, templates: Sequence[Template], dev: Sequence[Scores], train: Sequence[Scores]
) -> list[Row]:
    """Wordings together, by their direction."""
    rows = []
    for direction in ("direct", "channel", None):
        which = [n for n, t in enumerate(templates) if direction in (t.direction, None)]
        own, on_train = [dev[n] for n in which], [train[n] for n in which]
        name = f"{direction or 'all'} ({len(which)} together)"
        rows.append({"wording": name} | study.calibrated(own, on_train))
    return rows


def fits(study: Study) -> list[Row]:
    """The affine fit, by its wordings and by how many training pairs it is fitted to."""
    templates = load_templates("all", LABELS)
    channel = [number for number, one in enumerate(templates) if one.direction == "channel"]
    groups = {
        FITTED_ALONE: [number for number, one in enumerate(templates) if one.name == FITTED_ALONE],
        f"channel ({len(channel)} together)": channel,
        f"all ({len(templates)} together)": [*range(len(templates))],
    }
    dev, train = (study.scores(templates, pairs, name) for name, pairs in both(study))
    chosen = np.random.default_rng([SEED, 2]).permutation(len(study.pool))[:NUM_MORE]
    more = [study.pool[row] for row in sorted(chosen)]
    further = study.scores(templates, more, "more of train")
    references = references_of([*study.train, *more])
    rows = []
    for name, which in groups.items():
        parts = [evidence_of([said[n] for n in which]) for said in (train, further)]
        evidence = np.concatenate(parts, axis=1)  # [V, N, C]
        for count in (len(study.train), len(references)):
            own, labels = evidence[:, :count], references[:count]
            unseen = affine_out_of_fold(own, labels)
            row: Row = {"wordings": name, "pairs": count}
            row["log_loss"] = float(-np.log(unseen[np.arange(count), labels]).mean())
            row["train"] = figures(unseen, labels)
            row["dev"] = study.reached(affine(own, labels), [dev[n] for n in which])
            rows.append(row)
    return rows


def both(study: Study) -> list[tuple[str, list[Example]]]:
    return [("dev", study.dev), ("train", study.train)]


def demonstrations(study: Study) -> list[Row]:
    """Labelled pairs before the question: drawn, and nearest."""
    template = [load_template(SHOWN)]
    shows: dict[str, Any] = {
        f"{count} balanced, seed {seed}": fixed(
            choose_demonstrations(study.pool, LABELS, count, "balanced", seed)
        )
        for count, seed in ((8, 1), (8, 2), (8, 3), (8, 4), (8, 5))
    }
    pool = [as_demonstration(pair, LABELS) for pair in study.pool]
    shows["4 nearest"] = NearestDemonstrations(pool, LABELS, 4)
    rows = []
    for name, show in shows.items():
        dev, train = (
            study.scores(template, pairs, f"{name} {part}", show=show)
            for part, pairs in both(study)
        )
        rows.append({"demonstrations": name} | study.calibrated(dev, train))
    return rows


def quantization(study: Study) -> list[Row]:
    """4-bit weights against fp32, on the same rows."""
    templates = [load_template(name) for name in (SHOWN, "channel_in_other_words")]
    full = study.scores(templates, study.dev, "dev")
    packed = study.scores(templates, study.dev, "dev", "nf4")
    references = references_of(study.dev)
    rows = []
    for number, template in enumerate(templates):
        answers = []
        row: Row = {"wording": template.name}
        for name, said in (("fp32", full[number]), ("nf4", packed[number])):
            scores = said.labels[None]
            calibration = batch(scores).with_prior(scores, study.shares)
            row[name] = study.reached(calibration, [said])
            answers.append(calibration.probabilities(scores).argmax(axis=1))
        right = [found == references for found in answers]
        row["same_answers"] = float((answers[0] == answers[1]).mean())
        row["only_fp32_right"] = int((right[0] & ~right[1]).sum())
        row["only_nf4_right"] = int((right[1] & ~right[0]).sum())
        rows.append(row)
    return rows


def prefixes(study: Study) -> list[Row]:
    """How much of nearest demonstrations a cascade of shared prefixes would not run again.

    The prompts of the dev pairs as a tree: a demonstration is run once for all pairs that are shown
    the same ones before it.
    """
    pool = [as_demonstration(pair, LABELS) for pair in study.pool]
    rows = []
    for count in (2, 4, 8, 16):
        shown = NearestDemonstrations(pool, LABELS, count)(study.dev)
        texts = [[(one.sentence1, one.sentence2) for one in own] for own in shown]
        nodes = {tuple(own[: end + 1]) for own in texts for end in range(count)}
        rows.append({"count": count, "shown": count * len(texts), "distinct": len(nodes)})
    return rows


PARTS = {
    "wordings": wordings,
    "fits": fits,
    "demonstrations": demonstrations,
    "quantization": quantization,
    "prefixes": prefixes,
}


def main() -> None:
    options = parse_options()
    report = build_report("hard_prompt", options, *(["lm-eval"] if "speed" in options.only else []))
    quick = {"num_dev": QUICK_PAIRS, "num_train": QUICK_PAIRS} if options.quick else {}
    study = Study(options.dataset, options.output_dir, **quick)
    parts: dict[str, Any] = report.read().get("parts", {})
    for part in options.only:
        if part == "speed":
            parts[part] = compare_speed(options)
        else:
            parts[part] = PARTS[part](study)
            majority = np.bincount(references_of(study.dev)).max() / len(study.dev)
            parts["about"] = {"num_dev": len(study.dev), "majority_accuracy": float(majority)}
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
    """What the page shows, by its marks."""
    builders: dict[str, Any] = {
        "wordings": lambda rows: calibrated_table(rows, "wording"),
        "fits": fits_table,
        "demonstrations": lambda rows: calibrated_table(rows, "demonstrations"),
        "quantization": quantization_table,
        "prefixes": prefixes_table,
        "speed": speed_table,
    }
    shown = {part: build(parts[part]) for part, build in builders.items() if part in parts}
    return shown | {"accuracy": accuracy_table(parts), "ratios": goal_table(speed_rows(parts))}


if __name__ == "__main__":
    run(main)
