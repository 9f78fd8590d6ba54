"""A lock on a folder, for tools that change files in it: one works, the others wait."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorapipe_engine.errors import InputError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs of these tools from changing files of ``folder``; waits for them.

    Where the file system has no locks, nobody waits. Raises InputError if there is no such folder.
    """
    try:
        descriptor = _open_lock(folder)
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no such folder") from error
    except OSError:  # a folder that can be written but not listed
        yield
        return
    try:
        with suppress(OSError):
            _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import hashlib
    import msvcrt
    import tempfile

    def _open_lock(folder: Path) -> int:
        # Folders cannot be opened there.
        name = hashlib.sha256(os.fsencode(os.path.normcase(folder.resolve()))).hexdigest()[:24]
        return os.open(Path(tempfile.gettempdir(), f"lorapipe-{name}.lock"), os.O_RDWR | os.O_CREAT)

    def _lock(descriptor: int) -> None:
        while True:  # it gives up after ten tries of a second
            with suppress(PermissionError, BlockingIOError):
                return msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)

else:
    import fcntl

    def _open_lock(folder: Path) -> int:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
