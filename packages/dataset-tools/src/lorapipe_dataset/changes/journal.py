"""Changes to a folder's files that can be taken back.

Before a file is changed, the change is noted in a journal in the folder ``.lorapipe`` beside it, and the old file stays
there under its own name: nothing is copied, and :mod:`~lorapipe_dataset.changes.undo` brings the very file back. Where
a file system has neither links nor exchanges of names, what the file held stands in the journal. A journal is JSON
lines, one change each, named by time, tool and run. It is on the disk before the first file of a batch changes, and a
file is changed by a rename, so each file is the old or the new one at any time. Two tools that work on one folder wait
for each other (``locked``).
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lorapipe_dataset.changes.filebytes import NEW_FILE, Stamp, digest, move, read_all, stamp_of, write_all
from lorapipe_dataset.changes.staging import Staging
from lorapipe_dataset.changes.swapping import Swapper, find_swapper
from lorapipe_engine.errors import LoraError, OutputError
from lorapipe_engine.files.locking import locked

HIDDEN = ".lorapipe"
ENDING = ".jsonl"
KEPT = ".kept"
OLD = ".old"  # folder of a run's old files
MANY = 64  # changes from which staging them together pays
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class Change(NamedTuple):
    """New bytes for a file of a folder. ``before`` is what it holds now, None where there is no such file. ``stamp``:
    what :func:`~lorapipe_dataset.changes.filebytes.read_stamped` gave with it; without one the file is read once more
    before it is replaced.
    """

    name: str
    before: bytes | None
    after: bytes
    stamp: Stamp | None = None


class ChangedMeanwhile(OutputError):
    """Another program wrote the file since it was read; it was left as that program has it."""


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


@dataclass
class Begun:
    """Changes that are half made: the new files lie ready."""

    changes: Sequence[Change]
    staging: Staging | None = None


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
        self._old = os.path.join(self._hidden, f"{run}{OLD}", "")  # noqa: PTH118
        self._mode: int | None = None
        self._swapper: Swapper | None = None
        self._begun: list[Staging] = []

    def write(self, changes: Sequence[Change]) -> dict[str, LoraError]:
        """Write files, each whole or not at all; the errors of those that were left as they are.

        A file that no longer holds ``before`` is one of those (:class:`ChangedMeanwhile`). Raises OutputError where
        the journal cannot be written; nothing was changed then.
        """
        return self.finish(self.begin(changes))

    def begin(self, changes: Sequence[Change]) -> Begun:
        """The first half of :meth:`write`: the journal, and new files that no one sees yet on their way to the disk."""
        begun = Begun(changes)
        if not changes:
            return begun
        if self._links is None:
            self._try(next((c.name for c in changes if c.before is not None), None))
        swapper = self._swapper if len(changes) >= MANY else None
        entries = [self._entry(change, staged=swapper is not None) for change in changes]
        journal = self._write_lines(entries, wait=swapper is None)
        if swapper is not None:
            begun.staging = Staging(swapper, self._old)
            self._begun.append(begun.staging)
            files = ((change.name, change.after) for change in changes if change.before is not None)
            begun.staging.prepare(files, journal)
        return begun

    def finish(self, begun: Begun) -> dict[str, LoraError]:
        """The second half: each file takes its place. Waits for the disk."""
        if begun.staging is not None:
            try:
                begun.staging.wait()
            except OSError as error:
                raise self._unwritable(error) from error
        failures: dict[str, LoraError] = {}
        for change in begun.changes:
            try:
                if not self._swap(change, begun.staging):
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
        kept = f"{self._run}-{secrets.token_hex(6)}{KEPT}"
        self._note([{"name": name, "kept": kept}])
        self._move(self.path / name, self._hidden / kept)

    def rename(self, name: str, new: str) -> None:
        """Give a file another name, which must be free. Raises OutputError."""
        self._note([{"name": name, "renamed": new}])
        self._move(self.path / name, self.path / new)

    def close(self) -> None:
        """Close the journal; what was begun and not finished is as if it had not been."""
        for staging in self._begun:
            staging.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _move(self, old: Path, new: Path) -> None:
        try:
            move(old, new)
        except OSError as error:
            raise OutputError(f"{old}: cannot be moved to {new} ({error.strerror})") from error
        self.changed += 1

    def _note(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write entries to the journal and wait until they are on the disk."""
        self._write_lines(map(json.dumps, entries))

    def _write_lines(self, entries: Iterable[str], *, wait: bool = True) -> int:
        """Write entries to the journal; its descriptor. Raises OutputError."""
        lines = "".join(f"{entry}\n" for entry in entries).encode("ascii")
        try:
            if self._descriptor is None:
                self._hidden.mkdir(exist_ok=True)
                clear(self._hidden)
                self._descriptor = os.open(self._hidden / f"{self._run}{ENDING}", _APPEND, 0o666)
            write_all(self._descriptor, lines)
            if wait:
                os.fsync(self._descriptor)
        except OSError as error:
            raise self._unwritable(error) from error
        return self._descriptor

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"{self.path}: its files cannot be changed ({error.strerror})")

    def _entry(self, change: Change, *, staged: bool) -> str:
        """A change as the journal has it, before it is made."""
        if (self._links or staged) and change.before is not None:
            # Written by hand: the encoder's start takes longer than all the rest.
            name, after = json.dumps(change.name), digest(change.after)
            return f'{{"name": {name}, "old": true, "inode": {self._inode(change)}, "after": "{after}"}}'
        return json.dumps({**self._held(change), "after": digest(change.after)})

    def _inode(self, change: Change) -> int:
        """The number by which the old file can be told from the new one, wherever they lie."""
        if change.stamp is not None:
            return change.stamp.inode
        try:
            return os.stat(self._prefix + change.name).st_ino  # noqa: PTH116
        except OSError:
            return 0

    def _try(self, name: str | None) -> None:
        """Find out whether a file can have a second name in the hidden folder, and whether names can be exchanged."""
        if name is None:
            return
        trial = f"{self._temporary}.link.tmp"
        self._links = False
        with suppress(OSError, NotImplementedError):
            self._hidden.mkdir(exist_ok=True)
            self._swapper = find_swapper(self._hidden)
            os.link(self._prefix + name, trial, follow_symlinks=False)
            os.unlink(trial)  # noqa: PTH108
            self._links = True

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

    def _swap(self, change: Change, staging: Staging | None) -> bool:
        """Give a staged file its place; False where there is none, or the file system refuses."""
        staged = None if staging is None else staging.ready(change.name)
        if staging is None or staged is None:
            return False
        path = self._prefix + change.name
        try:
            mode = _checked_mode(path, change)
            if self._mode is None:
                self._mode = stat.S_IMODE(os.stat(staged).st_mode)  # noqa: PTH116
            if mode is not None and stat.S_IMODE(mode) != self._mode:
                os.chmod(staged, stat.S_IMODE(mode))  # noqa: PTH101
        except BaseException:
            staging.drop(change.name)
            raise
        try:
            staging.swap(change.name, path)
        except OSError:
            with suppress(OSError):  # it is the new one still
                os.unlink(staged)  # noqa: PTH108
            return False
        return True

    def _replace(self, change: Change) -> None:
        path = self._prefix + change.name
        try:
            descriptor = os.open(self._temporary, NEW_FILE, 0o666)
            try:
                write_all(descriptor, change.after)
                # A program that takes no part in the locking may have written it since.
                self._set_mode(descriptor, _checked_mode(path, change))
            finally:
                os.close(descriptor)
            if change.before is None:
                move(Path(self._temporary), Path(path))
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
        if mode is not None and stat.S_IMODE(mode) != self._mode and sys.platform != "win32":
            os.fchmod(descriptor, stat.S_IMODE(mode))


def _checked_mode(path: str, change: Change) -> int | None:
    """The mode of a file that is as it was read, None where there is none. Raises ChangedMeanwhile, or OSError."""
    if change.stamp is not None and change.stamp.sure:
        with suppress(FileNotFoundError):
            facts = os.stat(path)  # noqa: PTH116
            if stamp_of(facts) == change.stamp:
                return facts.st_mode
    found, seen = read_all(path)
    if found != change.before:
        raise ChangedMeanwhile(
            f"{path}: another program has just written it, so it is left alone; run this again"
        )
    return None if seen is None else seen.st_mode


def clear(hidden: Path) -> None:
    """Remove what a killed run left; nobody else is at work there while the folder is locked."""
    for path in hidden.glob("*.tmp"):
        with suppress(OSError):
            path.unlink()
