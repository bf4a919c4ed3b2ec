"""Generated answers, as a cross-check of the label words' probabilities."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_mrpc.data.examples import UNKNOWN_LABEL, Example
from peft_mrpc.prompting.templates import Template
from peft_mrpc.serialization import write_json_lines

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 8


def parse_answer(text: str, template: Template) -> str | None:
    """The label that a generated text begins with; None if it is ambiguous.

    Quotes, brackets and the template's `answer_prefix` may precede the word. Only whole words
    count, in any case, and the longest of several that match. A single letter (A, B) must match
    exactly, without a word after it. A text that contains another label's word too is ambiguous.
    """
    answer = re.sub(r"^\W+", "", text)
    if prefix := template.answer_prefix.strip():
        answer = re.sub(rf"^{re.escape(prefix)}\W*", "", answer, flags=re.IGNORECASE)
    words = {(w.strip(), label) for label, texts in template.label_words.items() for w in texts}
    matches = [(len(word), word, label) for word, label in words if _contains(word, answer, True)]
    if not matches:
        return None
    length, _, label = max(matches)
    rest = answer[length:]
    is_ambiguous = any(_contains(word, rest) for word, other in words if other != label)
    return None if is_ambiguous else label


def _contains(word: str, text: str, at_start: bool = False) -> bool:
    """Whether a text contains a label's word, or begins with it."""
    is_letter = len(word) == 1
    end = r"(?!\s*\w)" if is_letter else r"(?!\w)"
    pattern = ("^" if at_start else r"(?<!\w)") + re.escape(word) + end
    return re.search(pattern, text, re.NOFLAG if is_letter else re.IGNORECASE) is not None


def answer_records(
    template: Template, examples: Sequence[Example], texts: Sequence[str]
) -> list[dict[str, Any]]:
    """The lines of `answers/<split>.jsonl` for one template."""
    return [
        {
            "idx": example.idx,
            "template": template.name,
            "text": text,
            "answer": parse_answer(text, template),
        }
        for example, text in zip(examples, texts, strict=True)
    ]


def summarize_answers(
    records: Sequence[Mapping[str, Any]], examples: Sequence[Example], label_names: Sequence[str]
) -> dict[str, Any]:
    """Counts of one template's answers, and their accuracy if all labels are known."""
    num_unparsable = sum(record["answer"] is None for record in records)
    summary: dict[str, Any] = {"answers": len(records), "unparsable": num_unparsable}
    if all(example.label != UNKNOWN_LABEL for example in examples):
        num_correct = sum(
            record["answer"] == label_names[example.label]
            for record, example in zip(records, examples, strict=True)
        )
        summary["accuracy_of_all"] = num_correct / len(records)
    logger.info(
        "%s: %d of %d answers contain no label word",
        *(records[0]["template"], num_unparsable, len(records)),
    )
    return summary


def write_answers(folder: Path, answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write `answers/<split>.jsonl`."""
    for split, records in answers.items():
        write_json_lines(folder / "answers" / f"{split}.jsonl", records)
