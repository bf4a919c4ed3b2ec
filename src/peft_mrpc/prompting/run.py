"""What a hard prompt comes to: demonstrations, label scores, calibration, a Run's files."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc import __version__
from peft_mrpc import config as cfg
from peft_mrpc.config import config_record
from peft_mrpc.data.examples import UNKNOWN_LABEL, DataSplits, Example
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import logger
from peft_mrpc.evaluation.metrics import compute_metrics
from peft_mrpc.models.batched_inference import ScoreCache
from peft_mrpc.models.hub import ModelSource
from peft_mrpc.prompting.artifact import save_prompt
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
from peft_mrpc.prompting.generation import (
    Answers,
    describe_answers,
    generate_answers,
    write_answers,
)
from peft_mrpc.prompting.local_model import PromptClassifier
from peft_mrpc.prompting.score_cache import FileScoreCache
from peft_mrpc.prompting.templates import Demonstration
from peft_mrpc.prompting.train_sampling import label_prior
from peft_mrpc.prompting.validation import train_uses
from peft_mrpc.runs.model_card import figure_texts
from peft_mrpc.runs.writer import describe_data, write_run

LOW_LABEL_MASS = 0.1
# Flags that mean nothing to a model that is served.
OF_A_LOADED_MODEL = ("quantization", "device_map", "share_prefix", "batch_tokens")
Array = NDArray[np.float64]


class Asker:
    """One command's questions, from its flags to its Run.

    Args:
        config: The flags of the prompt.
        data_config: The flags of the data.
        source: The model.
        data: The pairs.
        splits: Which of them are reported.
        classifier: The model, its templates and demonstrations; its calibration is set here.
        scratch: Where scores are kept until the Run is written.
        drawn: The training pairs that are fitted on, and those that are shown to every pair, or
            the pool of the nearest.
    """

    def __init__(
        self,
        config: cfg.PromptConfig,
        data_config: cfg.DataConfig,
        source: ModelSource,
        data: DataSplits,
        splits: Sequence[str],
        classifier: PromptClassifier,
        scratch: Path,
        drawn: tuple[list[Example], list[Demonstration]],
    ) -> None:
        self.config = config
        self.data_config = data_config
        self.source = source
        self.data = data
        self.splits = splits
        self.classifier = classifier
        self.scratch = scratch
        self.label_names = data.label_names
        self.held, self.shown = drawn
        self.templates: dict[str, dict[str, Any]] = {}  # what each reached by itself
        self.chosen = ""  # by --combine best

    def ask_into(self, staging: Path | None) -> None:
        """Score on every process; the one that has a staging directory writes."""
        started = time.perf_counter()
        held = self.held
        if held:
            logger.info("%d labelled training pairs to choose and to fit on", len(held))
        train_scores = self._score("train", held) if held else None
        if self.config.combine == "best":
            assert train_scores is not None
            train_scores = self._choose_template(train_scores, _labels(held))
        scores = {split: self._score(split, self.data.splits[split]) for split in self.splits}
        fit = self._fitter(train_scores, _labels(held))
        calibrations = {split: fit(found) for split, found in scores.items()}
        probabilities = {
            split: calibrations[split].classify(found) for split, found in scores.items()
        }
        # New pairs are answered by what the first split gave.
        self.classifier.calibration = calibrations[self.splits[0]]
        for split, found in scores.items():
            self._describe_templates(split, found, fit)
        generated = self._generate() if self.config.scoring == "generate" else {}
        seconds = time.perf_counter() - started
        if staging is None:
            return
        write_answers(staging, generated)
        save_prompt(
            *(staging / "prompt", self.classifier, self.source, self.config, self.shown),
            calibrated_on=self.splits[0],
        )
        count = len(held) + sum(map(len, probabilities.values()))
        record = self._record(len(held)) | {
            "timing": {"score_seconds": seconds, "score_pairs_per_second": count / seconds}
        }
        write_run(staging, record, self.data, probabilities)

    def template_lines(self) -> list[str]:
        """What each wording reaches by itself, where there are several."""
        if len(self.templates) < 2:
            return []
        width = max(map(len, self.templates))
        lines = []
        for name, about in self.templates.items():
            for split, values in about.items():
                if split in self.splits and "accuracy" in values:
                    accuracy, *f1, area = figure_texts(values, list(self.label_names))
                    lines.append(
                        f"{name:<{width}}  {split}: accuracy {accuracy}, F1 {' / '.join(f1)}, "
                        f"ROC-AUC {area}"
                    )
        return [*lines, f"chosen on train: {self.chosen}"] if self.chosen else lines

    def _score(self, split: str, pairs: Sequence[Example]) -> list[Scores]:
        """What each template says, found again where it was asked before."""

        def keep(template: str) -> ScoreCache:
            asked = self._asked(template) | {
                "pairs": [[pair.sentence1, pair.sentence2] for pair in pairs]
            }
            kept = FileScoreCache(self.scratch, process_state().process_index, asked)
            if len(kept):
                logger.info("%s: %d pairs of %s were scored before", template, len(kept), split)
            return kept

        scores = self.classifier.ask(pairs, self.config.batch_size, keep)
        for name, mass in self.classifier.label_mass.items():
            self.templates.setdefault(name, {}).setdefault(split, {})["label_mass"] = mass
            if mass is not None and mass < LOW_LABEL_MASS:
                logger.warning(
                    "%s, %s: only %.1f%% of the probability falls on the label words; the model "
                    "answers something else. Try another --template.",
                    *(split, name, 100 * mass),
                )
        return scores

    def _asked(self, template: str) -> dict[str, Any]:
        """All that a score depends on, beside the pairs."""
        one = next(t for t in self.classifier.templates if t.name == template)
        config = self.config
        names = ("quantization", "num_demonstrations", "demonstrations", "share_prefix", "endpoint")
        return {
            **{name: getattr(config, name) for name in names},
            "model": self._identity(),
            "labels": list(self.label_names),
            "template": one.record(),
            "shown": [asdict(shown) for shown in self.shown],
        }

    def _identity(self) -> dict[str, Any]:
        """What the model is: its files, how it computes, and by which version of this package."""
        folder = Path(self.source.location)
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        known = {"location": self.source.location, "files": stats, "version": __version__}
        return known | self.classifier.engine.identity()

    def _choose_template(
        self, scores: Sequence[Scores], references: NDArray[np.int64]
    ) -> list[Scores]:
        """Go on with the template that is best on training pairs; its scores on these."""
        fit = self._fitter(scores, references)
        reached = {}
        for number, template in enumerate(self.classifier.templates):
            own = [scores[number]]
            if self.config.calibration == "affine":
                evidence = evidence_of(own)
                probabilities = affine_out_of_fold(evidence, references, self.config.seed)
            else:
                probabilities = fit(own, [number]).classify(own)
            found = self._metrics(probabilities, references)
            self.templates[template.name]["train"].update(found)
            reached[template.name] = float(np.mean(list(found["f1"].values())))
        self.chosen = max(reached, key=lambda name: reached[name])
        best = reached[self.chosen]
        logger.info("%s is best on training pairs: macro F1 %.3f", self.chosen, best)
        number = list(reached).index(self.chosen)
        self.classifier.templates = [self.classifier.templates[number]]
        self.classifier.label_mass = {}
        return [scores[number]]

    def _fitter(
        self, train_scores: Sequence[Scores] | None, references: NDArray[np.int64]
    ) -> Callable[..., Calibration]:
        """What fits the calibration to what some of the templates say."""
        kind, prior = self.config.calibration, label_prior(self.config, self.data)
        content_free = None
        if kind == "contextual":
            empty = [Example(row, text, text) for row, text in enumerate(CONTENT_FREE)]
            content_free = labels_of(self.classifier.ask(empty, len(empty)))

        @functools.cache  # the same for every split
        def fit_affine(chosen: tuple[int, ...]) -> Calibration:
            assert train_scores is not None
            evidence = evidence_of([train_scores[number] for number in chosen])
            return affine(evidence, references, self.config.seed)

        def fit(said: Sequence[Scores], which: Sequence[int] | None = None) -> Calibration:
            chosen = list(range(len(said))) if which is None else list(which)
            if kind == "affine":
                return fit_affine(tuple(chosen))
            scores = labels_of(said)
            if kind == "contextual":
                assert content_free is not None
                found = contextual(scores, content_free[chosen])
            else:
                found = batch(scores) if kind == "batch" else no_calibration(scores)
            return found if prior is None else found.with_prior(scores, prior)

        return fit

    def _generate(self) -> Answers:
        """What the model writes for each pair, beside the label words' probabilities."""
        answers: Answers = {}
        for split in self.splits:
            answers[split] = generate_answers(
                self.classifier, self.data.splits[split], self.config.batch_size
            )
            for name, about in describe_answers(
                answers[split], self.data.splits[split], self.label_names
            ).items():
                self.templates[name].setdefault(split, {})["generated"] = about
        return answers

    def _describe_templates(
        self, split: str, scores: Sequence[Scores], fit: Callable[..., Calibration]
    ) -> None:
        """What each template by itself reaches where labels are known."""
        references = _labels(self.data.splits[split])
        if (references == UNKNOWN_LABEL).any():
            return
        for number, template in enumerate(self.classifier.templates):
            own = [scores[number]]
            found = self._metrics(fit(own, [number]).classify(own), references)
            self.templates[template.name].setdefault(split, {}).update(found)

    def _metrics(self, probabilities: Array, references: NDArray[np.int64]) -> dict[str, Any]:
        values = compute_metrics(
            references, probabilities.argmax(axis=1), probabilities, self.label_names
        )
        return {name: values[name] for name in ("accuracy", "f1", "roc_auc")}

    def _record(self, num_held: int) -> dict[str, Any]:
        names = [template.name for template in self.classifier.templates]
        return {
            "strategy": "hard_prompt",
            "method": "hard_prompt",
            "model": self.source.name,
            "base_model_id": self.source.hub_id,
            "seed": self.config.seed,
            "num_processes": process_state().num_processes,
            "data": describe_data(self.data, self.splits),
            "label_mass": {
                split: {name: self.templates[name][split].get("label_mass") for name in names}
                for split in self.splits
            },
            "templates": self.templates,
            "chosen_template": self.chosen or None,
            # What training labels were used for, and how many pairs.
            "uses_labels": {"for": train_uses(self.config), "calibration_pairs": num_held},
            "config": self._config_record()
            | {"templates": [template.record() for template in self.classifier.templates]},
        }

    def _config_record(self) -> dict[str, Any]:
        """The flags; how a served model is held and run nobody here knows."""
        record = config_record(self.data_config, self.config)
        unknown = OF_A_LOADED_MODEL if self.config.endpoint else ()
        return {name: value for name, value in record.items() if name not in unknown}


def _labels(pairs: Sequence[Example]) -> NDArray[np.int64]:
    return np.array([pair.label for pair in pairs], dtype=np.int64)
