"""Changes to a folder's files that can be taken back.

Before a file is changed, the change is noted in a journal in the folder ``.lorapipe`` beside it, and the old file stays
there under its own name, as a link: nothing is copied, and :func:`undo` brings the very file back. Where a file system
has no such links, what the file held stands in the journal. A journal is JSON lines, one change each, named by time,
tool and run. It is on the disk before the first file of a batch changes, and a file is changed by a rename, so each
file is the old or the new one at any time. Two tools that work on one folder wait for each other (``locked``).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorapipe_engine.errors import InputError, LoraError, OutputError
from lorapipe_engine.locking import locked

HIDDEN = ".lorapipe"
_ENDING = ".jsonl"
_KEPT = ".kept"
_OLD = ".old"  # folder of a run's old files
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


@dataclass(frozen=True)
class Change:
    """New bytes for a file of a folder. ``before`` is what it holds now, None where there is no such file."""

    name: str
    before: bytes | None
    after: bytes


class ChangedMeanwhile(OutputError):
    """Another program wrote the file since it was read; it was left as that program has it."""


# -------------------------------------------------------------------------------- changing


class Journal:
    """The journal of one run of a tool, in as many folders as it changes."""

    def __init__(self, tool: str) -> None:
        now = time.time_ns()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 1_000_000_000))
        self.run = f"{stamp}.{now % 1_000_000_000:09d}-{tool}-{secrets.token_hex(3)}"
        self.changed = 0

    @contextmanager
    def folder(self, path: Path) -> Iterator[Folder]:
        """A folder to change files in, locked against other tools until the block ends. Raises OutputError."""
        with locked(path):
            desk = Folder(path, self.run)
            try:
                yield desk
            finally:
                self.changed += desk.changed
                desk.close()


class Folder:
    """A locked folder. Names are of files in it. Nothing is created in it before the first change."""

    def __init__(self, path: Path, run: str) -> None:
        self.path = path
        self.changed = 0
        self._run = run
        self._hidden = path / HIDDEN
        self._descriptor: int | None = None
        self._links: bool | None = None  # whether the file system has them, once that was tried
        # Texts, for the paths of thousands of files: path objects take longer than the system's calls.
        self._prefix = os.path.join(path, "")  # noqa: PTH118
        self._temporary = os.path.join(self._hidden, f"{secrets.token_hex(6)}.tmp")  # noqa: PTH118
        self._old = os.path.join(self._hidden, f"{run}{_OLD}", "")  # noqa: PTH118
        self._mode: int | None = None

    def write(self, changes: Sequence[Change]) -> dict[str, LoraError]:
        """Write files, each whole or not at all; the errors of those that were left as they are.

        A file that no longer holds ``before`` is one of those (:class:`ChangedMeanwhile`). Raises OutputError where
        the journal cannot be written; nothing was changed then.
        """
        if not changes:
            return {}
        if self._links is None:
            self._links = self._try_link(next((c.name for c in changes if c.before is not None), None))
        self._write_lines(map(self._entry, changes))
        failures: dict[str, LoraError] = {}
        for change in changes:
            try:
                self._replace(change)
                self.changed += 1
            except LoraError as error:
                failures[change.name] = error
            except OSError as error:
                failures[change.name] = OutputError(
                    f"{self.path / change.name}: cannot be written ({error.strerror})"
                )
        return failures

    def remove(self, name: str) -> None:
        """Take a file away; it is kept in the hidden folder for :func:`undo`. Raises OutputError."""
        kept = f"{self._run}-{secrets.token_hex(6)}{_KEPT}"
        self._note([{"name": name, "kept": kept}])
        self._move(self.path / name, self._hidden / kept)

    def rename(self, name: str, new: str) -> None:
        """Give a file another name, which must be free. Raises OutputError."""
        self._note([{"name": name, "renamed": new}])
        self._move(self.path / name, self.path / new)

    def close(self) -> None:
        """Close the journal."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _move(self, old: Path, new: Path) -> None:
        try:
            _move(old, new)
        except OSError as error:
            raise OutputError(f"{old}: cannot be moved to {new} ({error.strerror})") from error
        self.changed += 1

    def _note(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write entries to the journal and wait until they are on the disk."""
        self._write_lines(map(json.dumps, entries))

    def _write_lines(self, entries: Iterable[str]) -> None:
        lines = "".join(f"{entry}\n" for entry in entries).encode("ascii")
        try:
            if self._descriptor is None:
                self._hidden.mkdir(exist_ok=True)
                _clear(self._hidden)
                self._descriptor = os.open(self._hidden / f"{self._run}{_ENDING}", _APPEND, 0o666)
            _write_all(self._descriptor, lines)
            os.fsync(self._descriptor)
        except OSError as error:
            raise OutputError(f"{self.path}: its files cannot be changed ({error.strerror})") from error

    def _entry(self, change: Change) -> str:
        """A change as the journal has it, before it is made."""
        if self._links and change.before is not None:
            # Written by hand: the encoder's start takes longer than all the rest.
            return f'{{"name": {json.dumps(change.name)}, "old": true, "after": "{digest(change.after)}"}}'
        return json.dumps({**self._held(change), "after": digest(change.after)})

    def _try_link(self, name: str | None) -> bool | None:
        """Whether a file can have a second name in the hidden folder; None where there is no file yet."""
        if name is None:
            return None
        trial = f"{self._temporary}.link.tmp"
        try:
            self._hidden.mkdir(exist_ok=True)
            os.link(self._prefix + name, trial, follow_symlinks=False)
            os.unlink(trial)  # noqa: PTH108
        except (OSError, NotImplementedError):
            return False
        return True

    def _keep(self, change: Change, path: str) -> None:
        """Keep the old file by a second name; where that cannot be, note what it holds."""
        try:
            os.link(path, self._old + change.name, follow_symlinks=False)
        except FileNotFoundError:
            os.mkdir(self._old)  # noqa: PTH102
            self._keep(change, path)
        except OSError:  # this run changed it before, or it belongs to somebody else
            self._note([{**self._held(change), "after": digest(change.after)}])

    def _held(self, change: Change) -> dict[str, Any]:
        """A file and its bytes as an entry: as text where they are, else in base 64."""
        entry: dict[str, Any] = {"name": change.name}
        path = self._prefix + change.name
        if change.before is not None and os.path.islink(path):  # noqa: PTH114
            # The link is replaced, what it leads to stays.
            entry["link"] = os.readlink(path)  # noqa: PTH115
        try:
            return {**entry, "before": None if change.before is None else change.before.decode()}
        except UnicodeDecodeError:
            return {**entry, "before_base64": base64.b64encode(change.before or b"").decode("ascii")}

    def _replace(self, change: Change) -> None:
        path = self._prefix + change.name
        descriptor = os.open(self._temporary, _NEW_FILE, 0o666)
        try:
            try:
                _write_all(descriptor, change.after)
                # A program that takes no part in the locking may have written it since.
                found, mode = _look(path)
                if found != change.before:
                    raise ChangedMeanwhile(
                        f"{path}: another program has just written it, so it is left alone; run this again"
                    )
                self._set_mode(descriptor, mode)
            finally:
                os.close(descriptor)
            if change.before is None:
                _move(Path(self._temporary), Path(path))
            else:
                if self._links:
                    self._keep(change, path)
                os.replace(self._temporary, path)  # noqa: PTH105
        except BaseException:
            with suppress(OSError):
                os.unlink(self._temporary)  # noqa: PTH108
            raise

    def _set_mode(self, descriptor: int, mode: int | None) -> None:
        if self._mode is None:
            self._mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode not in (None, self._mode) and sys.platform != "win32":
            os.fchmod(descriptor, mode)


def _clear(hidden: Path) -> None:
    """Remove what a killed run left; nobody else is at work there while the folder is locked."""
    for path in hidden.glob("*.tmp"):
        with suppress(OSError):
            path.unlink()


def read_bytes(path: Path | str) -> bytes | None:
    """What a file holds; None where there is none. Raises OSError."""
    return _look(path)[0]


def _look(path: Path | str) -> tuple[bytes | None, int | None]:
    """A file's bytes and its mode; None for both where there is none."""
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        return None, None
    try:
        facts = os.fstat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            raise IsADirectoryError(21, "a folder, not a file", str(path))
        blocks = [os.read(descriptor, facts.st_size + 1)]
        while len(blocks[-1]) > (facts.st_size if len(blocks) == 1 else 0):  # it grows, or has no size
            blocks.append(os.read(descriptor, 1 << 16))
        return blocks[0] if len(blocks) == 1 else b"".join(blocks), stat.S_IMODE(facts.st_mode)
    finally:
        os.close(descriptor)


def digest(data: bytes) -> str:
    """A short fingerprint of a file's bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _write_new(path: Path, data: bytes, mode: int | None) -> None:
    descriptor = os.open(path, _NEW_FILE, 0o666)
    try:
        _write_all(descriptor, data)
        if mode is not None and sys.platform != "win32":
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _mode(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def _move(old: Path, new: Path) -> None:
    """Rename to a name that must be free; a file that appeared there meanwhile stays."""
    try:
        os.link(old, new, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # file systems without hard links
        if os.path.lexists(new):
            raise FileExistsError(17, "there is another file of that name", str(new)) from None
        old.rename(new)
        return
    old.unlink()


# -------------------------------------------------------------------------------- taking back


@dataclass
class Undone:
    """What :func:`undo` did: the run, the files that are as before it, and what could not be put back."""

    run: str
    restored: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def undo(folders: Sequence[Path], tool: str, *, dry_run: bool = False) -> Undone:
    """Take the newest run of ``tool`` in ``folders`` (and below them) back, byte for byte.

    A file that was changed since that run is left as it is and told in ``failures``; the journal is kept then. May be
    repeated to go further back. Raises InputError where there is nothing to take back.
    """
    found = sorted(
        (path for folder in folders for path in _journals(folder, tool)), key=lambda path: path.name
    )
    if not found:
        raise InputError(f"{folders[0]}: no run of {tool} to undo there")
    result = Undone(found[-1].name.removesuffix(_ENDING))
    for journal in sorted({path for path in found if path.name == found[-1].name}):
        folder = journal.parent.parent
        with locked(folder):
            _undo_folder(journal, folder, result, dry_run)
    return result


def _journals(folder: Path, tool: str) -> Iterator[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    for parent, names, _ in os.walk(folder):
        if HIDDEN in names:
            yield from Path(parent, HIDDEN).glob(f"*-{tool}-*{_ENDING}")
        names[:] = [name for name in names if not name.startswith(".")]


def _undo_folder(journal: Path, folder: Path, result: Undone, dry_run: bool) -> None:
    failures: list[str] = []
    for entry in reversed(_entries(journal)):
        try:
            name = _checked(entry["name"])
            old = journal.with_suffix(_OLD) / name if "old" in entry else None
            if (
                _bring_back(old, folder / name, entry, dry_run)
                if old
                else _put_back(folder, name, entry, dry_run)
            ):
                result.restored.append(folder / name)
        except LoraError as error:
            failures.append(f"{error}; see {journal}")
        except OSError as error:
            failures.append(f"{folder / entry['name']}: cannot be put back ({error.strerror})")
    result.failures += failures
    if dry_run:
        return
    if hasattr(os, "sync"):
        os.sync()  # the journal goes when the files are safe
    if failures:
        journal.replace(journal.with_name(f"{journal.name}{_KEPT}"))
        return
    journal.unlink()
    _clear(journal.parent)
    with suppress(OSError):
        journal.with_suffix(_OLD).rmdir()
    with suppress(OSError):  # other runs have journals there
        journal.parent.rmdir()


def _entries(journal: Path) -> list[dict[str, Any]]:
    """The changes in a journal. A last line that is not whole never came to be a change."""
    lines = journal.read_bytes().split(b"\n")
    try:
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        raise InputError(f"{journal}: damaged; nothing was taken back") from error


def _checked(name: Any) -> str:
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise InputError(f"{name!r}: not a file of this folder")
    return name


def _bring_back(old: Path, path: Path, entry: Mapping[str, Any], dry_run: bool) -> bool:
    """Give an old file its place again; False where it had never left it. Raises OutputError or OSError."""
    if not os.path.lexists(old):
        return False
    now = read_bytes(path)
    if now == read_bytes(old) or (os.path.lexists(path) and os.path.samestat(old.lstat(), path.lstat())):
        if not dry_run:
            old.unlink()
        return False
    if now is None or digest(now) != entry["after"]:
        raise OutputError(f"{path}: changed since, left alone")
    if not dry_run:
        old.replace(path)
    return True


def _put_back(folder: Path, name: str, entry: Mapping[str, Any], dry_run: bool) -> bool:
    """Undo a change; False where it had never been made. Raises LoraError or OSError."""
    path = folder / name
    if "kept" in entry or "renamed" in entry:
        place = (
            folder / HIDDEN / _checked(entry["kept"])
            if "kept" in entry
            else folder / _checked(entry["renamed"])
        )
        if not os.path.lexists(place):
            return False
        if os.path.lexists(path):
            raise OutputError(f"{path}: there is a new file of that name, left alone")
        if not dry_run:
            _move(place, path)
        return True
    before = _bytes(entry)
    now = read_bytes(path)
    if now == before:
        return False
    if now is None or digest(now) != entry["after"]:
        raise OutputError(f"{path}: changed since, left alone")
    if not dry_run:
        if before is None:
            path.unlink()
        else:
            temporary = folder / HIDDEN / f"{secrets.token_hex(6)}.tmp"
            if "link" in entry:
                temporary.symlink_to(entry["link"])
            else:
                _write_new(temporary, before, _mode(path))
            temporary.replace(path)
    return True


def _bytes(entry: Mapping[str, Any]) -> bytes | None:
    if "before_base64" in entry:
        return base64.b64decode(entry["before_base64"])
    before = entry["before"]
    return before.encode() if before is not None else None
