"""Whatever a template contains, it is used, or refused with a message."""

from typing import Any

import pytest
from fuzzing import ANY_TEXT, SETTINGS, STRUCTURE, VALUES
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_mrpc.errors import UserError
from peft_mrpc.prompting.templates import Template, build_template, parse_template

FIELDS = "{sentence1} {sentence2}"
KEYS = st.sampled_from(sorted(Template.model_fields))
VALID = {"name": "t", "text": FIELDS, "label_words": {"no": "No", "yes": "Yes"}}


def assert_usable(template: Template) -> None:
    assert template.question("the {cat}", "a cat") is not None
    assert build_template(template.to_dict(), "copy") == template


@settings(SETTINGS, max_examples=200)
@given(changes=st.dictionaries(KEYS | ANY_TEXT, VALUES, max_size=3))
def test_a_template_is_used_or_refused(changes: dict[str, Any]) -> None:
    try:
        template = build_template(VALID | changes, "t.yaml")
    except UserError as error:
        assert all(fault.startswith("t.yaml") for fault in error.faults)
    else:
        assert_usable(template)


@SETTINGS
@given(text=STRUCTURE | ANY_TEXT)
def test_the_text_of_a_file_is_used_or_refused(text: str) -> None:
    with pytest.raises(UserError, match="t.yaml"):
        parse_template(text, "t.yaml")
    question = text.replace("{", "{{").replace("}", "}}")
    try:
        template = build_template(VALID | {"text": f"{question} {FIELDS}"}, "t.yaml")
    except UserError as error:
        assert error.faults
    else:
        assert_usable(template)
