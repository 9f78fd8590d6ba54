"""Links: whether a path leaves a folder by one, and files that are read only where it does not."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lorapipe_engine.errors import InputError

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
IS_LINK = frozenset({errno.ELOOP, errno.EMLINK})  # what O_NOFOLLOW ends in, by system
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_BLOCK = 1 << 20  # bytes
# A pipe without a writer is not waited for.
_AS_IT_IS = _READ | NOFOLLOW | getattr(os, "O_NONBLOCK", 0)


class LeadsOut(InputError):
    """A file is a link out of the dataset: its words are somebody's own, so they are neither changed nor published."""

    def __init__(self, path: Path | str, target: Path) -> None:
        super().__init__(
            f"{path}: a link out of the dataset, to {target}; left alone (copy the file to use it)"
        )
        self.target = target


def leads_out(path: Path | str, root: Path | str) -> Path | None:
    """Where a path leads that leaves the folder ``root`` by a link, at its end or in its middle; None where it stays.

    ``root`` itself may be a link, since the user named it. Hard links cannot be told from plain files.
    """
    real = os.path.realpath(path)
    return None if _is_within(real, root) else Path(real)


def check_inside(path: Path | str, root: Path | str) -> str:
    """Where a path leads, without links. Raises LeadsOut where that is not in ``root``.

    Who opens the path itself may come out elsewhere: a link in it may have changed meanwhile.
    """
    real = os.path.realpath(path)
    if not _is_within(real, root):
        raise LeadsOut(path, Path(real))
    return real


def _is_within(real: str, root: Path | str) -> bool:
    real, top = os.path.normcase(real), os.path.normcase(os.path.realpath(root))
    return real == top or real.startswith(os.path.join(top, ""))  # noqa: PTH118


def within(root: Path | None) -> Callable[[Path], bytes]:
    """:func:`read_within` one folder, for what takes a reader."""
    return partial(read_within, root=root)


def read_within(path: Path | str, root: Path | str | None) -> bytes:
    """What a plain file holds. A link at its end is followed where it stays in ``root`` (None: the file's folder).

    Raises LeadsOut for another link, or an OSError. A link that comes into its place meanwhile is seen too.
    """
    try:
        return _read(path, _AS_IT_IS)
    except OSError as error:
        if error.errno not in IS_LINK:
            raise
    return _read(check_inside(path, root or os.path.dirname(path) or "."), _AS_IT_IS)  # noqa: PTH120


def _read(path: Path | str, flags: int) -> bytes:
    if not NOFOLLOW and os.path.islink(path):  # noqa: PTH114
        raise OSError(errno.ELOOP, "a link, not a file", str(path))
    # Without a file object, which takes a third of the time on the thousands of captions that are read so.
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no plain file", str(path))
        blocks = [os.read(descriptor, status.st_size + 1)]
        while blocks[-1]:
            blocks.append(os.read(descriptor, _BLOCK))
        return b"".join(blocks)
    finally:
        os.close(descriptor)
