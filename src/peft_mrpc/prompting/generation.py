"""What a prompted model writes, as a cross-check of the label words' probabilities."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_mrpc.data.examples import UNKNOWN_LABEL, Example
from peft_mrpc.errors import logger
from peft_mrpc.prompting.local_model import PromptClassifier
from peft_mrpc.prompting.prompt_encoder import Questions
from peft_mrpc.prompting.templates import parse_answer
from peft_mrpc.serialization import write_json_lines

# By split: a pair and template each, what was written, and the label that it says, if any.
Answers = dict[str, list[dict[str, Any]]]


def generate_answers(
    classifier: PromptClassifier, pairs: Sequence[Example], batch_size: int
) -> list[dict[str, Any]]:
    """What the model writes for each pair by each template that asks something."""
    shown = classifier.show(pairs)
    answers = []
    for template in classifier.templates:
        if template.direction == "channel":
            continue
        asked = Questions(template, classifier.labels, pairs, shown)
        for pair, text in zip(pairs, classifier.engine.generate(asked, batch_size), strict=True):
            said = {"template": template.name, "text": text}
            answers.append({"idx": pair.idx, **said, "answer": parse_answer(text, template)})
    return answers


def describe_answers(
    answers: Sequence[Mapping[str, Any]], pairs: Sequence[Example], label_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """By template how many answers could be read, and how many were right, of all of them."""
    labels = {pair.idx: pair.label for pair in pairs}
    described = {}
    for name in dict.fromkeys(one["template"] for one in answers):
        own = [one for one in answers if one["template"] == name]
        unread = sum(one["answer"] is None for one in own)
        about: dict[str, Any] = {"answers": len(own), "unparsable": unread}
        if all(labels[one["idx"]] != UNKNOWN_LABEL for one in own):
            right = sum(one["answer"] == label_names[labels[one["idx"]]] for one in own)
            about["accuracy_of_all"] = right / len(own)
        logger.info("%s: %d of %d answers name no label", name, unread, len(own))
        described[name] = about
    return described


def write_answers(staging: Path, answers: Answers) -> None:
    """Write `answers/<split>.jsonl`."""
    for split, rows in answers.items():
        write_json_lines(staging / "answers" / f"{split}.jsonl", rows)
