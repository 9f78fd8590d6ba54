"""Files' bytes by the system's own calls: path objects and buffers take longer than they on thousands of files."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import time
from pathlib import Path
from typing import NamedTuple

from lorapipe_engine.changes.place import NotRegular, Place
from lorapipe_engine.files.links import IS_LINK, NOFOLLOW, check_inside

_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)

_YOUNG = 3_000_000_000  # ns; two writings of a file so close may have one time (FAT counts in steps of two seconds)


class Stamp(NamedTuple):
    """What tells that a file is still the one that was read: its number, size, times of writing and change, and mode.

    ``sure``: it was not written so lately that its time might not tell if it were written again.
    """

    inode: int
    size: int
    written: int
    changed: int
    mode: int
    sure: bool


def read_bytes(path: Path | str) -> bytes | None:
    """What a file holds, links followed; None where there is none. Raises OSError."""
    return read_all(path)[0]


def read_stamped(path: Path | str, root: Path | str | None = None) -> tuple[bytes | None, Stamp | None]:
    """What a file holds, and its stamp; None where there is no file. A link has no stamp.

    ``root``: the folder that a link must not leave, by default the file's own. Raises LeadsOut, or an OSError.
    """
    try:
        data, facts = read_all(path, follow=False)
    except OSError as error:
        if error.errno not in IS_LINK:
            raise
        real = check_inside(path, root or os.path.dirname(path) or ".")  # noqa: PTH120
        return read_all(real, follow=False)[0], None
    return data, None if facts is None else stamp_of(facts)


def stamp_of(facts: os.stat_result) -> Stamp:
    """The stamp of a file by what the system says of it."""
    written, changed = facts.st_mtime_ns, facts.st_ctime_ns
    # Windows brings times up to date when it likes.
    sure = time.time_ns() - max(written, changed) > _YOUNG and os.name != "nt"
    return Stamp(facts.st_ino, facts.st_size, written, changed, facts.st_mode, sure)


def read_all(
    path: Path | str, folder: int | None = None, *, follow: bool = True
) -> tuple[bytes | None, os.stat_result | None]:
    """A file's bytes and facts; None for both where there is none.

    ``folder`` is the descriptor of the folder that ``path`` starts from. Without ``follow`` a link is an OSError.
    """
    if not follow and not NOFOLLOW and os.path.islink(path):  # noqa: PTH114
        raise NotRegular(errno.ELOOP, "a link, not a file", str(path))
    try:
        descriptor = os.open(path, _READ if follow else _READ | NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return None, None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            if stat.S_ISDIR(facts.st_mode):
                raise IsADirectoryError(21, "a folder, not a file", str(path))
            raise NotRegular(errno.EINVAL, "no plain file", str(path))
        blocks = [os.read(descriptor, facts.st_size + 1)]
        while len(blocks[-1]) > (facts.st_size if len(blocks) == 1 else 0):  # it grows, or has no size
            blocks.append(os.read(descriptor, 1 << 16))
        return blocks[0] if len(blocks) == 1 else b"".join(blocks), facts
    finally:
        os.close(descriptor)


def digest(data: bytes) -> str:
    """A short fingerprint of a file's bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def write_new(place: Place, name: str, data: bytes, mode: int | None = None) -> None:
    """Make a file, with its mode where one is given. Raises FileExistsError, or another OSError."""
    descriptor = place.create(name)
    try:
        write_all(descriptor, data)
        if mode is not None and sys.platform != "win32":
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write bytes, however many calls it takes. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
