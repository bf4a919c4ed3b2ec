"""Progress bars: transformers' own switch is that of ours."""

import contextlib
from collections.abc import Iterator

import datasets
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)


@contextlib.contextmanager
def progress_bars(are_shown: bool) -> Iterator[None]:
    """Show them or not within the block, also those of loading and scoring."""
    before, of_data = is_progress_bar_enabled(), datasets.is_progress_bar_enabled()
    if not are_shown:
        disable_progress_bar()
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if before:
            enable_progress_bar()
        if of_data:
            datasets.enable_progress_bars()
