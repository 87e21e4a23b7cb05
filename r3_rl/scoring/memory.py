"""Giving memory back to the system, which glibc keeps for later after a large piece of work."""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another system's allocator
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim  # type: ignore[no-any-return]


def give_memory_back() -> None:
    """Collect what only cycles hold, such as an error and its frames, and return what is free in every arena of glibc.

    >>> give_memory_back()
    """
    gc.collect()
    trim = _trim()
    if trim is not None:
        trim(0)
