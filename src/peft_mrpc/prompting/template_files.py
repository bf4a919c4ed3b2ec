"""Template files: where they are, and all that can be wrong with them."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any

from peft_mrpc.errors import UserError, closest, one_line, raise_faults
from peft_mrpc.prompting.templates import TEMPLATE_KEYS, Template
from peft_mrpc.serialization import load_yaml

SENTENCES = ("sentence1", "sentence2")
STYLES = ("auto", "chat", "plain")
DIRECTIONS = ("direct", "channel")
ALL = {"all": DIRECTIONS, "all_direct": ("direct",), "all_channel": ("channel",)}


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

    `all_direct` and `all_channel` are those of one direction; a directory stands for its files.

    Raises:
        UserError: If there is none of a name, if files are wrong or answer other labels; the
            faults of every file are named.
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
    templates: list[Template] = []
    faults: list[str] = []
    for name in [path for part in asked.split(",") for path in _in_directory(part.strip())]:
        try:
            template = load_template(name)
            template.words(label_names)
            templates.append(template)
        except UserError as error:
            faults += error.faults
    names = [template.name for template in templates]
    twice = sorted({name for name in names if names.count(name) > 1})
    faults += [f"--template: got {name!r} twice; name each template once." for name in twice]
    raise_faults(faults)
    return templates


def _in_directory(name: str) -> list[str]:
    """The template files of a directory, by name; of anything else the name itself."""
    if not name:
        raise UserError("--template: got an empty name; expected names with one comma between.")
    folder = Path(name).expanduser()
    if name in packaged_templates() or not folder.is_dir():
        return [name]
    files = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    if not files:
        raise UserError(f"--template: got {name!r}, a directory without a .yaml file.")
    return [str(path) for path in files]


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
            f"--template: got {name!r}; expected a YAML file, a directory of them, or one of "
            f"{', '.join(known)}."
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
        content = load_yaml(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid YAML: {error}") from error
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
    for key, only in (("both_orders", "channel"), ("length_normalized", "direct")):
        if not isinstance(content.get(key, False), bool):
            faults.append(f"{where}: key {key!r}: expected true or false.")
        elif content.get(key) and direction != only:
            faults.append(f"{where}: key {key!r}: is for direction {only}; drop it.")
    if direction == "channel" and content.get("style") == "chat":
        faults.append(f"{where}: key 'style': got chat; direction channel continues plain text.")
    for key in ("answer_prefix", "delimiter", "system", "description", "name"):
        is_left_out = key not in content or (key == "system" and content[key] is None)
        if not is_left_out and not isinstance(content[key], str):
            faults.append(f"{where}: key {key!r}: got {content[key]!r}; expected text in quotes.")
    if content.get("name") == "":
        faults.append(f"{where}: key 'name': got none; expected a name, or drop the key.")
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
        f"{where}: key 'text' lacks {{{name}}}; expected {expected} in it."
        for name in wanted
        if name not in fields
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
    return faults + [
        f"{where}: label_words: got {word or None!r} more than once; expected words that tell the "
        "labels apart."
        for word in dict.fromkeys(every)
        if every.count(word) > 1
    ]
