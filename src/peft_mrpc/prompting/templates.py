"""Templates: how a pair becomes a prompt, and which words stand for the labels. Text only."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft_mrpc.data.examples import Example
from peft_mrpc.errors import UserError

TEMPLATE_KEYS = {
    *("name", "description", "text", "answer_prefix", "label_words", "system", "style"),
    *("direction", "both_orders", "delimiter", "length_normalized", "source"),
}


@dataclass(frozen=True)
class Demonstration:
    """A pair with its label's name, shown to the model before the question."""

    sentence1: str
    sentence2: str
    label: str


@dataclass(frozen=True)
class Template:
    """A question about a pair, and the words that answer it for each label.

    In the noisy channel's direction (arXiv:2108.04106) nothing is asked: a label is as likely as
    sentence 2 is after sentence 1 and the label's words.

    Attributes:
        name: Name under which `--template` finds it.
        text: The question, with `{sentence1}` and `{sentence2}` where they go; in the channel's
            direction what stands before the label's words, with `{sentence1}` alone.
        label_words: The answers for each label name, at least one; in the channel's direction
            words that lead to sentence 2, or none: sentence 2 by itself.
        answer_prefix: Stands between question and answer where it is no chat.
        system: System message, or the text that a plain prompt begins with.
        style: `chat` for a chat's turns, `plain` for text to be continued, `auto` for a chat where
            the model has a chat template.
        direction: `direct` for the label's words after the pair, `channel` for sentence 2 after
            sentence 1 and the label's words.
        both_orders: Whether the channel is read with the sentences in the other order as well.
        delimiter: Stands between demonstrations in plain text.
        length_normalized: Whether a word's log-probability is the mean of its tokens', not the sum.
        description: What it is for.
    """

    name: str
    text: str
    label_words: Mapping[str, tuple[str, ...]]
    answer_prefix: str = "\nAnswer:"
    system: str | None = None
    style: str = "auto"
    direction: str = "direct"
    both_orders: bool = False
    delimiter: str = "\n\n"
    length_normalized: bool = False
    description: str = ""
    source: str = field(default="", compare=False)

    def question(self, sentence1: str, sentence2: str) -> str:
        """The filled-in question; braces inside the sentences stay as they are."""
        return self.text.format(sentence1=sentence1, sentence2=sentence2).rstrip()

    def messages(
        self, sentence1: str, sentence2: str, demonstrations: Sequence[Demonstration] = ()
    ) -> list[dict[str, str]]:
        """The question as chat messages, after demonstrations as earlier turns."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for one in demonstrations:
            asked = self.question(one.sentence1, one.sentence2)
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": self.label_words[one.label][0]})
        asked = self.question(sentence1, sentence2)
        return [*messages, {"role": "user", "content": asked}]

    def plain(
        self, sentence1: str, sentence2: str, demonstrations: Sequence[Demonstration] = ()
    ) -> str:
        """The question as text to be continued, after demonstrations with their answers."""
        parts = [
            f"{self.question(one.sentence1, one.sentence2)}{self.answer_prefix} "
            f"{self.label_words[one.label][0]}{self.delimiter}"
            for one in demonstrations
        ]
        system = f"{self.system}{self.delimiter}" if self.system else ""
        asked = f"{self.question(sentence1, sentence2)}{self.answer_prefix}"
        return "".join([system, *parts, asked])

    def channel(self, sentence1: str, label: str) -> str:
        """What sentence 2 is to come after, under a label; nothing where it has no words."""
        words = self.label_words[label]
        if not words:
            return ""
        return f"{self.text.format(sentence1=sentence1, sentence2='').rstrip()} {words[0]}"

    def words(self, label_names: Sequence[str]) -> list[tuple[str, ...]]:
        """The words of each label, in the order of the data's labels.

        Raises:
            UserError: If the template's labels are not the data's.
        """
        if set(label_names) != set(self.label_words):
            are_numbers = all(name.isdigit() for name in label_names)
            raise UserError(
                f"--template: {self.name!r} answers {', '.join(sorted(self.label_words))}, but the "
                f"data's labels are {', '.join(label_names)}; expected a template whose "
                "label_words have these names (docs/hard-prompts.md says how to write one)"
                + (", or --class_names, which names 0, 1 and so on." if are_numbers else ".")
            )
        return [self.label_words[name] for name in label_names]

    def record(self) -> dict[str, Any]:
        """The template as its YAML file has it."""
        record = {key: getattr(self, key) for key in sorted(TEMPLATE_KEYS - {"source"})}
        words = {label: list(words) for label, words in self.label_words.items()}
        return record | {"label_words": words}


def parse_answer(text: str, template: Template) -> str | None:
    """The label that a generated text begins by naming; None where that cannot be said.

    Quotes, brackets and the template's `answer_prefix` may stand before the word. Whole words
    count, in upper or lower case, and of words that begin alike the longest; a single letter (A, B)
    as it is written, with no word of a sentence after it. A text that names another label as well
    answers nothing.
    """
    said = re.sub(r"^\W+", "", text)
    if prefix := template.answer_prefix.strip():
        said = re.sub(rf"^{re.escape(prefix)}\W*", "", said, flags=re.IGNORECASE)
    named = {(word.strip(), label) for label, own in template.label_words.items() for word in own}
    first = max((both for both in named if _names(both[0], said, True)), default=None, key=_length)
    if first is None:
        return None
    word, answer = first
    rest = said[len(word) :]
    return None if any(_names(o, rest) for o, label in named if label != answer) else answer


def _length(named: tuple[str, str]) -> int:
    return len(named[0])


def _names(word: str, text: str, at_once: bool = False) -> bool:
    """Whether a text names a label by this word, or begins by it."""
    is_letter = len(word) == 1
    after = r"(?!\s*\w)" if is_letter else r"(?!\w)"
    pattern = ("^" if at_once else r"(?<!\w)") + re.escape(word) + after
    return re.search(pattern, text, re.NOFLAG if is_letter else re.IGNORECASE) is not None


def as_demonstration(pair: Example, label_names: Sequence[str]) -> Demonstration:
    """A labelled pair to show."""
    return Demonstration(pair.sentence1, pair.sentence2, label_names[pair.label])
