"""The C library's heap: what one training step frees, the next one needs again."""

import contextlib
import ctypes
from collections.abc import Iterator

# malloc.h of glibc: its options, and the largest threshold that it takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20
# What glibc itself comes to, once it has seen large blocks freed (`man 3 mallopt`).
USUAL_TRIM_THRESHOLD = 2 * LARGEST_MMAP_THRESHOLD
NEVER = 2**31 - 1


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within the block, keep memory that is freed for what is asked for next.

    glibc hands it back to the system, which gives it out again page by page, each of them cleared
    at its first touch: a third of all page faults of a training on a CPU. Blocks of more than 32 MB
    go back all the same. What is free when the block begins goes back first: encoding pairs leaves
    small pieces over that training steps have no use for. After the block glibc hands back what it
    does as a rule, whatever `MALLOC_TRIM_THRESHOLD_` said. Without glibc nothing is done.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.malloc_trim(0)
    library.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    library.mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        library.mallopt(M_TRIM_THRESHOLD, USUAL_TRIM_THRESHOLD)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: on Windows
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # musl has mallopt neither
        return library
    return None
