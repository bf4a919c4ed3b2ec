"""Templates: how an example becomes a prompt, and which words stand for its labels.

Templates are YAML files, packaged or the user's own. This module handles text only; the prompt
encoder turns the text into token ids.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from peft_mrpc.data.examples import Example
from peft_mrpc.errors import UserError, closest, one_line, raise_faults
from peft_mrpc.serialization import load_yaml, read_asset, user_path

# Names that stand for all packaged templates with these directions.
GROUPS = {"all": ("direct", "channel"), "all_direct": ("direct",), "all_channel": ("channel",)}
# The expected values in the words of a YAML file, by pydantic's type of an error.
EXPECTED = {
    "string_type": "text in quotes",
    "invalid_key": "text in quotes",
    "string_too_short": "a text that is not empty",
    "bool_type": "true or false",
    "dict_type": "`label name: word` for each label",
    "too_short": "two or more labels",
}


def _as_tuple(words: Any) -> Any:
    """A single word as a tuple of one, null as an empty tuple."""
    if isinstance(words, list | tuple):
        return tuple(words)
    return () if words is None else (words,)


Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Words = Annotated[tuple[Word, ...], BeforeValidator(_as_tuple)]


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


class Template(BaseModel):
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

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(min_length=1)]
    text: str
    label_words: Annotated[dict[str, Words], Field(min_length=2)]
    # The prompt encoder adds the space before the answer.
    answer_prefix: Annotated[str, AfterValidator(lambda text: text.rstrip(" "))] = "\nAnswer:"
    system: str | None = None
    style: Literal["auto", "chat", "plain"] = "auto"
    direction: Literal["direct", "channel"] = "direct"
    both_orders: bool = False
    delimiter: str = "\n\n"
    length_normalized: bool = False
    description: str = ""

    @model_validator(mode="after")
    def _validate_keys_together(self) -> "Template":
        if faults := [*self._direction_faults(), *self._text_faults(), *self._word_faults()]:
            raise ValueError(*faults)
        return self

    def _direction_faults(self) -> Iterator[str]:
        is_channel = self.direction == "channel"
        if is_channel and self.style == "chat":
            yield "key style: got chat; expected plain with direction channel."
        for key, is_used in (("both_orders", is_channel), ("length_normalized", not is_channel)):
            if getattr(self, key) and not is_used:
                yield f"key {key}: got true; has no effect with direction {self.direction}."

    def _text_faults(self) -> Iterator[str]:
        required = ["sentence1"] if self.direction == "channel" else ["sentence1", "sentence2"]
        expected = " and ".join(f"{{{name}}}" for name in required)
        try:
            fields = [part[1:] for part in Formatter().parse(self.text) if part[1] is not None]
        except ValueError as error:
            yield f"key text: {error}. Write a literal brace twice."
            return
        if any(spec or conversion for _, spec, conversion in fields):
            yield f"key text: got a field with `:` or `!`; expected {expected} as they are."
        elif {name for name, _, _ in fields} != {*required}:
            names = ", ".join(sorted({f"{{{name}}}" for name, _, _ in fields})) or "none"
            yield f"key text: got the fields {names}; expected {expected}."

    def _word_faults(self) -> Iterator[str]:
        for label, words in self.label_words.items():
            if self.direction == "direct" and not words:
                yield f"key label_words.{label}: got none; expected a word, or a list of words."
            elif self.direction == "channel" and len(words) > 1:
                yield f"key label_words.{label}: got several; expected one with direction channel."
        counts = Counter(word for words in self.label_words.values() for word in words or [None])
        for word, count in counts.items():
            if count > 1:
                yield (
                    f"key label_words: got {word!r} more than once; expected words that tell the "
                    "labels apart."
                )

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
        return self.model_dump(mode="json")


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
    folder = user_path(name)
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
        return parse_template(user_path(name).read_text(encoding="utf-8"), name)
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
    try:
        return Template.model_validate({"name": Path(where).stem, **content})
    except ValidationError as error:
        faults = [fault for detail in error.errors() for fault in _describe(detail)]
        raise UserError(*(f"{where}: {fault}" for fault in faults)) from error


def _describe(detail: Any) -> Sequence[str]:
    """The faults of one of pydantic's errors."""
    key, kind, value = ".".join(map(str, detail["loc"])), detail["type"], detail["input"]
    if kind == "value_error":  # of our own rules
        return [str(fault) for fault in detail["ctx"]["error"].args]
    if kind == "missing":
        return [f"key {key} is missing."]
    if kind == "extra_forbidden":
        return [f"got an unknown key {key!r}.{closest(key, Template.model_fields)}"]
    expected = EXPECTED.get(kind, detail["msg"].removeprefix("Input should be "))
    return [f"key {key.removesuffix('.[key]')}: got {value!r}; expected {expected}."]
