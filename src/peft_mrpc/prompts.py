"""Templates: how a pair becomes a prompt, and which words stand for the labels. Text only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from peft_mrpc.errors import UserError, closest, one_line, raise_faults

TEMPLATE_FIELDS = ("sentence1", "sentence2")
TEMPLATE_KEYS = {"name", "description", "text", "answer_prefix", "label_words", "system", "source"}


@dataclass(frozen=True)
class Template:
    """A question about a pair, and the word that answers it for each label.

    Attributes:
        name: Name under which `--template` finds it.
        text: The question, with `{sentence1}` and `{sentence2}` where they go.
        label_words: The answer for each label name.
        answer_prefix: Stands between question and answer where the model has no chat template.
        system: System message, where the model's chat template takes one.
        description: What it is for.
    """

    name: str
    text: str
    label_words: Mapping[str, str]
    answer_prefix: str = "\nAnswer:"
    system: str | None = None
    description: str = ""
    source: str = field(default="", compare=False)

    def question(self, sentence1: str, sentence2: str) -> str:
        """The filled-in question; braces inside the sentences stay as they are."""
        return self.text.format(sentence1=sentence1, sentence2=sentence2).rstrip()

    def messages(self, sentence1: str, sentence2: str) -> list[dict[str, str]]:
        """The question as chat messages."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.question(sentence1, sentence2)}]

    def plain(self, sentence1: str, sentence2: str) -> str:
        """The question as text to be continued, for a model without a chat template."""
        system = f"{self.system}\n\n" if self.system else ""
        return f"{system}{self.question(sentence1, sentence2)}{self.answer_prefix}"

    def words(self, label_names: Sequence[str]) -> list[str]:
        """The answer words in the order of the data's labels.

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
        return record | {"label_words": dict(self.label_words)}


def packaged_templates() -> list[str]:
    """Names of the templates that come with the package."""
    folder = resources.files("peft_mrpc") / "templates"
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


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
        return parse_template(Path(name).read_text(encoding="utf-8"), name)
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
    if isinstance(content.get("text"), str):
        faults += _text_faults(content["text"], where)
    else:
        faults.append(f"{where}: key 'text' is missing; expected the question.")
    faults += _label_word_faults(content.get("label_words"), where)
    raise_faults(faults)
    known = {key: value for key, value in content.items() if key != "source"}
    return Template(**{"name": Path(where).stem, **known}, source=where)


def _text_faults(text: str, where: str) -> list[str]:
    try:
        fields = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:
        return [f"{where}: key 'text': {error}. Write a literal brace twice."]
    faults = [
        f"{where}: key 'text': got the field {{{name}}}; expected {{sentence1}} and {{sentence2}}."
        for name in sorted(fields - set(TEMPLATE_FIELDS))
    ]
    return faults + [
        f"{where}: key 'text' lacks {{{name}}}." for name in TEMPLATE_FIELDS if name not in fields
    ]


def _label_word_faults(words: Any, where: str) -> list[str]:
    if not isinstance(words, dict) or len(words) < 2:
        return [f"{where}: key 'label_words': expected `label name: word` for two or more labels."]
    faults = [
        f"{where}: label_words[{name!r}]: got {word!r}; expected a word in quotes."
        for name, word in words.items()
        if not isinstance(word, str) or not word.strip()
    ]
    if not faults and len({word.strip() for word in words.values()}) < len(words):
        faults.append(f"{where}: label_words: two labels have the same word.")
    return faults
