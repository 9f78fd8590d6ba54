"""Two files' names exchanged in one step, and a whole file system brought to the disk: calls that Python lacks.

Linux has both (renameat2(2) with RENAME_EXCHANGE, syncfs(2)); where they are not, :func:`find_swapper` finds nothing.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress

from lorapipe_engine.changes.place import Identity, Place

_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE


class Swapper:
    """The two calls. Raises OSError (or AttributeError, in the C library's absence of them) when it is made."""

    def __init__(self) -> None:
        import ctypes  # some milliseconds, which few runs need

        library = ctypes.CDLL(None, use_errno=True)
        self._rename, self._sync, self._errno = library.renameat2, library.syncfs, ctypes.get_errno
        self._rename.argtypes = [
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_uint,
        ]

    def swap(self, place: Place, name: str, other: Place, new: str) -> None:
        """Give two files each other's name; links as links. Raises OSError; then neither has changed."""
        here, there = (_HERE if one.fd is None else one.fd for one in (place, other))
        if self._rename(here, os.fsencode(place.at + name), there, os.fsencode(other.at + new), _EXCHANGE):
            self._fail(name)

    def flush(self, descriptor: int) -> None:
        """Wait until all of the file system that an open file lies on is on the disk. Raises OSError."""
        if self._sync(descriptor):
            self._fail(None)

    def _fail(self, name: str | None) -> None:
        number = self._errno()
        raise OSError(number, os.strerror(number), name)


def find_swapper(place: Place) -> Swapper | None:
    """What exchanges names in a folder; None where that cannot be done. Tried on two new files, which go again."""
    if sys.platform != "linux":
        return None
    made: list[str] = []
    try:
        swapper = Swapper()
        before = [_new_file(place, made) for _ in range(2)]
        swapper.swap(place, made[0], place, made[1])
        return swapper if [_identity(place, name) for name in made] == before[::-1] else None
    except (OSError, AttributeError):
        return None
    finally:
        for name in made:
            with suppress(OSError):
                place.unlink(name)


def temporary_name() -> str:
    """A name that nobody can know before; :func:`is_temporary` tells it."""
    return f"{secrets.token_hex(8)}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a name is one that :func:`temporary_name` gives."""
    stem, dot, ending = name.partition(".")
    return (len(stem), dot, ending) == (16, ".", "tmp") and all(one in "0123456789abcdef" for one in stem)


def _new_file(place: Place, made: list[str]) -> Identity:
    name = temporary_name()
    descriptor = place.create(name)
    made.append(name)
    try:
        facts = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return facts.st_dev, facts.st_ino


def _identity(place: Place, name: str) -> Identity | None:
    facts = place.facts(name)
    return None if facts is None else (facts.st_dev, facts.st_ino)
