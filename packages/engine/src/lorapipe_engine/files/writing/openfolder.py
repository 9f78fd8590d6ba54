"""Folders held open: what is done in them happens in them, whatever is put in the place of their names meanwhile.

Where the system has no calls relative to an open folder (Windows), paths are used, and links are looked for before.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorapipe_engine.errors import OutputError

_RELATIVE = {os.open, os.mkdir, os.stat, os.unlink, os.rename, os.link} <= os.supports_dir_fd
# O_PATH: a folder may be written to without being listed.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
PAUSES: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8) if os.name == "nt" else ()  # seconds between tries
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_BYTES = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | _NO_LINK


class OpenFolder:
    """A folder that is open. ``path`` is its name; the names given to the methods are plain names in it."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path = path
        self._descriptor = descriptor

    def _name(self, name: str) -> str | Path:
        return self.path / name if self._descriptor is None else name

    def mkdir(self, name: str) -> None:
        """Make a folder. Raises FileExistsError, for a link too."""
        os.mkdir(self._name(name), dir_fd=self._descriptor)

    def create(self, name: str) -> int:
        """The descriptor of a new file for reading and writing. Raises FileExistsError, for a link too."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _BYTES
        return os.open(self._name(name), flags, 0o666, dir_fd=self._descriptor)

    def open_file(self, name: str, flags: int = os.O_RDONLY) -> int:
        """The descriptor of a regular file that is there. Raises OSError, for a link or a pipe too."""
        status = self.lstat(name)
        if status is None:
            raise FileNotFoundError(2, "no such file", str(self.path / name))
        # Without waiting for who writes, should it be exchanged for a pipe now.
        flags |= _BYTES | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(self._name(name), flags, dir_fd=self._descriptor)
        opened = os.fstat(descriptor)
        if is_link(status) or not stat.S_ISREG(opened.st_mode):
            os.close(descriptor)
            raise OSError(22, "is a link, or no regular file", str(self.path / name))
        return descriptor

    def lstat(self, name: str) -> os.stat_result | None:
        """What stands under a name, of a link the link itself; None for nothing."""
        with suppress(FileNotFoundError):
            return os.stat(self._name(name), dir_fd=self._descriptor, follow_symlinks=False)
        return None

    def replace(self, old: str, new: str) -> None:
        """Rename; what has the new name is replaced, a link too."""
        for wait in PAUSES:
            # Windows refuses while a virus scanner or an indexer has the file open, for a moment most often.
            with suppress(PermissionError):
                self._replace(old, new)
                return
            time.sleep(wait)
        self._replace(old, new)

    def _replace(self, old: str, new: str) -> None:
        os.replace(self._name(old), self._name(new), src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def link(self, old: str, new: str) -> None:
        """A second name for a file. Raises FileExistsError, OSError where the file system has no such names."""
        if self._descriptor is None:
            os.link(self._name(old), self._name(new))
            return
        os.link(old, new, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        """Remove a file or a link, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(self._name(name), dir_fd=self._descriptor)

    def names(self) -> list[str]:
        """The names in the folder, sorted."""
        if self._descriptor is None:
            return sorted(path.name for path in self.path.iterdir())
        descriptor = os.open(".", os.O_RDONLY | getattr(os, "O_DIRECTORY", 0), dir_fd=self._descriptor)
        try:
            return sorted(os.listdir(descriptor))  # noqa: PTH208 - of a descriptor
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """Make names last through a power failure, where the system has that (not on Windows)."""
        if self._descriptor is None:
            return
        with suppress(OSError):
            descriptor = os.open(".", os.O_RDONLY, dir_fd=self._descriptor)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def is_link(status: os.stat_result) -> bool:
    """Whether ``os.lstat`` told of a link; on Windows also of a junction."""
    reparse = getattr(stat, "FILE_ATTRIBUTE_REPARSE_POINT", 0)
    return stat.S_ISLNK(status.st_mode) or bool(getattr(status, "st_file_attributes", 0) & reparse)


def is_link_path(path: Path) -> bool:
    """Whether a path itself is a link, dangling or not."""
    try:
        return is_link(os.lstat(path))
    except OSError:
        return False


@contextmanager
def open_folder(path: Path, *, inside: Path | None = None, make: bool = False) -> Iterator[OpenFolder]:
    """Open a folder. ``inside``: a folder above it that the user named; below that no link is followed.

    With ``make``, folders below ``inside`` that are missing are made. Raises OutputError for a link below ``inside``,
    OSError for a folder that cannot be opened.
    """
    steps = path.relative_to(inside).parts if inside is not None else ()
    folder = path if inside is None else inside
    if not _RELATIVE:
        for step in steps:
            folder = folder / step
            _step_by_path(folder, make=make)
        yield OpenFolder(path, None)
        return
    descriptor = os.open(folder, _FOLDER)
    try:
        for step in steps:
            folder = folder / step
            before, descriptor = descriptor, _step(descriptor, step, folder, make=make)
            os.close(before)
        yield OpenFolder(path, descriptor)
    finally:
        os.close(descriptor)


def _step(descriptor: int, name: str, folder: Path, *, make: bool) -> int:
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=descriptor)
    try:
        return os.open(name, _FOLDER | _NO_LINK, dir_fd=descriptor)
    except OSError as error:
        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        raise _refused(folder, status) or error from None


def _step_by_path(folder: Path, *, make: bool) -> None:
    if make:
        with suppress(FileExistsError):
            folder.mkdir()
    error = _refused(folder, os.lstat(folder))
    if error is not None:
        raise error


def _refused(folder: Path, status: os.stat_result) -> OutputError | None:
    if is_link(status):
        return OutputError(f"{folder}: is a link, which is not followed; take it away")
    if not stat.S_ISDIR(status.st_mode):
        return OutputError(f"{folder}: is a file, not a folder; choose another place")
    return None
