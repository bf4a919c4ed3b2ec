import json
from pathlib import Path

import pytest

from peft_mrpc.errors import UserError
from peft_mrpc.prompting.templates import (
    load_template,
    load_templates,
    packaged_templates,
    parse_template,
)

LABELS = ["not_equivalent", "equivalent"]


def test_packaged_templates_load_and_have_distinct_words() -> None:
    assert len(packaged_templates()) > 8
    for name in packaged_templates():
        template = load_template(name)
        assert template.name == name and template.description
        words = template.verbalizer(list(template.label_words))
        assert len(set(words)) == len(words)
        # A Run stores the template in the same form.
        assert parse_template(json.dumps(template.to_dict()), name) == template


def test_all_is_every_template_with_the_labels_of_the_data() -> None:
    paraphrases = load_templates("all", LABELS)
    assert len([t for t in paraphrases if t.direction == "direct"]) >= 8
    assert {
        template.name for template in load_templates("all", ["duplicate", "not_duplicate"])
    } == {"duplicate_questions"}
    with pytest.raises(UserError, match="got all, but no packaged template has the labels x, y"):
        load_templates("all", ["x", "y"])
    assert [
        template.name for template in load_templates("paraphrase_true, paraphrase", LABELS)
    ] == [*("paraphrase_true", "paraphrase")]


MINE = "text: '{sentence1} {sentence2}'\nlabel_words: {equivalent: X, not_equivalent: Y}\n"


def test_a_directory_loads_all_its_templates(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(MINE)
    (tmp_path / "a.yml").write_text(f"name: first\n{MINE}")
    (tmp_path / "notes.txt").write_text("no template")
    templates = load_templates(f"paraphrase,{tmp_path}", LABELS)
    assert [template.name for template in templates] == ["paraphrase", "first", "b"]
    (tmp_path / "a.yml").write_text(MINE.replace("{sentence2}", "{it}"))
    (tmp_path / "b.yaml").write_text(MINE.replace("equivalent: X", "same: X", 1))
    (tmp_path / "c.yaml").write_text(f"name: paraphrase\n{MINE}")
    with pytest.raises(UserError) as caught:
        load_templates(f"paraphrase,{tmp_path},nowhere", LABELS)
    message = str(caught.value)
    assert "a.yml: key text: got the fields {it}, {sentence1}; expected {sentence1} and" in message
    assert "b" in message and "got 'nowhere'; expected a YAML file, a directory" in message
    assert "got 'paraphrase' twice" in message
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="empty', a directory without a .yaml file"):
        load_templates(str(empty), LABELS)


def test_braces_in_a_sentence_stay_text() -> None:
    question = load_template("paraphrase").question("{sentence2} {0}", "100 % {of} it")
    assert "Sentence 1: {sentence2} {0}" in question and "100 % {of} it" in question


PAIR = "text: '{sentence1} {sentence2}'"


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (
            "txt: a",
            [
                "unknown key 'txt'. Did you mean 'text'?",
                "text is missing",
                "label_words is missing",
            ],
        ),
        (
            "text: '{sentence1} {it}'\nlabel_words: {a: X, b: Y}",
            ["{it}, {sentence1}; expected {sentence1} and {sentence2}."],
        ),
        (f"{PAIR}\nlabel_words: {{a: X, b: X}}", ["label_words: got 'X' more than once"]),
        (f"{PAIR}\nlabel_words: {{a: [X, Y], b: [Z, X]}}", ["got 'X' more than once"]),
        (
            f"{PAIR}\nlabel_words: {{a: true, b: 3}}",
            ["label_words.a.0: got True; expected text in", "got 3"],
        ),
        (f"{PAIR}\nlabel_words: {{a: X, b: Y}}\n{PAIR}", ["got the key 'text' twice"]),
        (f"{PAIR}\nlabel_words: {{a: X, b: []}}", ["label_words.b: got none"]),
        (
            f"{PAIR}\nlabel_words: {{a: X, b: Y}}\nstyle: talk",
            ["style: got 'talk'; expected 'auto', 'chat' or 'plain'."],
        ),
        (
            f"{PAIR}\nlabel_words: {{a: X, b: Y}}\nboth_orders: true",
            ["both_orders: got true; has no effect with direction direct"],
        ),
        (
            f"{PAIR}\nlabel_words: {{a: X, b: Y}}\nlength_normalized: 1",
            ["length_normalized: got 1; expected true or false."],
        ),
        (
            "text: '{sentence1}'\nlabel_words: {a: X, b: Y}\ndirection: channel\n"
            "length_normalized: true",
            ["length_normalized: got true; has no effect with direction channel"],
        ),
        (f"{PAIR}\nlabel_words: {{a: X, b: Y}}\nsystem: 3", ["system: got 3"]),
        (
            f"{PAIR}\nlabel_words: {{a: X, b: Y}}\ndirection: channel",
            ["got the fields {sentence1}, {sentence2}; expected {sentence1}."],
        ),
        (
            "text: '{sentence1}'\nlabel_words: {a: [X, Z], b: Y}\ndirection: channel",
            ["label_words.a: got several"],
        ),
        (
            "text: '{sentence1}'\nlabel_words: {a: X, b: Y}\ndirection: channel\nstyle: chat",
            ["expected plain with direction channel"],
        ),
        ("text: '{sentence1'\nlabel_words: {a: X, b: Y}", ["literal brace"]),
        (
            "text: '{sentence1:d} {sentence2!r}'\nlabel_words: {a: X, b: Y}",
            ["got a field with `:` or `!`"],
        ),
        (
            f"{PAIR}\nlabel_words: {{1: X, 0: Y}}",
            ["label_words.1: got 1; expected text in quotes."],
        ),
        (f"{PAIR}\nlabel_words: {{a: X, b: Y}}\nanswer_prefix:", ["answer_prefix: got None"]),
        (
            f"{PAIR}\nlabel_words: {{a: X, b: Y}}\nname: ''",
            ["name: got ''; expected a text that is not empty."],
        ),
        (
            "text: '{sentence1}'\nlabel_words: {a: null, b: null}\ndirection: channel",
            ["label_words: got None more than once"],
        ),
        (f"{PAIR}\nlabel_words: {{a: '  ', b: Y}}", ["label_words.a.0: got '  '"]),
        (f"{PAIR}\nlabel_words: {{a: X}}", ["label_words: got {'a': 'X'}; expected two or more"]),
        (f"{PAIR}\nlabel_words: X", ["label_words: got 'X'; expected `label name: word`"]),
        (f"1: x\n{PAIR}\nlabel_words: {{a: X, b: Y}}", ["expected text in quotes"]),
        ("[", ["not valid YAML"]),
    ],
)
def test_every_fault_of_a_template_is_reported(text: str, faults: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_template(text, "mine.yaml")
    for fault in faults:
        assert fault in str(caught.value)
