"""Settings and values for tests with hypothesis."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SETTINGS = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # one folder for all examples
)
# Lone surrogates included. A file with NUL characters is refused.
ANY_TEXT = st.text(st.characters(exclude_categories=(), exclude_characters="\0"))
STRUCTURE = st.text('{}[]",:;|\n\r\t \\0a1-*&!?%#\ufeff\x00é', max_size=60)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT
VALUES = st.recursive(SCALARS, lambda v: st.lists(v) | st.dictionaries(ANY_TEXT, v), max_leaves=4)
