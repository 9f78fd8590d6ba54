"""Changes to a folder's files that can be taken back.

Before a file is changed, the change is noted in a journal in the folder ``.lorapipe`` beside it, and the old file stays
there under its own name: nothing is copied, and :mod:`~lorapipe_engine.changes.undo` brings the very file back. Where
a file system has neither links nor exchanges of names, what the file held stands in the journal. A journal is JSON
lines, one change each, named by time, tool and run. It is on the disk before the first file of a batch changes, and a
file is changed by a rename, so each file is the old or the new one at any time. Two tools that work on one folder wait
for each other (``locked``).
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
from typing import Any, NamedTuple

from lorapipe_engine.changes.filebytes import Stamp, digest, read_all, stamp_of, write_all
from lorapipe_engine.changes.ledger import Known, remember
from lorapipe_engine.changes.place import (
    PLAIN,
    Identity,
    LinkRefused,
    NotRegular,
    Place,
    is_link,
    open_place,
)
from lorapipe_engine.changes.staging import Staging
from lorapipe_engine.changes.swapping import Swapper, find_swapper, is_temporary, temporary_name
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import InputError, LoraError, OutputError
from lorapipe_engine.files.writing.locking import locked

HIDDEN = ".lorapipe"
ENDING = ".jsonl"
KEPT = ".kept"
OLD = ".old"  # folder of a run's old files
MANY = 64  # changes from which staging them together pays
_APPEND = os.O_WRONLY | os.O_APPEND | PLAIN


class Change(NamedTuple):
    """New bytes for a file of a folder. ``before`` is what it holds now, None where there is no such file. ``stamp``:
    what :func:`~lorapipe_engine.changes.filebytes.read_stamped` gave with it; without one the file is read once more
    before it is replaced.
    """

    name: str
    before: bytes | None
    after: bytes
    stamp: Stamp | None = None


class ChangedMeanwhile(OutputError):
    """Another program wrote the file since it was read; it was left as that program has it."""


@dataclass
class Written:
    """What a run has written in one folder: its journal by number, size and digest, and the folder of old files."""

    journal: Identity | None = None
    old: Identity | None = None
    size: int = 0
    hash: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))


class Journal:
    """The journal of one run of a tool, in as many folders as it changes."""

    def __init__(self, tool: str) -> None:
        now = time.time_ns()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 1_000_000_000))
        self.run = f"{stamp}.{now % 1_000_000_000:09d}-{tool}-{secrets.token_hex(3)}"
        self.changed = 0
        self._written: dict[Identity, Written] = {}
        self._unlisted = False

    @contextmanager
    def folder(self, path: Path, root: Path | None = None, *, make: bool = False) -> Iterator[Folder]:
        """A folder to change files in, locked against other tools until the block ends.

        Links in its path are followed up to ``root`` (by default all: the user named it), and none below. ``make``: it
        is made where it is missing. Raises InputError or OutputError.
        """
        with _open(path, root, make=make) as place, locked(path):
            desk = Folder(path, self.run, place, self._written.setdefault(place.identity, Written()))
            try:
                yield desk
            finally:
                self.changed += desk.changed
                self._unlisted |= desk.close(quietly=self._unlisted)


def _open(path: Path, root: Path | None, *, make: bool) -> Place:
    try:
        return open_place(path, root, make=make)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such folder") from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be {'made' if make else 'opened'} ({error.strerror})") from error


@dataclass
class Begun:
    """Changes that are half made: the new files lie ready."""

    changes: Sequence[Change]
    staging: Staging | None = None


class Folder:
    """A locked folder. Names are of files in it. Nothing is created in it before the first change."""

    def __init__(self, path: Path, run: str, place: Place, written: Written) -> None:
        self.path = path
        self.changed = 0
        self._run = run
        self._place = place
        self._written = written
        self._hidden: Place | None = None
        self._old: Place | None = None
        self._descriptor: int | None = None
        self._links: bool | None = None  # whether the file system has them, once that was tried
        self._linked: dict[str, str] = {}  # names that are links, and what stands in them
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
            with self._writing():
                begun.staging = Staging(swapper, self._open_old())
            self._begun.append(begun.staging)
            files = (
                (c.name, c.after) for c in changes if c.before is not None and c.name not in self._linked
            )
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
        self._note([{"name": name, "kept": kept, **self._file(name)}])
        self._move(name, self._open_hidden(), kept)

    def remove_all(self, files: Mapping[str, Identity]) -> dict[str, LoraError]:
        """Take files away that are still the ones of those numbers; the errors of those that stay where they are.

        The journal is brought to the disk once for all. Raises OutputError where it cannot be written.
        """
        failures: dict[str, LoraError] = {}
        rows, entries = [], []
        for name, identity in files.items():
            with self._writing():
                facts = self._place.facts(name)
            if facts is None or (facts.st_dev, facts.st_ino) != identity:
                failures[name] = ChangedMeanwhile("another file has come into its place")
                continue
            kept = f"{self._run}-{secrets.token_hex(6)}{KEPT}"
            rows.append((name, kept))
            entries.append({"name": name, "kept": kept, **self._file(name)})
        self._note(entries)
        for name, kept in rows:
            try:
                self._move(name, self._open_hidden(), kept)
            except LoraError as error:
                failures[name] = error
        return failures

    def rename(self, name: str, new: str) -> None:
        """Give a file another name, which must be free. Raises OutputError."""
        self._note([{"name": name, "renamed": new, **self._file(name)}])
        self._move(name, self._place, new)

    def close(self, *, quietly: bool = False) -> bool:
        """Close the journal; what was begun and not finished is as if it had not been.

        Returns whether the list of the user's runs could not be written, which is said unless ``quietly``.
        """
        for staging in self._begun:
            staging.close()
        failed = False
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            failed = self._remember(closed=True) is not None
            if failed and not quietly:
                say(
                    f"warning: this run cannot be listed as yours; to undo it, name it: --undo --run {self._run}"
                )
        for place in (self._old, self._hidden):
            if place is not None:
                place.close()
        return failed

    def _file(self, name: str) -> dict[str, Any]:
        """What tells a file that is moved, wherever it lies: its number, and what stands in it if it is a link."""
        with self._writing():
            facts = self._place.facts(name)
            if facts is None:
                return {}
            target = self._target(name) if is_link(facts) else None
            return {"inode": facts.st_ino, **({} if target is None else {"link": target})}

    def _target(self, name: str) -> str:
        return os.readlink(self._place.at + name, dir_fd=self._place.fd)

    def _move(self, name: str, other: Place, new: str) -> None:
        try:
            self._place.move(name, other, new)
        except OSError as error:
            raise OutputError(
                f"{self.path / name}: cannot be moved to {other.show(new)} ({error.strerror})"
            ) from error
        self.changed += 1

    def _note(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write entries to the journal and wait until they are on the disk."""
        self._write_lines(map(json.dumps, entries))

    def _write_lines(self, entries: Iterable[str], *, wait: bool = True) -> int:
        """Write entries to the journal; its descriptor. Raises OutputError."""
        lines = "".join(f"{entry}\n" for entry in entries).encode("ascii")
        with self._writing():
            if self._descriptor is None:
                self._descriptor = self._open_journal()
            write_all(self._descriptor, lines)
            self._written.hash.update(lines)
            self._written.size += len(lines)
            if wait:
                os.fsync(self._descriptor)
            return self._descriptor

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Errors of the system as OutputErrors."""
        try:
            yield
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"{self.path}: its files cannot be changed ({error.strerror})")

    # ------------------------------------------------------------------------ the hidden folder

    def _open_hidden(self) -> Place:
        if self._hidden is None:
            self._hidden = self._place.folder(HIDDEN, make=True)
            clear(self._hidden)
        return self._hidden

    def _open_old(self) -> Place:
        """The folder of the run's old files: a new one the first time, then the same."""
        if self._old is None:
            made = self._written.old is None
            old = self._open_hidden().folder(f"{self._run}{OLD}", new=made)
            if not made and old.identity != self._written.old:
                old.close()
                raise LinkRefused(f"{old.path}: another folder has come into its place; left alone")
            self._old, self._written.old = old, old.identity
        return self._old

    def _open_journal(self) -> int:
        """The journal: a new file the first time, then the same, to which lines are added."""
        name, hidden = f"{self._run}{ENDING}", self._open_hidden()
        made = self._written.journal is None
        new = os.O_CREAT | os.O_EXCL if made else 0
        hidden.check()
        descriptor = os.open(hidden.at + name, _APPEND | new, 0o666, dir_fd=hidden.fd)
        facts = os.fstat(descriptor)
        if made:
            self._written.journal = facts.st_dev, facts.st_ino
            self._remember(closed=False)
        elif (facts.st_dev, facts.st_ino) != self._written.journal or facts.st_nlink != 1:
            os.close(descriptor)
            raise LinkRefused(f"{hidden.show(name)}: another file has come into its place; left alone")
        return descriptor

    def _remember(self, *, closed: bool) -> Exception | None:
        """Put the journal into the list of the user's runs; the error where that cannot be."""
        written = self._written
        inode = written.journal[1] if written.journal else 0
        known = Known(inode, written.size, written.hash.hexdigest()) if closed else Known(inode)
        try:
            remember(os.path.realpath(self.path), self._run, known)
        except (OSError, LoraError) as error:
            return error
        return None

    # ------------------------------------------------------------------------ entries

    def _entry(self, change: Change, *, staged: bool) -> str:
        """A change as the journal has it, before it is made."""
        inode = self._inode(change)
        if (self._links or staged) and change.before is not None and inode:
            # Written by hand: the encoder's start takes longer than all the rest.
            name, after = json.dumps(change.name), digest(change.after)
            return f'{{"name": {name}, "old": true, "inode": {inode}, "after": "{after}"}}'
        return json.dumps({**self._held(change), "after": digest(change.after)})

    def _inode(self, change: Change) -> int:
        """The number by which the old file can be told from the new one, wherever they lie; 0 for a link, and where
        there is none.
        """
        if change.stamp is not None:
            return change.stamp.inode
        with self._writing():
            facts = self._place.facts(change.name)
            if facts is not None and is_link(facts):
                self._linked[change.name] = self._target(change.name)
        return 0 if facts is None or is_link(facts) else facts.st_ino

    def _try(self, name: str | None) -> None:
        """Find out whether a file can have a second name in the hidden folder, and whether names can be exchanged."""
        if name is None:
            return
        trial = temporary_name()
        self._links = False
        with suppress(OSError, NotImplementedError):
            hidden = self._open_hidden()
            self._swapper = find_swapper(hidden)
            self._place.link(name, hidden, trial)
            hidden.unlink(trial)
            self._links = True

    def _keep(self, change: Change) -> None:
        """Keep the old file by a second name; where that cannot be, note what it holds."""
        try:
            self._place.link(change.name, self._open_old(), change.name)
        except OSError:  # this run changed it before, or it belongs to somebody else
            self._note([{**self._held(change), "after": digest(change.after)}])

    def _held(self, change: Change) -> dict[str, Any]:
        """A file and its bytes as an entry: as text where they are, else in base 64."""
        entry: dict[str, Any] = {"name": change.name}
        if change.before is not None and change.name in self._linked:
            # The link is replaced, what it leads to stays.
            entry["link"] = self._linked[change.name]
        try:
            return {**entry, "before": None if change.before is None else change.before.decode()}
        except UnicodeDecodeError:
            return {**entry, "before_base64": base64.b64encode(change.before or b"").decode("ascii")}

    # ------------------------------------------------------------------------ the change itself

    def _swap(self, change: Change, staging: Staging | None) -> bool:
        """Give a staged file its place; False where there is none, or the file system refuses."""
        name = change.name
        if staging is None or not staging.ready(name):
            return False
        try:
            mode = self._checked_mode(change)
            if self._mode is None:
                staged = staging.place.facts(name)
                self._mode = None if staged is None else stat.S_IMODE(staged.st_mode)
            if mode is not None and stat.S_IMODE(mode) != self._mode:
                _set_mode(staging.place, name, stat.S_IMODE(mode))
        except BaseException:
            staging.drop(name)
            raise
        try:
            staging.swap(name, self._place)
        except OSError:
            with suppress(OSError):  # it is the new one still
                staging.place.unlink(name)
            return False
        return True

    def _replace(self, change: Change) -> None:
        hidden, temporary = self._open_hidden(), temporary_name()
        try:
            descriptor = hidden.create(temporary)
            try:
                write_all(descriptor, change.after)
                # A program that takes no part in the locking may have written it since.
                self._set_mode(descriptor, self._checked_mode(change))
            finally:
                os.close(descriptor)
            if change.before is None:
                hidden.move(temporary, self._place, change.name)
            else:
                if self._links and change.name not in self._linked:
                    self._keep(change)
                hidden.replace(temporary, self._place, change.name)
                self._linked.pop(change.name, None)
        except BaseException:
            with suppress(OSError):
                hidden.unlink(temporary)
            raise

    def _set_mode(self, descriptor: int, mode: int | None) -> None:
        if self._mode is None:
            self._mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode is not None and stat.S_IMODE(mode) != self._mode and sys.platform != "win32":
            os.fchmod(descriptor, stat.S_IMODE(mode))

    def _checked_mode(self, change: Change) -> int | None:
        """The mode of a file that is as it was read, None where there is none. Raises ChangedMeanwhile, or OSError."""
        self._place.check()
        path, folder, name = self._place.at + change.name, self._place.fd, change.name
        linked = name in self._linked
        if change.stamp is not None and change.stamp.sure:
            with suppress(FileNotFoundError):
                facts = os.stat(path, dir_fd=folder, follow_symlinks=False)
                if stamp_of(facts) == change.stamp:
                    return facts.st_mode
        try:
            same_link = not linked or self._target(name) == self._linked[name]
            held, seen = read_all(path, folder, follow=linked)
        except OSError as error:
            if isinstance(error, NotRegular) or self._is_link(name) != linked:
                held, seen, same_link = None, None, False
            else:
                raise
        if held != change.before or not same_link:
            raise ChangedMeanwhile(
                f"{self.path / name}: another program has just written it, so it is left alone; run this again"
            )
        return None if seen is None else seen.st_mode

    def _is_link(self, name: str) -> bool:
        facts = self._place.facts(name)
        return facts is not None and is_link(facts)


def _set_mode(place: Place, name: str, mode: int) -> None:
    """Give a file of ours its permissions, by its descriptor: a link may have come into its place."""
    if sys.platform != "win32":
        descriptor = os.open(place.at + name, os.O_WRONLY | PLAIN, dir_fd=place.fd)
        try:
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)


def clear(hidden: Place) -> list[str]:
    """Remove what a killed run left, and nothing else; the names. Nobody else is at work while the folder is locked."""
    gone = leftovers(hidden)
    for name in gone:
        with suppress(OSError):
            hidden.unlink(name)
    return gone


def leftovers(hidden: Place) -> list[str]:
    """The temporary files of these tools in a hidden folder: plain files, with names of theirs."""
    names = [name for name in hidden.names() if is_temporary(name)]
    return [
        name for name in names if (facts := hidden.facts(name)) is not None and stat.S_ISREG(facts.st_mode)
    ]
