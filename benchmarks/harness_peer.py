"""EleutherAI's lm-evaluation-harness on the same pairs, template, demonstrations and model."""

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_mrpc.data.examples import Example
from peft_mrpc.prompting.templates import Template

TASK = "pairs"
# No Hub, and no cached data of another task.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True)
class HarnessOutcome:
    """The harness's results.

    Attributes:
        log_probabilities: Of each label's word, in the order of the labels, [N, C].
        seconds: Time of its scoring, without loading the task and the model.
    """

    log_probabilities: NDArray[np.float64]
    seconds: float


def run_harness(
    model: Any,
    tokenizer: Any,
    template: Template,
    label_names: Sequence[str],
    pairs: Sequence[Example],
    train: Sequence[Example],
    num_demonstrations: int,
    batch_size: int = 1,
) -> HarnessOutcome:
    """Score pairs with the harness; the first of train are the demonstrations (`first_n`).

    Args:
        model: A causal LM in eval mode, loaded already.
        tokenizer: Its tokenizer.
        template: A plain template of the direct direction, with one word for each label.
        label_names: Names of the C labels.
        pairs: N pairs.
        train: Source of the demonstrations.
        num_demonstrations: How many.
        batch_size: Requests in one forward pass.
    """
    os.environ.update(OFFLINE)
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {"train": train[: max(1, num_demonstrations)], "validation": pairs}
        for split, rows in files.items():
            (folder / f"{split}.jsonl").write_text("".join(map(_line, rows)), "utf-8")
        task = _task(template, label_names, folder)
        (folder / f"{TASK}.yaml").write_text(json.dumps(task), "utf-8")
        peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        score, spent = peer.loglikelihood, []

        def timed(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            scored = score(*args, **options)
            spent.append(time.perf_counter() - started)
            return scored

        peer.loglikelihood = timed  # type: ignore[method-assign]
        results: Any = lm_eval.simple_evaluate(
            model=peer,
            tasks=[TASK],
            num_fewshot=num_demonstrations,
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=0,
        )
    samples = sorted(results["samples"][TASK], key=lambda sample: sample["doc_id"])
    scores = [[float(answer[0][0]) for answer in sample["resps"]] for sample in samples]
    return HarnessOutcome(np.array(scores), sum(spent))


def _line(pair: Example) -> str:
    row = {"sentence1": pair.sentence1, "sentence2": pair.sentence2, "label": pair.label}
    return json.dumps(row) + "\n"


def _task(template: Template, label_names: Sequence[str], folder: Path) -> dict[str, Any]:
    """The template as a task of the harness."""
    question = template.text.rstrip().format(sentence1="{{sentence1}}", sentence2="{{sentence2}}")
    system = f"{template.system}{template.delimiter}" if template.system else ""
    return {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {
                split: str(folder / f"{split}.jsonl") for split in ("train", "validation")
            }
        },
        "training_split": "train",
        "validation_split": "validation",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "multiple_choice",
        "doc_to_text": question + template.answer_prefix,
        "doc_to_choice": [template.label_words[label][0] for label in label_names],
        "doc_to_target": "label",
        "description": system,
        "target_delimiter": " ",
        "fewshot_delimiter": template.delimiter,
        "metric_list": [{"metric": "acc"}],
        "metadata": {"version": 1.0},
    }
