"""Templates: how a pair becomes a prompt, and which words stand for the labels. Text only."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from peft_mrpc.errors import UserError, closest, one_line, raise_faults
from peft_mrpc.pairs import Pair

SENTENCES = ("sentence1", "sentence2")
TEMPLATE_KEYS = {
    *("name", "description", "text", "answer_prefix", "label_words", "system", "style"),
    *("direction", "both_orders", "delimiter", "source"),
}
STYLES = ("auto", "chat", "plain")
DIRECTIONS = ("direct", "channel")
ALL = {"all": DIRECTIONS, "all_direct": ("direct",), "all_channel": ("channel",)}


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
            raise UserError(
                f"--template: {self.name!r} answers {', '.join(sorted(self.label_words))}, but the "
                f"data's labels are {', '.join(label_names)}; use a template with these labels, "
                "or name the data's with --class_names."
            )
        return [self.label_words[name] for name in label_names]

    def record(self) -> dict[str, Any]:
        """The template as its YAML file has it."""
        record = {key: getattr(self, key) for key in sorted(TEMPLATE_KEYS - {"source"})}
        words = {label: list(words) for label, words in self.label_words.items()}
        return record | {"label_words": words}


def parse_answer(text: str, template: Template) -> str | None:
    """The label whose word a generated text says first; None where it says none.

    Whole words count, in upper or lower case; of words that begin at one place the longest does.
    """
    found = []
    for label, words in template.label_words.items():
        for word in words:
            pattern = rf"(?<!\w){re.escape(word.strip())}(?!\w)"
            if match := re.search(pattern, text, re.IGNORECASE):
                found.append((match.start(), -len(word), label))
    return min(found)[2] if found else None


def as_demonstration(pair: Pair, label_names: Sequence[str]) -> Demonstration:
    """A labelled pair to show."""
    return Demonstration(pair.sentence1, pair.sentence2, label_names[pair.label])


def packaged_templates() -> list[str]:
    """Names of the templates that come with the package."""
    folder = resources.files("peft_mrpc") / "templates"
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def load_templates(asked: str, label_names: Sequence[str]) -> list[Template]:
    """Load the templates of a comma-separated list; `all` is every packaged one for these labels.

    `all_direct` and `all_channel` are those of one direction.

    Raises:
        UserError: If there is none of a name, if a file is wrong or answers other labels.
    """
    if asked in ALL:
        packaged = [load_template(name) for name in packaged_templates()]
        found = [
            one
            for one in packaged
            if set(one.label_words) == set(label_names) and one.direction in ALL[asked]
        ]
        if not found:
            raise UserError(
                f"--template: got {asked}, but no packaged one answers {', '.join(label_names)}; "
                "expected a YAML file of your own."
            )
        return found
    templates = [load_template(name.strip()) for name in asked.split(",")]
    names = [template.name for template in templates]
    twice = sorted({name for name in names if names.count(name) > 1})
    raise_faults([f"--template: got {name!r} twice; name each template once." for name in twice])
    for template in templates:
        template.words(label_names)
    return templates


def load_template(name: str) -> Template:
    """Load a packaged template by name, or one of the user's by its path.

    Raises:
        UserError: If there is none, or the file is wrong; every fault of the file is named.
    """
    if name in packaged_templates():
        text = (resources.files("peft_mrpc") / "templates" / f"{name}.yaml").read_text("utf-8")
        return parse_template(text, name)
    if not name.endswith((".yaml", ".yml")):
        known = packaged_templates()
        raise UserError(
            f"--template: got {name!r}; expected a YAML file or one of {', '.join(known)}."
            f"{closest(name, known)}"
        )
    try:
        return parse_template(Path(name).expanduser().read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template: got {name!r}; cannot be read: {one_line(error)}") from error


def parse_template(text: str, where: str) -> Template:
    """Check a template's YAML and build it.

    Raises:
        UserError: Naming every fault.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected the keys text and label_words.")
    return build_template(content, where)


def build_template(content: Mapping[str, Any], where: str) -> Template:
    """Build a template from its keys.

    Raises:
        UserError: Naming every fault: an unknown or missing key, a wrong field in the text, label
            words that are equal or not text.
    """
    faults = [
        f"{where}: got an unknown key {key!r}.{closest(str(key), TEMPLATE_KEYS)}"
        for key in content
        if key not in TEMPLATE_KEYS
    ]
    direction = content.get("direction", "direct")
    for key, known in (("style", STYLES), ("direction", DIRECTIONS)):
        if key in content and content[key] not in known:
            got, expected = content[key], ", ".join(known)
            faults.append(f"{where}: key {key!r}: got {got!r}; expected one of {expected}.")
    if not isinstance(content.get("both_orders", False), bool):
        faults.append(f"{where}: key 'both_orders': expected true or false.")
    elif content.get("both_orders") and direction != "channel":
        faults.append(f"{where}: key 'both_orders': is for direction channel; drop it.")
    if direction == "channel" and content.get("style") == "chat":
        faults.append(f"{where}: key 'style': got chat; direction channel continues plain text.")
    for key in ("answer_prefix", "delimiter", "system", "description", "name"):
        is_left_out = key not in content or (key == "system" and content[key] is None)
        if not is_left_out and not isinstance(content[key], str):
            faults.append(f"{where}: key {key!r}: got {content[key]!r}; expected text in quotes.")
    if isinstance(content.get("text"), str):
        wanted = SENTENCES[:1] if direction == "channel" else SENTENCES
        faults += _text_faults(content["text"], where, wanted)
    else:
        faults.append(f"{where}: key 'text' is missing; expected the question.")
    words = _as_lists(content.get("label_words"))
    faults += _label_word_faults(words, where, direction)
    raise_faults(faults)
    known_keys = {key: value for key, value in content.items() if key != "source"}
    tuples = {label: tuple(word.strip() for word in own) for label, own in words.items()}
    if "answer_prefix" in known_keys:  # a space stands before the answer
        known_keys["answer_prefix"] = known_keys["answer_prefix"].rstrip(" ")
    return Template(**{"name": Path(where).stem, **known_keys, "label_words": tuples}, source=where)


def _as_lists(words: Any) -> Any:
    """One word of a label as a list of one; none as none."""
    if not isinstance(words, dict):
        return words
    return {
        label: own if isinstance(own, list) else [] if own is None else [own]
        for label, own in words.items()
    }


def _text_faults(text: str, where: str, wanted: Sequence[str]) -> list[str]:
    try:
        parts = [part[1:] for part in Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        return [f"{where}: key 'text': {error}. Write a literal brace twice."]
    fields = {str(name) for name, _, _ in parts}
    expected = " and ".join(f"{{{name}}}" for name in wanted)
    faults = [
        f"{where}: key 'text': got {{{name}}} with `:` or `!`; expected {expected} as they are."
        for name, spec, conversion in parts
        if spec or conversion
    ]
    faults += [
        f"{where}: key 'text': got the field {{{name}}}; expected {expected}."
        for name in sorted(fields - set(wanted))
    ]
    return faults + [
        f"{where}: key 'text' lacks {{{name}}}." for name in wanted if name not in fields
    ]


def _label_word_faults(words: Any, where: str, direction: str) -> list[str]:
    if not isinstance(words, dict) or len(words) < 2:
        return [f"{where}: key 'label_words': expected `label name: word` for two or more labels."]
    faults = [
        f"{where}: label_words: got the label {label!r}; expected its name in quotes."
        for label in words
        if not isinstance(label, str)
    ]
    faults += [
        f"{where}: label_words[{label!r}]: got {word!r}; expected a word in quotes."
        for label, own in words.items()
        for word in own
        if not isinstance(word, str) or not word.strip()
    ]
    if faults:
        return faults
    if direction == "channel":
        if any(len(own) > 1 for own in words.values()):
            faults.append(f"{where}: label_words: direction channel takes one text for a label.")
    else:
        faults += [
            f"{where}: label_words[{label!r}]: got none; expected a word, or a list of words."
            for label, own in words.items()
            if not own
        ]
    every = [word.strip() for own in words.values() for word in own or [""]]
    if len(set(every)) < len(every):
        faults.append(f"{where}: label_words: two labels have the same word.")
    return faults
