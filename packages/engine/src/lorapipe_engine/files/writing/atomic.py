"""Writing files so that nothing is ever half written, nothing is replaced by accident, and no link is followed.

Every output of every command goes through here. A file is made under a random name that did not exist, in a folder
held open, and renamed when it is whole: a link under the final name is replaced or refused, never written through, and
other names of a file (hard links) keep what they had.
"""

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
from lorapipe_engine.files.writing.locking import locked
from lorapipe_engine.files.writing.openfolder import OpenFolder, open_folder

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


def probe_folder(folder: Path) -> None:
    """Raise OSError if no file can be made in a folder."""
    with open_folder(folder) as place:
        name = temporary_name()
        os.close(place.create(name))
        place.unlink(name)


def temporary_name() -> str:
    """A hidden name for an unfinished file, which nobody can guess."""
    return f".lorapipe-{secrets.token_hex(8)}.tmp"


@contextmanager
def atomic_write(
    path: Path,
    *,
    force: bool = False,
    size: int = 0,
    check: Callable[[], None] | None = None,
    wait: bool = True,
    inside: Path | None = None,
) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends well, and leaves no trace when it does not.

    The bytes go to a hidden file in the same folder, which is flushed to the disk and then renamed, so that
    another program sees the old file or the whole new one. ``size``: bytes known to be needed, checked first.
    ``check`` is called right before the rename, with the folder locked against other tools (:mod:`locking`): what it
    raises keeps the old file. Without ``wait`` a new file is left to the system to bring to the disk, as ``cp`` does:
    a power failure within the next half minute or so may lose it, or leave it cut short. What replaces a file is always
    waited for. ``inside``: a folder above; missing folders below it are made, and none that is a link is followed.
    Raises OutputError if the file exists and not ``force``, if there is no room, or if the folder cannot be written to.
    """
    with _opened(path, force=force, size=size, inside=inside) as folder:
        wait = wait or os.path.lexists(path)
        name = temporary_name()
        try:
            # Here too: Ctrl-C may come as soon as the file is there.
            with _created(folder, name, path) as file:
                yield file
                file.flush()
                _keep_mode(file, folder, path, force)
                if wait:
                    os.fsync(file.fileno())
            if check is None:
                _install(folder, name, path, force)
            else:
                with locked(path.parent):
                    check()
                    _install(folder, name, path, force)
        except OSError as error:
            if error.errno in _FULL:
                raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
            raise
        finally:
            with suppress(OSError):
                folder.unlink(name)
        folder.sync()


def open_growing(path: Path, begin: bytes = b"", *, force: bool, inside: Path | None = None) -> BinaryIO:
    """A file that is there at once, holds ``begin`` and is appended to until it is closed, such as a log.

    It is always a new file, put under its name as :func:`atomic_write` does, so no other file is ever appended to,
    whatever is put in its place while it is open. Raises OutputError.
    """
    with _opened(path, force=force, size=len(begin), inside=inside) as folder:
        name = temporary_name()
        file: BinaryIO | None = None
        try:
            file = _created(folder, name, path)
            file.write(begin)
            file.flush()
            if os.name == "nt":  # an open file cannot be renamed there
                file.close()
            _install(folder, name, path, force)
            if os.name == "nt":
                file = os.fdopen(folder.open_file(path.name, os.O_WRONLY | os.O_APPEND), "ab")
        except BaseException as error:
            if file is not None:
                file.close()
            if isinstance(error, OSError) and error.errno in _FULL:
                raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
            raise
        finally:
            with suppress(OSError):
                folder.unlink(name)
        return file


@contextmanager
def _opened(path: Path, *, force: bool, size: int, inside: Path | None) -> Iterator[OpenFolder]:
    """The folder of an output, which is checked as :func:`check_output` does."""
    if inside is None:
        check_output(path, force=force, size=size)
    try:
        opened = open_folder(path.parent, inside=inside, make=inside is not None)
        folder = opened.__enter__()
    except OSError as error:
        raise OutputError(f"{path}: cannot write to its folder: {error.strerror}") from error
    try:
        if inside is not None:
            check_output(path, force=force, size=size)
        yield folder
    finally:
        opened.__exit__(None, None, None)


def _created(folder: OpenFolder, name: str, path: Path) -> BinaryIO:
    try:
        descriptor = folder.create(name)
    except OSError as error:
        raise OutputError(f"{path}: cannot write to its folder: {error.strerror}") from error
    # With its name, so that who writes can read it again by that before it counts.
    return open(path.with_name(name), "w+b", opener=lambda _name, _flags: descriptor)


def _keep_mode(file: BinaryIO, folder: OpenFolder, path: Path, force: bool) -> None:
    """Give the new file the rights of the one that it replaces."""
    old = folder.lstat(path.name) if force else None
    if old is not None and stat.S_ISREG(old.st_mode):
        with suppress(OSError):
            mode = stat.S_IMODE(old.st_mode) & 0o777
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)
            else:
                Path(file.name).chmod(mode)


def _install(folder: OpenFolder, name: str, path: Path, force: bool) -> None:
    """Rename; without ``force`` in such a way that a file which appeared meanwhile stays."""
    try:
        if force:
            folder.replace(name, path.name)
            return
        try:
            folder.link(name, path.name)
        except FileExistsError:
            raise
        except OSError:  # file systems without hard links
            if folder.lstat(path.name) is not None:
                raise FileExistsError from None
            folder.replace(name, path.name)
    except FileExistsError as error:
        raise OutputError(
            f"{path}: another program has just written it; give --force to replace it"
        ) from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be replaced: {error.strerror}") from error
