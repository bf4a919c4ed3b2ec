"""Evaluate a hard prompt: encode, score, calibrate, and write the Run."""

import contextlib
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.config import (
    IN_MEMORY,
    DataConfig,
    PromptConfig,
    config_record,
    default_output_dir,
)
from peft_mrpc.data.examples import UNKNOWN_LABEL, DataSplits, Example
from peft_mrpc.data.loading import (
    load_data,
    reported_splits,
    warn_train_test_overlap,
    warn_unknown_labels,
)
from peft_mrpc.distributed import process_state
from peft_mrpc.errors import UserError, raise_faults
from peft_mrpc.formatting import mask_credentials
from peft_mrpc.models.loading import check_causal_lm, load_causal_lm, load_tokenizer
from peft_mrpc.models.sources import ModelSource, Trust, resolve_model
from peft_mrpc.prompting.artifact import save_prompt
from peft_mrpc.prompting.calibration import (
    CONTENT_FREE_TEXTS,
    Calibration,
    TemplateScores,
    affine,
    fit_calibration,
    stack_features,
    stack_label_scores,
)
from peft_mrpc.prompting.classifier import Encoder, Engine, PromptClassifier
from peft_mrpc.prompting.demonstrations import TrainSample, label_uses, sample_train
from peft_mrpc.prompting.endpoint import EndpointEngine
from peft_mrpc.prompting.loglikelihood import LocalEngine
from peft_mrpc.prompting.prompt_encoder import PromptBatch, PromptEncoder, max_prompt_length
from peft_mrpc.prompting.score_cache import FileScoreCache
from peft_mrpc.prompting.templates import Demonstration, Template, load_templates
from peft_mrpc.prompting.validation import LOCAL_OPTIONS, validate_options, validate_prompts
from peft_mrpc.runs.publishing import check_access, check_base, publish
from peft_mrpc.runs.run import Run, load_run
from peft_mrpc.runs.staging import check_output_dir, staged_directory
from peft_mrpc.runs.summary import data_line
from peft_mrpc.runs.writer import describe_data, write_run
from peft_mrpc.serialization import user_path

logger = logging.getLogger(__name__)

# Below this share of the probability the model's answer is probably another text.
LOW_LABEL_MASS = 0.1
# Names of encoded sets besides the reported splits.
CALIBRATION_SET, CONTENT_FREE_SET = "train", "content-free"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class PromptJob:
    """A hard prompt before its model is loaded: checked, resolved and encoded.

    Attributes:
        config: Options of the prompt.
        data_config: Options of the data.
        data: The examples.
        splits: The splits to report.
        output_dir: Directory of the Run.
        source: The model.
        templates: T templates.
        train_sample: The training examples that the prompt uses.
        encoder: Encodes examples for the model.
        batches: T encodings of each reported split, the calibration set and the content-free
            examples.
    """

    config: PromptConfig
    data_config: DataConfig
    data: DataSplits
    splits: Sequence[str]
    output_dir: Path
    source: ModelSource
    templates: Sequence[Template]
    train_sample: TrainSample
    encoder: Encoder
    batches: Mapping[str, Sequence[Any]]

    @property
    def score_folder(self) -> Path:
        """Directory of the scores of an interrupted run."""
        return self.output_dir.with_name(f".{self.output_dir.name}.scores")


@dataclass
class PromptEvaluation:
    """The results of a job.

    Attributes:
        classifier: The classifier, calibrated on the first split.
        probabilities: Of each reported split, [N, C].
        label_mass: Mean label probability mass by split and template.
        seconds: Time of scoring and calibrating.
    """

    classifier: PromptClassifier
    probabilities: dict[str, Array]
    label_mass: dict[str, dict[str, float | None]]
    seconds: float


def run_prompting(config: PromptConfig, data: DataConfig | Mapping[str, Any]) -> Run | None:
    """Evaluate a hard prompt and write its Run.

    Args:
        config: Options of the prompt.
        data: Options of the data, or the examples of each split.
    Returns:
        The Run; None on the other processes of a distributed job.
    Raises:
        UserError: Naming every fault of the options, the templates, the data or the prompts.
    """
    job = prepare_prompting(config, data)
    state = process_state()
    staging = staged_directory(job.output_dir, config.overwrite)
    with staging if state.is_main_process else contextlib.nullcontext() as folder:
        try:
            evaluation = evaluate(job, load_engine(job))
        except (KeyboardInterrupt, UserError) as error:
            if job.score_folder.is_dir():
                error.add_note(
                    f"The scores so far are in {job.score_folder}: the same command continues."
                )
            raise
        if folder is not None:
            _write(folder, job, evaluation)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    shutil.rmtree(job.score_folder, ignore_errors=True)
    run = load_run(job.output_dir)
    if config.push_to_hub:
        publish(run, str(config.hub_model_id), config.hub_private_repo)
    return run


# ---- before the model is loaded ----


def prepare_prompting(config: PromptConfig, data: DataConfig | Mapping[str, Any]) -> PromptJob:
    """Check the options, load data and templates, and encode every prompt.

    Raises:
        UserError: Naming every fault.
    """
    validate_options(config)
    data_config = data if isinstance(data, DataConfig) else DataConfig(dataset=IN_MEMORY)
    default = default_output_dir("hard_prompt", config.model, data)
    output_dir = user_path(config.output_dir or default)
    check_output_dir(output_dir, config.overwrite)
    if config.push_to_hub:
        check_access(str(config.hub_model_id))
    loaded = load_data(data, config.seed)
    splits = reported_splits(loaded, data_config.split)
    templates = load_templates(config.template, loaded.label_names)
    validate_prompts(config, templates, loaded, splits)
    train_sample = sample_train(config, loaded, splits)
    warn_unknown_labels(loaded, splits)
    if train_sample.calibration or train_sample.demonstrations:
        warn_train_test_overlap(loaded, splits)
    source = resolve_source(config)
    if config.push_to_hub:
        check_base(source.name, source.hub_id)
    encoder = build_encoder(config, source, loaded.label_names)
    examples: dict[str, Sequence[Example]] = {split: loaded.splits[split] for split in splits}
    if config.calibration == "affine":
        examples[CALIBRATION_SET] = train_sample.calibration
    if config.calibration == "contextual":
        texts = enumerate(CONTENT_FREE_TEXTS)
        examples[CONTENT_FREE_SET] = [Example(idx, text, text) for idx, text in texts]
    return PromptJob(
        config=config,
        data_config=data_config,
        data=loaded,
        splits=splits,
        output_dir=output_dir,
        source=source,
        templates=templates,
        train_sample=train_sample,
        encoder=encoder,
        batches=encode_examples(encoder, templates, train_sample.demonstrations, examples),
    )


def resolve_source(config: PromptConfig) -> ModelSource:
    """The model to load; of a served model only its name is known.

    Raises:
        UserError: If there is no such model.
    """
    if config.endpoint:
        return ModelSource(config.model, config.model, config.base_model_id)
    trust = Trust(config.trust_remote_code, config.allow_pickle)
    return resolve_model(config.model, config.base_model_id, trust)  # may convert it first


def build_encoder(
    config: PromptConfig, source: ModelSource, label_names: Sequence[str]
) -> PromptEncoder | EndpointEngine:
    """The encoder of the model, with its only tokenizer.

    Raises:
        UserError: If the model is not a causal LM.
    """
    if config.endpoint:
        return EndpointEngine(config.endpoint, config.model, label_names)
    model_config = check_causal_lm(source)
    tokenizer = load_tokenizer(source, model_config)
    max_length = max_prompt_length(model_config, config.max_length)
    return PromptEncoder(tokenizer, label_names, max_length)


def encode_examples(
    encoder: Encoder,
    templates: Sequence[Template],
    demonstrations: Sequence[Demonstration],
    examples: Mapping[str, Sequence[Example]],
) -> dict[str, list[Any]]:
    """Encode the examples of each set with each template.

    Raises:
        UserError: Naming every prompt that cannot be encoded.
    """
    faults: dict[str, None] = {}  # a fault of a template occurs with each set
    batches: dict[str, list[Any]] = {name: [] for name in examples}
    for name, rows in examples.items():
        for template in templates:
            try:
                batches[name].append(encoder.encode(template, rows, demonstrations))
            except UserError as error:
                for fault in error.faults:
                    faults[f"{name}, {fault}" if fault.startswith("row ") else fault] = None
    raise_faults([*faults])
    return batches


def preview_prompts(config: PromptConfig, data: DataConfig | Mapping[str, Any]) -> list[str]:
    """Check a hard prompt and describe its data and prompts, without the model's weights.

    Args:
        config: Options of the prompt.
        data: Options of the data, or the examples of each split.
    Returns:
        Lines of text: the data, the model, the lengths of the prompts, and the first prompts.
    Raises:
        UserError: Naming every fault.
    """
    job = prepare_prompting(config, data)
    place = config.quantization
    if config.endpoint:
        place = f"served at {mask_credentials(config.endpoint)}"
    lines = [data_line(job.data, job.splits), f"model: {config.model} ({place})"]
    if config.endpoint:
        lines.append(f"templates: {', '.join(template.name for template in job.templates)}")
    else:
        lines += _prompt_lines(job.batches, job.splits[0])
    lines.append(f"output: {job.output_dir}")
    return [*lines, "dry run: no weights were loaded, nothing was scored, no Run was written"]


def _prompt_lines(batches: Mapping[str, Sequence[PromptBatch]], split: str) -> list[str]:
    lines = []
    for name, encoded in batches.items():
        lengths = [length for batch in encoded for length in batch.lengths]
        templates = f" x {len(encoded)} templates" if len(encoded) > 1 else ""
        lines.append(
            f"prompts: {name} {len(encoded[0]):,} examples{templates}, {sum(lengths):,} tokens, "
            f"mean {np.mean(lengths):.0f}, at most {max(lengths):,}"
        )
    for batch in batches[split]:
        lines += ["", f"{batch.template.name}, first example of {split}:", *batch.preview()]
    return [*lines, ""]


# ---- with the model ----


def load_engine(job: PromptJob) -> Engine:
    """Load the model of a job, unless a server has it."""
    if isinstance(job.encoder, EndpointEngine):
        return job.encoder
    assert isinstance(job.encoder, PromptEncoder)
    config = job.config
    logger.info("hard_prompt: loading %s (%s)", config.model, config.quantization)
    model = load_causal_lm(job.source, config.quantization, config.device_map)
    pad_token_id = job.encoder.tokenizer.pad_token_id or 0
    return LocalEngine(model, pad_token_id, config.batch_tokens, config.share_prefix)


def evaluate(job: PromptJob, engine: Engine) -> PromptEvaluation:
    """Score every split, and calibrate the scores."""
    started = time.perf_counter()
    scores = {split: _score(job, engine, split) for split in job.splits}
    calibrations = _calibrate(job, engine, scores)
    probabilities = {split: calibrations[split].predict_proba(scores[split]) for split in scores}
    classifier = PromptClassifier(
        encoder=job.encoder,
        engine=engine,
        templates=job.templates,
        labels=list(job.data.label_names),
        demonstrations=job.train_sample.demonstrations,
        calibration=calibrations[job.splits[0]],  # new examples are like the first split
    )
    masses = {split: _label_masses(job, split, scores[split]) for split in scores}
    return PromptEvaluation(classifier, probabilities, masses, time.perf_counter() - started)


def _score(job: PromptJob, engine: Engine, name: str) -> list[TemplateScores]:
    """The scores of a set of examples by each template, with those of an interrupted run."""
    fingerprint = engine.fingerprint()
    scores = []
    for batch in job.batches[name]:
        cache = FileScoreCache(
            job.score_folder,
            process_state().process_index,
            {"engine": fingerprint, "prompts": batch.fingerprint()},
        )
        if len(cache):
            logger.info(
                "%s: %d examples of %s are scored already", batch.template.name, len(cache), name
            )
        scores.append(engine.score(batch, job.config.batch_size, cache))
    return scores


def _calibrate(
    job: PromptJob, engine: Engine, scores: Mapping[str, Sequence[TemplateScores]]
) -> dict[str, Calibration]:
    """The calibration of each split: one for all, or one of the split's own scores."""
    kind = job.config.calibration
    if kind == "affine":
        features = stack_features(_score(job, engine, CALIBRATION_SET))
        references = np.array([example.label for example in job.train_sample.calibration])
        return dict.fromkeys(scores, affine(features, references, job.config.seed))
    content_free = None
    if kind == "contextual":
        content_free = stack_label_scores(_score(job, engine, CONTENT_FREE_SET))
    prior = _label_prior(job)
    return {
        split: fit_calibration(kind, stack_label_scores(by_template), content_free, prior)
        for split, by_template in scores.items()
    }


def _label_prior(job: PromptJob) -> list[float] | None:
    """How often each label is to be predicted, [C]; None for no constraint."""
    count = len(job.data.label_names)
    if job.config.label_prior == "train":
        labels = [ex.label for ex in job.data.splits["train"] if ex.label != UNKNOWN_LABEL]
        return list(np.bincount(labels, minlength=count) / len(labels))
    return [1 / count] * count if job.config.label_prior == "uniform" else None


def _label_masses(
    job: PromptJob, split: str, scores: Sequence[TemplateScores]
) -> dict[str, float | None]:
    """Mean probability of all label words together, by template.

    None if the scores of a template are not probabilities.
    """
    masses: dict[str, float | None] = {}
    for template, by_label in zip(job.templates, scores, strict=True):
        if template.direction == "channel" or template.length_normalized:
            masses[template.name] = None
            continue
        mass = float(np.exp(by_label.labels).sum(axis=1).mean())
        if mass < LOW_LABEL_MASS:
            logger.warning(
                "%s, %s: the label words have only %.1f%% of the probability, so the model's "
                "answer is probably another text. Try another template.",
                split,
                template.name,
                100 * mass,
            )
        masses[template.name] = mass
    return masses


# ---- the Run ----


def _write(folder: Path, job: PromptJob, evaluation: PromptEvaluation) -> None:
    save_prompt(folder / "prompt", evaluation.classifier, job.source, job.config, job.splits[0])
    write_run(folder, _record(job, evaluation), job.data, evaluation.probabilities)


def _record(job: PromptJob, evaluation: PromptEvaluation) -> dict[str, Any]:
    """The content of `run.json` that is particular to hard prompts."""
    config = job.config
    num_calibration = len(job.train_sample.calibration)
    count = num_calibration + sum(map(len, evaluation.probabilities.values()))
    options = config_record(job.data_config, config)
    if config.endpoint:
        options = {name: value for name, value in options.items() if name not in LOCAL_OPTIONS}
        options["endpoint"] = mask_credentials(config.endpoint)
    return {
        "strategy": "hard_prompt",
        "method": "hard_prompt",
        "model": job.source.name,
        "base_model_id": job.source.hub_id,
        "seed": config.seed,
        "num_processes": process_state().num_processes,
        "data": describe_data(job.data, job.splits),
        "label_mass": evaluation.label_mass,
        "uses_labels": {"for": label_uses(config), "calibration_pairs": num_calibration},
        "config": options | {"templates": [template.to_dict() for template in job.templates]},
        "timing": {
            "score_seconds": evaluation.seconds,
            "score_pairs_per_second": count / evaluation.seconds,
        },
    }
