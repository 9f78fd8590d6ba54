"""Folders that are held open, so that what lies in them is reached without following a link.

Datasets come from strangers, links and all, and another program may put a link into a path between two calls. Where the
system can work relative to an open folder (Linux, macOS), each call is made so; elsewhere (Windows) the folder is
looked at before each step, and has to be the one that was opened.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from lorapipe_engine.errors import OutputError

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
PLAIN = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | NOFOLLOW
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN
_READ = os.O_RDONLY | PLAIN | getattr(os, "O_NONBLOCK", 0)  # a pipe without a writer is not waited for
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_REPARSE = 0x400  # FILE_ATTRIBUTE_REPARSE_POINT: junctions are no symbolic links
HAS_DESCRIPTORS = (
    bool(NOFOLLOW) and {os.open, os.stat, os.link, os.unlink, os.mkdir, os.rename} <= os.supports_dir_fd
)
Identity = tuple[int, int]


class LinkRefused(OutputError):
    """A link, or something else that is no folder or plain file, stands where one of ours is needed."""


class NotRegular(OSError):
    """What a name stands for is no plain file."""


class Place:
    """An open folder; its methods take names of what lies in it, and raise OSError.

    ``at`` is what stands in front of a name in the system's calls, ``fd`` their ``dir_fd``. ``path`` is for messages.
    """

    def __init__(self, path: str, fd: int | None, real: str | None = None) -> None:
        self.path = path
        self.fd = fd
        self._real = real or path
        self.at = "" if fd is not None else os.path.join(self._real, "")  # noqa: PTH118
        facts = os.lstat(self._real) if fd is None else os.fstat(fd)
        if not stat.S_ISDIR(facts.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        self.identity: Identity = facts.st_dev, facts.st_ino

    def close(self) -> None:
        """Let go of the folder."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, name: str) -> str:
        """The path of a name, for messages."""
        return os.path.join(self.path, name)  # noqa: PTH118

    def check(self) -> None:
        """Raise LinkRefused if another folder, or a link, has come into its place (where it is not held open)."""
        if self.fd is None:
            facts = os.lstat(self._real)
            if is_link(facts) or (facts.st_dev, facts.st_ino) != self.identity:
                raise LinkRefused(
                    f"{self.path}: another folder or a link has come into its place; left alone"
                )

    def facts(self, name: str) -> os.stat_result | None:
        """What the system says of a name itself, be it a link; None where there is nothing."""
        self.check()
        try:
            return os.stat(self.at + name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def folder(self, name: str, *, make: bool = False, new: bool = False) -> Place:
        """A folder in it, made where it is missing (``make``), or only if it was missing (``new``).

        Raises LinkRefused for a link, FileNotFoundError, or another OSError.
        """
        self.check()
        if make or new:
            with suppress(*(() if new else (FileExistsError,))):
                os.mkdir(self.at + name, dir_fd=self.fd)
        path = self.show(name)
        facts = self.facts(name)
        if facts is not None and is_link(facts):
            raise LinkRefused(f"{path}: a link, which is not followed; put a folder there, or remove it")
        if self.fd is None:
            return Place(path, None, self.at + name)
        return _opened(path, os.open(name, _FOLDER | NOFOLLOW, dir_fd=self.fd))

    def read(self, name: str, most: int | None = None) -> tuple[bytes, os.stat_result] | None:
        """A plain file's bytes and facts; None where there is none. Raises NotRegular for links and all else."""
        self.check()
        if not NOFOLLOW and (facts := self.facts(name)) is not None and is_link(facts):
            raise NotRegular(errno.ELOOP, "a link, not a file", self.show(name))
        try:
            descriptor = os.open(self.at + name, _READ, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK):
                raise NotRegular(errno.ELOOP, "a link, not a file", self.show(name)) from error
            raise
        with os.fdopen(descriptor, "rb") as file:
            seen = os.fstat(descriptor)
            if not stat.S_ISREG(seen.st_mode):
                raise NotRegular(errno.EINVAL, "no plain file", self.show(name))
            if most is not None and seen.st_size > most:
                raise NotRegular(errno.EFBIG, f"larger than {most:,} bytes", self.show(name))
            return file.read(), seen

    def names(self) -> list[str]:
        """The names of what lies in it, sorted."""
        self.check()
        if self.fd is None:
            return sorted(os.listdir(self._real))  # noqa: PTH208
        listed = os.open(".", os.O_RDONLY | getattr(os, "O_DIRECTORY", 0), dir_fd=self.fd)
        try:
            return sorted(os.listdir(listed))  # noqa: PTH208
        finally:
            os.close(listed)

    def create(self, name: str, mode: int = 0o666) -> int:
        """A descriptor of a new file to write. Raises FileExistsError, be it a dangling link."""
        self.check()
        return os.open(self.at + name, NEW_FILE, mode, dir_fd=self.fd)

    def link(self, name: str, other: Place, new: str) -> None:
        """Give a file a second name; a link itself, not what it leads to."""
        self.check()
        other.check()
        os.link(
            self.at + name, other.at + new, src_dir_fd=self.fd, dst_dir_fd=other.fd, follow_symlinks=False
        )

    def replace(self, name: str, other: Place, new: str) -> None:
        """Rename over what has the new name; a link there goes, and what it led to stays."""
        self.check()
        other.check()
        os.replace(self.at + name, other.at + new, src_dir_fd=self.fd, dst_dir_fd=other.fd)

    def move(self, name: str, other: Place, new: str) -> None:
        """Rename to a name that must be free; a file that appeared there meanwhile stays."""
        try:
            self.link(name, other, new)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):  # file systems without hard links
            if other.facts(new) is not None:
                raise FileExistsError(17, "there is another file of that name", other.show(new)) from None
            self.replace(name, other, new)
            return
        self.unlink(name)

    def unlink(self, name: str) -> None:
        """Take a name away; of a link the link itself."""
        self.check()
        os.unlink(self.at + name, dir_fd=self.fd)

    def rmdir(self, name: str) -> None:
        """Take an empty folder away."""
        self.check()
        os.rmdir(self.at + name, dir_fd=self.fd)


def is_link(facts: os.stat_result) -> bool:
    """Whether a name is a symbolic link, or a junction on Windows."""
    return stat.S_ISLNK(facts.st_mode) or bool(getattr(facts, "st_file_attributes", 0) & _REPARSE)


def open_place(path: Path, root: Path | None = None, *, make: bool = False) -> Place:
    """An open folder. Links are followed up to ``root`` (by default ``path``), which the user named, and none below it.

    ``make``: folders that are missing are made. Raises LinkRefused, FileNotFoundError or another OSError.
    """
    base, parts = path, tuple[str, ...]()
    if root is not None and path != root and root in path.parents:
        base, parts = root, path.relative_to(root).parts
    if make:
        base.mkdir(parents=True, exist_ok=True)
    place = _open_named(str(base))
    for part in parts:
        if part == "..":
            place.close()
            raise LinkRefused(f"{path}: leads out of {root}")
        with place:
            inside = place.folder(part, make=make)
        place = inside
    return place


def _open_named(path: str) -> Place:
    if HAS_DESCRIPTORS:
        return _opened(path, os.open(path, _FOLDER))
    return Place(path, None, os.path.realpath(path))


def _opened(path: str, descriptor: int) -> Place:
    try:
        return Place(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
