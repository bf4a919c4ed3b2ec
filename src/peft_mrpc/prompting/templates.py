"""Templates: how an example becomes a prompt, and which words stand for its labels.

Templates are YAML files, packaged or the user's own. This module handles text only; the prompt
encoder turns the text into token ids.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any

from peft_mrpc.data.examples import Example
from peft_mrpc.errors import UserError, closest, one_line, raise_faults
from peft_mrpc.serialization import load_yaml, read_asset

SENTENCES = ("sentence1", "sentence2")
STYLES = ("auto", "chat", "plain")
DIRECTIONS = ("direct", "channel")
# Names that stand for all packaged templates with these directions.
GROUPS = {"all": DIRECTIONS, "all_direct": ("direct",), "all_channel": ("channel",)}
TEXT_KEYS = ("answer_prefix", "delimiter", "system", "description", "name")
TEMPLATE_KEYS = {
    *("text", "label_words", "style", "direction", "both_orders", "length_normalized", "source"),
    *TEXT_KEYS,
}


@dataclass(frozen=True)
class Demonstration:
    """A labelled example in front of the question."""

    sentence1: str
    sentence2: str
    label: str

    @staticmethod
    def from_example(example: Example, label_names: Sequence[str]) -> "Demonstration":
        """The demonstration of a labelled example."""
        return Demonstration(example.sentence1, str(example.sentence2), label_names[example.label])


@dataclass(frozen=True)
class Template:
    """A question about an example, and the words that answer it for each label.

    Templates with the direction `channel` score the noisy channel (arXiv:2108.04106): the
    probability of sentence 2 after sentence 1 and the label's words. They ask no question.

    Attributes:
        name: Name of the template.
        text: The question with the fields `{sentence1}` and `{sentence2}`. With direction
            `channel` the text before the label's words, with the field `{sentence1}` only.
        label_words: The answers of each label name, at least one. With direction `channel` one
            text that leads to sentence 2, or none for the probability of sentence 2 alone.
        answer_prefix: Text between question and answer, outside chats.
        system: System message, or the first text of a plain prompt.
        style: `chat` for chat turns, `plain` for text to continue, `auto` for a chat if the model
            has a chat template.
        direction: `direct` scores the label words after the example, `channel` scores sentence 2
            after sentence 1 and the label words.
        both_orders: Whether the channel is scored with swapped sentences too.
        delimiter: Text between demonstrations in plain prompts.
        length_normalized: Whether the log-probability of a word is the mean over its tokens
            instead of the sum.
        description: Purpose of the template.
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
        """The question with its fields filled in; braces in the sentences stay as they are."""
        return self.text.format(sentence1=sentence1, sentence2=sentence2).rstrip()

    def to_messages(
        self, sentence1: str, sentence2: str, demonstrations: Sequence[Demonstration] = ()
    ) -> list[dict[str, str]]:
        """The question as chat messages, after the demonstrations as earlier turns."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for shot in demonstrations:
            question = self.question(shot.sentence1, shot.sentence2)
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": self.label_words[shot.label][0]})
        return [*messages, {"role": "user", "content": self.question(sentence1, sentence2)}]

    def to_text(
        self, sentence1: str, sentence2: str, demonstrations: Sequence[Demonstration] = ()
    ) -> str:
        """The question as text to continue, after the demonstrations and their answers."""
        system = f"{self.system}{self.delimiter}" if self.system else ""
        shots = [
            f"{self.question(shot.sentence1, shot.sentence2)}{self.answer_prefix} "
            f"{self.label_words[shot.label][0]}{self.delimiter}"
            for shot in demonstrations
        ]
        question = f"{self.question(sentence1, sentence2)}{self.answer_prefix}"
        return "".join([system, *shots, question])

    def to_channel_text(self, sentence1: str, label: str) -> str:
        """The text before sentence 2 under a label; empty if the label has no words."""
        words = self.label_words[label]
        if not words:
            return ""
        return f"{self.text.format(sentence1=sentence1, sentence2='').rstrip()} {words[0]}"

    def verbalizer(self, label_names: Sequence[str]) -> list[tuple[str, ...]]:
        """The words of each label, in the order of the data's labels.

        Raises:
            UserError: If the template has other labels than the data.
        """
        if set(label_names) != set(self.label_words):
            numbers = ", or set class_names, which names 0, 1 and so on."
            raise UserError(
                f"template: {self.name!r} has words for {', '.join(sorted(self.label_words))}, but "
                f"the data's labels are {', '.join(label_names)}; expected a template whose "
                "label_words have these names (see docs/hard-prompts.md)"
                + (numbers if all(name.isdigit() for name in label_names) else ".")
            )
        return [self.label_words[name] for name in label_names]

    def to_dict(self) -> dict[str, Any]:
        """The keys of the template's YAML file."""
        record = {key: getattr(self, key) for key in sorted(TEMPLATE_KEYS - {"source"})}
        return record | {"label_words": {k: list(words) for k, words in self.label_words.items()}}


def packaged_templates() -> list[str]:
    """Names of the packaged templates."""
    folder = resources.files("peft_mrpc") / "templates"
    files = (entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return sorted(name.removesuffix(".yaml") for name in files)


def load_templates(names: str, label_names: Sequence[str]) -> list[Template]:
    """Load the templates of a comma-separated list of names, files and directories.

    `all` is every packaged template for these labels, `all_direct` and `all_channel` those of one
    direction.

    Raises:
        UserError: Naming every unknown name, every fault of every file, and other labels.
    """
    if names in GROUPS:
        templates = [
            template
            for template in map(load_template, packaged_templates())
            if set(template.label_words) == set(label_names) and template.direction in GROUPS[names]
        ]
        if not templates:
            raise UserError(
                f"template: got {names}, but no packaged template has the labels "
                f"{', '.join(label_names)}; expected a YAML file of your own."
            )
        return templates
    loaded: list[Template] = []
    faults: list[str] = []
    for name in [path for part in names.split(",") for path in _expand_directory(part.strip())]:
        try:
            template = load_template(name)
            template.verbalizer(label_names)
            loaded.append(template)
        except UserError as error:
            faults += error.faults
    counts = Counter(template.name for template in loaded)
    faults += [
        f"template: got {name!r} twice; name each template once."
        for name, count in sorted(counts.items())
        if count > 1
    ]
    raise_faults(faults)
    return loaded


def _expand_directory(name: str) -> list[str]:
    """The template files of a directory, sorted by name; any other name unchanged."""
    if not name:
        raise UserError("template: got an empty name; expected names separated by one comma.")
    folder = Path(name).expanduser()
    if name in packaged_templates() or not folder.is_dir():
        return [name]
    files = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    if not files:
        raise UserError(
            f"template: got {name!r}, a directory without a .yaml file; expected template files."
        )
    return [str(path) for path in files]


def load_template(name: str) -> Template:
    """Load a packaged template by its name, or a file by its path.

    Raises:
        UserError: If there is no such template; or naming every fault of the file.
    """
    known = packaged_templates()
    if name in known:
        return parse_template(read_asset(f"templates/{name}.yaml"), name)
    if not name.endswith((".yaml", ".yml")):
        raise UserError(
            f"template: got {name!r}; expected a YAML file, a directory of YAML files, or one of "
            f"{', '.join(known)}.{closest(name, known)}"
        )
    try:
        return parse_template(Path(name).expanduser().read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"template: got {name!r}; expected a readable file. {one_line(error)}"
        ) from error


def parse_template(text: str, where: str) -> Template:
    """Build a template from the text of its YAML file.

    Raises:
        UserError: Naming every fault.
    """
    try:
        content = load_yaml(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: got no mapping; expected the keys text and label_words.")
    return build_template(content, where)


def build_template(content: Mapping[str, Any], where: str) -> Template:
    """Build a template from its keys.

    Raises:
        UserError: Naming every fault: unknown and missing keys, wrong fields in the text, label
            words that are equal or not text.
    """
    direction = content.get("direction", "direct")
    words = _as_lists(content.get("label_words"))
    raise_faults(
        [
            *_key_faults(content, where, direction),
            *_text_faults(content.get("text"), where, direction),
            *_label_word_faults(words, where, direction),
        ]
    )
    keys = {key: value for key, value in content.items() if key != "source"}
    keys["label_words"] = {label: tuple(map(str.strip, texts)) for label, texts in words.items()}
    if "answer_prefix" in keys:  # the prompt encoder adds the space before the answer
        keys["answer_prefix"] = keys["answer_prefix"].rstrip(" ")
    return Template(**{"name": Path(where).stem, **keys}, source=where)


def _as_lists(words: Any) -> Any:
    """Label words with a single word as a list of one, and null as an empty list."""
    if not isinstance(words, dict):
        return words
    return {
        label: texts if isinstance(texts, list) else [] if texts is None else [texts]
        for label, texts in words.items()
    }


def _key_faults(content: Mapping[str, Any], where: str, direction: str) -> list[str]:
    faults = [
        f"{where}: got an unknown key {key!r}.{closest(str(key), TEMPLATE_KEYS)}"
        for key in content
        if key not in TEMPLATE_KEYS
    ]
    faults += [
        f"{where}: key {key!r}: got {content[key]!r}; expected one of {', '.join(choices)}."
        for key, choices in (("style", STYLES), ("direction", DIRECTIONS))
        if key in content and content[key] not in choices
    ]
    for key, only in (("both_orders", "channel"), ("length_normalized", "direct")):
        value = content.get(key, False)
        if not isinstance(value, bool):
            faults.append(f"{where}: key {key!r}: got {value!r}; expected true or false.")
        elif value and direction != only:
            faults.append(f"{where}: key {key!r}: has an effect with direction {only} only.")
    if direction == "channel" and content.get("style") == "chat":
        faults.append(f"{where}: key 'style': got chat; expected plain with direction channel.")
    faults += [
        f"{where}: key {key!r}: got {content[key]!r}; expected text in quotes."
        for key in TEXT_KEYS
        if key in content and not isinstance(content[key], str)
        if not (key == "system" and content[key] is None)
    ]
    if content.get("name") == "":
        faults.append(f"{where}: key 'name': got ''; expected a name, or no key.")
    return faults


def _text_faults(text: Any, where: str, direction: str) -> list[str]:
    if not isinstance(text, str):
        return [f"{where}: key 'text' is missing; expected the question."]
    try:
        fields = [part[1:] for part in Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        return [f"{where}: key 'text': {error}. Write a literal brace twice."]
    names = {str(name) for name, _, _ in fields}
    required = SENTENCES[:1] if direction == "channel" else SENTENCES
    expected = " and ".join(f"{{{name}}}" for name in required)
    faults = [
        f"{where}: key 'text': got {{{name}}} with `:` or `!`; expected {expected} as they are."
        for name, spec, conversion in fields
        if spec or conversion
    ]
    faults += [
        f"{where}: key 'text': got the field {{{name}}}; expected {expected}."
        for name in sorted(names - set(required))
    ]
    missing = [name for name in required if name not in names]
    return faults + [
        f"{where}: key 'text' lacks {{{name}}}; expected {expected} in it." for name in missing
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
        for label, texts in words.items()
        for word in texts
        if not isinstance(word, str) or not word.strip()
    ]
    if faults:
        return faults
    if direction == "channel" and any(len(texts) > 1 for texts in words.values()):
        faults.append(
            f"{where}: label_words: got several texts for a label; expected one with direction "
            "channel."
        )
    if direction == "direct":
        faults += [
            f"{where}: label_words[{label!r}]: got none; expected a word, or a list of words."
            for label, texts in words.items()
            if not texts
        ]
    all_words = [word.strip() for texts in words.values() for word in texts or [""]]
    return faults + [
        f"{where}: label_words: got {word or None!r} more than once; expected words that tell the "
        "labels apart."
        for word in dict.fromkeys(all_words)
        if all_words.count(word) > 1
    ]
