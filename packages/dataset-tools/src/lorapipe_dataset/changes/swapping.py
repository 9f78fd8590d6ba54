"""Two files' names exchanged in one step, and a whole file system brought to the disk: calls that Python lacks.

Linux has both (renameat2(2) with RENAME_EXCHANGE, syncfs(2)); where they are not, :func:`find_swapper` finds nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

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

    def swap(self, one: str, other: str) -> None:
        """Give two files each other's name. Raises OSError; then neither has changed."""
        if self._rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
            self._fail(one)

    def flush(self, descriptor: int) -> None:
        """Wait until all of the file system that an open file lies on is on the disk. Raises OSError."""
        if self._sync(descriptor):
            self._fail(None)

    def _fail(self, name: str | None) -> None:
        number = self._errno()
        raise OSError(number, os.strerror(number), name)


def find_swapper(folder: Path) -> Swapper | None:
    """What exchanges names in ``folder``; None where that cannot be done. Tried on two files, which go again."""
    if sys.platform != "linux":
        return None
    one, other = folder / "one.swap.tmp", folder / "other.swap.tmp"
    try:
        swapper = Swapper()
        one.write_bytes(b"1")
        other.write_bytes(b"2")
        swapper.swap(str(one), str(other))
        return swapper if (one.read_bytes(), other.read_bytes()) == (b"2", b"1") else None
    except (OSError, AttributeError):
        return None
    finally:
        one.unlink(missing_ok=True)
        other.unlink(missing_ok=True)
