"""Progress bars of transformers and datasets."""

import contextlib
from collections.abc import Iterator

import datasets
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)


@contextlib.contextmanager
def progress_bars(enabled: bool) -> Iterator[None]:
    """Show or hide all progress bars within the block."""
    previous = is_progress_bar_enabled(), datasets.is_progress_bar_enabled()
    if not enabled:
        disable_progress_bar()
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if previous[0]:
            enable_progress_bar()
        if previous[1]:
            datasets.enable_progress_bars()
