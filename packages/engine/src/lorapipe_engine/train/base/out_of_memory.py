"""Errors for want of memory, which torch has of several kinds."""

from __future__ import annotations

import re

_WORDS = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a card or on the CPU. All of torch's errors for it are RuntimeErrors that say so."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None
    )
