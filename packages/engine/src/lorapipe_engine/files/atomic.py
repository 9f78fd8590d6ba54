"""Writing files so that nothing is ever half written and nothing is replaced by accident."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lorapipe_engine.errors import OutputError
from lorapipe_engine.files.locking import locked

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def check_output(path: Path, *, force: bool, size: int = 0) -> None:
    """Raise OutputError if ``path`` cannot become a file of ``size`` bytes: worth asking before long work."""
    folder = path.parent
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise OutputError(f"{path}: {folder} is a file, not a folder; choose another place")
        raise OutputError(f"{path}: its folder {folder} does not exist; make it first")
    if os.path.lexists(path):
        if not path.is_file() and not path.is_symlink():
            raise OutputError(f"{path}: is not a regular file, so it is not replaced")
        if not force:
            raise OutputError(f"{path}: exists already; give --force to replace it, or another name")
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OutputError(f"{path}: needs {size:,} bytes, {folder} has only {free:,} free")


@contextmanager
def atomic_write(
    path: Path,
    *,
    force: bool = False,
    size: int = 0,
    check: Callable[[], None] | None = None,
    wait: bool = True,
) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends well, and leaves no trace when it does not.

    The bytes go to a hidden file in the same folder, which is flushed to the disk and then renamed, so that
    another program sees the old file or the whole new one. ``size``: bytes known to be needed, checked first.
    ``check`` is called right before the rename, with the folder locked against other tools (:mod:`locking`): what it
    raises keeps the old file. Without ``wait`` a new file is left to the system to bring to the disk, as ``cp`` does:
    a power failure within the next half minute or so may lose it, or leave it cut short. What replaces a file is always
    waited for. Raises OutputError if the file exists and not ``force``, if there is no room, or if the
    folder cannot be written to.
    """
    check_output(path, force=force, size=size)
    wait = wait or os.path.lexists(path)
    temporary = path.with_name(f".lorapipe-{secrets.token_hex(8)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        # Here too: Ctrl-C may come as soon as the file is there.
        try:
            descriptor = os.open(temporary, flags, 0o666)
        except OSError as error:
            raise OutputError(f"{path}: cannot write to its folder: {error.strerror}") from error
        # With its name, so that who writes can read it again by that before it counts.
        with open(temporary, "w+b", opener=lambda _name, _flags: descriptor) as file:
            yield file
            file.flush()
            if wait:
                os.fsync(file.fileno())
        if check is None:
            _install(temporary, path, force)
        else:
            with locked(path.parent):
                check()
                _install(temporary, path, force)
    except OSError as error:
        if error.errno in _FULL:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _install(temporary: Path, path: Path, force: bool) -> None:
    """Rename; without ``force`` in such a way that a file which appeared meanwhile stays."""
    try:
        if force:
            with suppress(OSError):
                # A link is replaced; the permissions of what it leads to are not the new file's.
                if stat.S_ISREG(mode := path.lstat().st_mode):
                    temporary.chmod(stat.S_IMODE(mode))
            temporary.replace(path)
            return
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            raise
        except OSError:  # file systems without hard links
            if os.path.lexists(path):
                raise FileExistsError from None
            temporary.replace(path)
    except FileExistsError as error:
        raise OutputError(
            f"{path}: another program has just written it; give --force to replace it"
        ) from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be replaced: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power failure, where the system has that (not on Windows)."""
    if os.name == "nt":
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
