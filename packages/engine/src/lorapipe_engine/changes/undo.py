"""Taking back what a run changed, by its journal (:mod:`lorapipe_engine.changes.journal`).

A journal may have come with the dataset. One that is not in the user's own list has to be named, and can then do less:
it never puts a link in place, nor moves a link or a file of several names. No journal reaches out of its folder: that,
the hidden folder and the run's old files are opened without following links, and names are of files in them.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lorapipe_engine.changes.entries import MOST, Entry, read_entries
from lorapipe_engine.changes.filebytes import digest, write_new
from lorapipe_engine.changes.journal import HIDDEN, KEPT, OLD, clear, leftovers
from lorapipe_engine.changes.ledger import is_own
from lorapipe_engine.changes.place import LinkRefused, NotRegular, Place, open_place
from lorapipe_engine.changes.runs import Found, Say, choose, date_of, later_runs
from lorapipe_engine.changes.swapping import temporary_name
from lorapipe_engine.command.text import printable
from lorapipe_engine.errors import InputError, LoraError, OutputError
from lorapipe_engine.files.writing.locking import locked


@dataclass
class Undone:
    """What :func:`undo` did: the run, the files that are as before it, and what could not be put back.

    ``steps``: what was moved, deleted and restored, or would be, a line each. ``touched``: how many changes of the
    run may have been made, for their files are not the very ones from before it.
    """

    run: str
    restored: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    touched: int = 0


def undo(
    folders: Sequence[Path],
    tool: str,
    *,
    run: str | None = None,
    dry_run: bool = False,
    tell: Say = lambda _: None,
) -> Undone:
    """Take a run of ``tool`` in ``folders`` (and below them) back, byte for byte: ``run``, else the user's newest.

    The run, its date and its folders are told before anything moves. A file that was changed since that run is left as
    it is and told in ``failures``; the journal is kept then. May be repeated to go further back. Raises InputError
    where there is nothing to take back.
    """
    passed: set[str] = set()
    while True:
        chosen = sorted(choose(folders, tool, run, tell, passed), key=lambda one: one.folder)
        result = Undone(chosen[0].run)
        verb = "would take back" if dry_run else "taking back"
        for one in chosen:
            tell(f"{verb} run {one.run} of {date_of(one.when)} in {printable(str(one.folder))}")
        for one in chosen:
            with locked(one.folder):
                try:
                    _undo_folder(one, result, named=run is not None, dry_run=dry_run)
                except OSError as error:
                    result.failures.append(f"{one.folder}: cannot be taken back ({error.strerror})")
                except LoraError as error:
                    result.failures.append(str(error))
        if result.failures and not dry_run:
            tell(_rest_told(chosen, folders, tool))
        if run is not None or result.restored or result.failures or result.touched:
            return result
        # Stopped or failed before its first change: who takes the last run back means one that did something.
        tell(f"run {result.run} had changed nothing")
        passed.add(result.run)
        try:
            choose(folders, tool, run, lambda _: None, passed)
        except InputError:
            return result


def _rest_told(chosen: Sequence[Found], folders: Sequence[Path], tool: str) -> str:
    """How the rest of a run can be taken back, of which files were left alone."""
    again = f"{tool} --undo --run {chosen[0].run} {printable(shlex.join(map(str, folders)))}"
    later = next((runs for one in chosen if (runs := later_runs(one))), [])
    if later:
        return f"for the rest take back what came later ({', then '.join(later)}), then {again}"
    return f"the rest is kept: {again} brings it back once the files are as that run left them"


def _undo_folder(one: Found, result: Undone, *, named: bool, dry_run: bool) -> None:
    with open_place(one.folder, one.root) as folder, folder.folder(HIDDEN) as hidden:
        path = hidden.show(one.file)
        data, inode = _journal(hidden, one.file)
        own = is_own(one.known, data, inode)
        if not own and not named:
            result.failures.append(
                f"{path}: not as it was written here; nothing was taken back (--run {one.run} does so all the same)"
            )
            return
        entries = read_entries(data, path)
        with _Desk(folder, hidden, one.run, own=own, dry_run=dry_run) as desk:
            result.touched += desk.count_touched(entries)
            failures = desk.take_back(entries)
            result.restored += [one.folder / name for name in desk.restored]
            result.steps += desk.steps
        result.failures += failures
        result.steps += _finish(hidden, one, failed=bool(failures), dry_run=dry_run)
    if not failures and not dry_run:
        with suppress(OSError, LoraError), open_place(one.folder, one.root) as folder:
            folder.rmdir(HIDDEN)  # not where other runs have journals there


def _journal(hidden: Place, name: str) -> tuple[bytes, int]:
    """A journal's bytes, and the number of its file. Raises LinkRefused."""
    try:
        held = hidden.read(name, MOST)
    except NotRegular as error:
        raise LinkRefused(f"{hidden.show(name)}: {error.strerror}; nothing was taken back") from error
    if held is None:
        raise InputError(f"{hidden.show(name)}: gone meanwhile")
    if held[1].st_nlink != 1:
        raise LinkRefused(f"{hidden.show(name)}: has several names (hard links); nothing was taken back")
    return held[0], held[1].st_ino


def _finish(hidden: Place, one: Found, *, failed: bool, dry_run: bool) -> list[str]:
    """Put the journal away when the files are safe; what goes, a line each."""
    if failed:
        if one.is_rest:
            return []
        if not dry_run:
            hidden.replace(one.file, hidden, f"{one.file}{KEPT}")
        return [f"move {hidden.show(one.file)} -> {hidden.show(one.file)}{KEPT}"]
    gone = [one.file, *leftovers(hidden)]
    if not dry_run:
        if hasattr(os, "sync"):
            os.sync()
        hidden.unlink(one.file)
        clear(hidden)
        with suppress(OSError):
            hidden.rmdir(f"{one.run}{OLD}")
    return [f"delete {hidden.show(name)}" for name in gone]


class _Desk:
    """A folder whose changes are taken back."""

    def __init__(self, folder: Place, hidden: Place, run: str, *, own: bool, dry_run: bool) -> None:
        self._folder, self._hidden = folder, hidden
        self._own, self._dry_run = own, dry_run
        self._old: Place | None = None
        self.restored: list[str] = []
        self.steps: list[str] = []
        with suppress(FileNotFoundError):
            self._old = hidden.folder(f"{run}{OLD}")

    def __enter__(self) -> _Desk:
        return self

    def __exit__(self, *_: object) -> None:
        if self._old is not None:
            self._old.close()

    def count_touched(self, entries: Sequence[Entry | InputError]) -> int:
        """How many changes may have been made: all but those whose file is the very one from before them."""
        return sum(not (isinstance(entry, Entry) and self._is_untouched(entry)) for entry in entries)

    def _is_untouched(self, entry: Entry) -> bool:
        facts = self._folder.facts(entry.name)
        return entry.inode is not None and facts is not None and facts.st_ino == entry.inode

    def take_back(self, entries: Sequence[Entry | InputError]) -> list[str]:
        """Undo changes, the last first; returns what could not be."""
        failures: list[str] = []
        for entry in reversed(entries):
            if isinstance(entry, InputError):
                failures.append(str(entry))
                continue
            try:
                if self._take_back(entry):
                    self.restored.append(entry.name)
            except LoraError as error:
                failures.append(str(error))
            except OSError as error:
                failures.append(f"{self._folder.show(entry.name)}: cannot be put back ({error.strerror})")
        return failures

    def _take_back(self, entry: Entry) -> bool:
        if entry.old:
            return self._old is not None and self._bring_back(entry, self._old)
        if entry.kept is not None:
            return self._move_back(entry, self._hidden, entry.kept)
        if entry.renamed is not None:
            return self._move_back(entry, self._folder, entry.renamed)
        return self._put_back(entry)

    def _bring_back(self, entry: Entry, place: Place) -> bool:
        """Give an old file its place again; False where it had never left it. Raises LoraError or OSError."""
        name = entry.name
        old = self._kept(entry, place, name)
        if old is None:
            return False
        now = self._folder.read(name)
        held, number = (None, None) if now is None else (now[0], now[1].st_ino)
        inode = old[1].st_ino
        # What a killed run had made ready lies there before it takes the old one's place.
        left = self._own and entry.inode is not None and number == entry.inode != inode
        if left or held == old[0] or number == inode:
            self._step(f"delete {place.show(name)}")
            if not self._dry_run:
                place.unlink(name)
            return False
        self._check_unchanged(entry, held)
        self._step(f"restore {self._folder.show(name)} from {place.show(name)}")
        if not self._dry_run:
            place.replace(name, self._folder, name)
        return True

    def _kept(self, entry: Entry, place: Place, name: str) -> tuple[bytes, os.stat_result] | None:
        """An old file's bytes and facts. Raises LinkRefused for a link, and for a file of several names that was not
        this one before.
        """
        try:
            old = place.read(name)
        except NotRegular as error:
            raise LinkRefused(f"{place.show(name)}: {error.strerror}; left alone") from error
        if old is not None:
            self._check_names(entry, place, name, old[1])
        return old

    def _check_names(self, entry: Entry, place: Place, name: str, facts: os.stat_result) -> None:
        same = self._own and entry.inode is not None and entry.inode == facts.st_ino
        if (
            stat.S_ISREG(facts.st_mode)
            and facts.st_nlink > 1
            and not same
            and not self._is_staged(entry, facts)
        ):
            raise LinkRefused(f"{place.show(name)}: has several names (hard links); left alone")

    def _is_staged(self, entry: Entry, facts: os.stat_result) -> bool:
        """Whether an old file is still the one in its first place: a run was killed before it put the new one there."""
        here = self._folder.facts(entry.name)
        return entry.old and here is not None and here.st_ino == facts.st_ino and here.st_dev == facts.st_dev

    def _move_back(self, entry: Entry, place: Place, name: str) -> bool:
        """Give a moved file its old name; False where it had never been moved. Raises LoraError or OSError."""
        facts = place.facts(name)
        if facts is None:
            return False
        if stat.S_ISREG(facts.st_mode):
            self._check_names(entry, place, name, facts)
        elif not (self._is_own_folder(entry, facts) or self._is_own_link(entry, place, name, facts)):
            raise LinkRefused(f"{place.show(name)}: no plain file; left alone")
        path = self._folder.show(entry.name)
        here = self._folder.facts(entry.name)
        if here is not None and (here.st_ino, here.st_dev) == (facts.st_ino, facts.st_dev):
            # A file has both names for a moment, in which the run was killed.
            self._step(f"delete {place.show(name)}")
            if not self._dry_run:
                place.unlink(name)
            return False
        if here is not None:
            raise OutputError(f"{path}: there is a new file of that name, left alone")
        self._step(f"move {place.show(name)} -> {path}")
        if not self._dry_run:
            place.move(name, self._folder, entry.name)
        return True

    def _is_own_folder(self, entry: Entry, facts: os.stat_result) -> bool:
        """Whether a folder is the one that a run of this user gave another name."""
        return self._own and stat.S_ISDIR(facts.st_mode) and entry.inode == facts.st_ino

    def _is_own_link(self, entry: Entry, place: Place, name: str, facts: os.stat_result) -> bool:
        if not self._own or entry.link is None or not stat.S_ISLNK(facts.st_mode):
            return False
        return os.readlink(place.at + name, dir_fd=place.fd) == entry.link

    def _put_back(self, entry: Entry) -> bool:
        """Write what a file held before; False where it had never been changed. Raises LoraError or OSError."""
        name = entry.name
        path = self._folder.show(name)
        if entry.link is not None and not self._own:
            raise LinkRefused(
                f"{path}: was a link to {entry.link!r}; a run that was not made here puts none back"
            )
        facts = self._folder.facts(name)
        if entry.link is not None and facts is not None and stat.S_ISLNK(facts.st_mode):
            return False  # the link is still there
        now = self._folder.read(name)
        held = None if now is None else now[0]
        if held == entry.before:
            return False
        self._check_unchanged(entry, held)
        self._step(f"delete {path}" if entry.before is None else f"restore {path}")
        if not self._dry_run:
            if entry.before is None:
                self._folder.unlink(name)
            else:
                self._write(entry, entry.before, None if now is None else now[1].st_mode)
        return True

    def _write(self, entry: Entry, before: bytes, mode: int | None) -> None:
        temporary = temporary_name()
        if entry.link is not None:
            os.symlink(entry.link, self._hidden.at + temporary, dir_fd=self._hidden.fd)
        else:
            write_new(self._hidden, temporary, before, None if mode is None else stat.S_IMODE(mode))
        self._hidden.replace(temporary, self._folder, entry.name)

    def _check_unchanged(self, entry: Entry, held: bytes | None) -> None:
        if held is None or digest(held) != entry.after:
            raise OutputError(f"{self._folder.show(entry.name)}: changed since, left alone")

    def _step(self, text: str) -> None:
        self.steps.append(text)
