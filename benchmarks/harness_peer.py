"""The peer of `hard_prompt.py`: EleutherAI's lm-evaluation-harness in the same process.

Both use SmolLM2-135M-Instruct in fp32, the harness's MRPC template, and the first training pairs as
demonstrations. They alternate; the best time of each counts, over all batch sizes of the harness.
The time of the harness includes scoring only, the time of `hard_prompt` also encoding.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench import markdown
from numpy.typing import NDArray

from peft_mrpc.config import DataConfig
from peft_mrpc.data.examples import DataSplits, Example
from peft_mrpc.data.loading import load_data
from peft_mrpc.environment import peak_memory, reset_peak_memory
from peft_mrpc.models.loading import load_causal_lm, load_tokenizer
from peft_mrpc.models.sources import resolve_model
from peft_mrpc.prompting.classifier import PromptClassifier
from peft_mrpc.prompting.demonstrations import sample_demonstrations
from peft_mrpc.prompting.loglikelihood import LocalEngine
from peft_mrpc.prompting.prompt_encoder import PromptEncoder
from peft_mrpc.prompting.templates import Template, load_template

TASK = "pairs"
# Neither the Hub nor cached data of another task are used.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True)
class HarnessOutcome:
    """Results of the harness.

    Attributes:
        log_probabilities: Log-probabilities of the label words, [N, C].
        seconds: Time of scoring, without loading the task and the model.
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
    """Score pairs with the harness; its demonstrations are the first of `train` (`first_n`).

    Args:
        model: A causal LM in eval mode.
        tokenizer: Tokenizer of the model.
        template: A plain template of the direct direction, with one word for each label.
        label_names: Names of the C labels.
        pairs: N pairs.
        train: Pairs that contain the demonstrations.
        num_demonstrations: Number of demonstrations.
        batch_size: Requests of one forward pass.
    """
    os.environ.update(OFFLINE)
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {"train": train[: max(1, num_demonstrations)], "validation": pairs}
        for split, rows in files.items():
            (folder / f"{split}.jsonl").write_text("".join(map(_json_line, rows)), "utf-8")
        task = _build_task(template, label_names, folder)
        (folder / f"{TASK}.yaml").write_text(json.dumps(task), "utf-8")
        peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        loglikelihood, seconds = peer.loglikelihood, []

        def timed(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            scores = loglikelihood(*args, **options)
            seconds.append(time.perf_counter() - started)
            return scores

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
    scores = [[float(response[0][0]) for response in sample["resps"]] for sample in samples]
    return HarnessOutcome(np.array(scores), sum(seconds))


def _json_line(pair: Example) -> str:
    row = {"sentence1": pair.sentence1, "sentence2": pair.sentence2, "label": pair.label}
    return json.dumps(row) + "\n"


def _build_task(template: Template, label_names: Sequence[str], folder: Path) -> dict[str, Any]:
    """The configuration of a harness task that equals the template."""
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


# ---- speed ----


def compare_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the speeds by number of demonstrations."""
    data = load_data(DataConfig(dataset=options.dataset))
    source = resolve_model("builtin:smollm2")
    model, tokenizer = load_causal_lm(source, "none"), load_tokenizer(source)
    rows = {}
    for count in options.demonstrations:
        rows[str(count)] = row = compare_once(model, tokenizer, data, count, options)
        print(f"{count} demonstrations: {row}", flush=True)
    return rows


def compare_once(
    model: Any, tokenizer: Any, data: DataSplits, count: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure both with one number of demonstrations, and compare their scores."""
    pairs, train = data.splits["validation"][: options.pairs], data.splits["train"]
    template, labels = load_template("paraphrase_harness"), list(data.label_names)
    classifier = PromptClassifier(
        PromptEncoder(tokenizer, labels, 8192),
        LocalEngine(model, max_batch_tokens=8192),
        [template],
        labels,
        sample_demonstrations(train, labels, count, "first", 0),
    )
    seconds, memory = [], []
    peer_seconds: dict[int, list[float]] = {size: [] for size in options.peer_batch_sizes}
    peer_memory: dict[int, int] = {}
    for _ in range(options.repeats):
        reset_peak_memory()
        started = time.perf_counter()
        scores = classifier.score(pairs, 16)[0].labels
        seconds.append(time.perf_counter() - started)
        memory.append(peak_memory()["resident_bytes"])
        for size, times in peer_seconds.items():
            reset_peak_memory()
            peer = run_harness(model, tokenizer, template, labels, pairs, train, count, size)
            times.append(peer.seconds)
            peer_memory[size] = peak_memory()["resident_bytes"]
    fastest = min(peer_seconds, key=lambda size: min(peer_seconds[size]))
    shortest, peer_shortest = min(seconds), min(peer_seconds[fastest])
    return {
        "num_pairs": len(pairs),
        "pairs_per_second": len(pairs) / shortest,
        "peer_pairs_per_second": len(pairs) / peer_shortest,
        "peer_batch_size": fastest,
        "ratio": peer_shortest / shortest,
        "largest_difference": float(np.abs(scores - peer.log_probabilities).max()),
        "same_predictions": float((scores.argmax(1) == peer.log_probabilities.argmax(1)).mean()),
        "peak_bytes": max(memory),
        "peer_peak_bytes": peer_memory[fastest],
    }


def speed_table(rows: Mapping[str, Any]) -> str:
    head = ["demonstrations", "pairs", "pairs/s", "harness (batch size)", "ratio"]
    head += ["peak memory", "harness", "largest difference of scores", "same predictions"]
    lines = [
        [
            count,
            str(row["num_pairs"]),
            f"{row['pairs_per_second']:.2f}",
            f"{row['peer_pairs_per_second']:.2f} ({row['peer_batch_size']})",
            f"{row['ratio']:.1f}",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
            f"{row['peer_peak_bytes'] / 1e9:.2f} GB",
            f"{row['largest_difference']:.1e}",
            f"{row['same_predictions']:.1%}",
        ]
        for count, row in rows.items()
    ]
    return markdown(head, lines)
