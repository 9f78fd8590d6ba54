"""Locks: of a folder, for tools that change files in it (one works, the others wait), and of a file."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path

from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import InputError, OutputError

PATIENCE = 2.0  # seconds until the user is told what is waited for


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs of these tools from changing files of ``folder``; waits for them.

    After :data:`PATIENCE` seconds a line on stderr says what is waited for. Where the file system has no locks, nobody
    waits. Raises InputError if there is no such folder.
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
            if not _try_lock(descriptor):
                with _telling(folder, descriptor):
                    _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _telling(folder: Path, descriptor: int) -> Iterator[None]:
    """Say what is waited for, if the block takes long."""
    # A thread has settings of its own, such as whether the user asked for quiet.
    timer = threading.Timer(PATIENCE, copy_context().run, (_tell, folder, descriptor))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _tell(folder: Path, descriptor: int) -> None:
    holder = _holder(descriptor)
    by = f"process {holder}" if holder else "another program"
    say(f"waiting for {str(folder)!r}: {by} has locked it (Ctrl-C stops waiting)")


def _holder(descriptor: int) -> int | None:
    """The process that has the lock on an open file; None where the system does not tell (only Linux does)."""
    try:
        facts = os.fstat(descriptor)
        rows = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return None
    file = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    for row in rows:
        # Waiting ones have an arrow in front of the kind.
        if len(row) > 5 and row[1] == "FLOCK" and row[5] == file and row[4].isdigit() and int(row[4]):
            return int(row[4])
    return None


def open_lock_file(path: Path) -> int:
    """A descriptor of an empty file to lock, made where there is none. Raises OutputError for a link or another file.

    Its folder may be shared: the file is created exclusively, and one that is there is taken only if it is a plain
    file of one name, before and after it is opened.
    """
    plain = (
        os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    )
    for _ in range(100):  # somebody else may make it, or take it away, between two calls
        with suppress(FileExistsError):
            return os.open(path, plain | os.O_CREAT | os.O_EXCL, 0o600)
        with suppress(FileNotFoundError):
            facts = os.lstat(path)
            if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
                break
            descriptor = os.open(path, plain)
            seen = os.fstat(descriptor)
            if (seen.st_dev, seen.st_ino, seen.st_nlink) == (facts.st_dev, facts.st_ino, 1):
                return descriptor
            os.close(descriptor)
    raise OutputError(f"{path}: not a file that these tools made, so it is not locked; remove it")


def try_lock_file(descriptor: int) -> bool | None:
    """Lock a file of :func:`open_lock_file` for as long as it is open; False if another process has it locked, None
    where the file system has no locks."""
    try:
        return _try_lock(descriptor)
    except OSError:
        return None


if sys.platform == "win32":
    import hashlib
    import msvcrt

    from lorapipe_engine.files.cachefolder import cache_folder

    def _open_lock(folder: Path) -> int:
        # Folders cannot be opened there.
        if not folder.is_dir():
            raise FileNotFoundError(2, "no such folder", str(folder))
        name = hashlib.sha256(os.fsencode(os.path.normcase(folder.resolve()))).hexdigest()[:24]
        place = cache_folder() / "locks"
        place.mkdir(parents=True, exist_ok=True)
        return open_lock_file(place / f"{name}.lock")

    def _try_lock(descriptor: int) -> bool:
        try:
            # What is locked cannot be read by others, so it is a byte behind anything that is written.
            os.lseek(descriptor, 1 << 20, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except (PermissionError, BlockingIOError):
            return False
        return True

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        while True:  # it gives up after ten tries of a second
            with suppress(PermissionError, BlockingIOError):
                return msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)

else:
    import fcntl

    def _open_lock(folder: Path) -> int:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
