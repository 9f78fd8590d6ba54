"""Building the tree ``N_concept`` so that nothing is ever lost.

A new tree is built in a hidden folder beside the target and renamed when it is whole. Files that are moved leave
their old place last of all. Folders are held open meanwhile: a link that comes into a path is not followed.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lorapipe_dataset.repeats.adding import folders_to_rename
from lorapipe_dataset.repeats.tree import TOOL, Item, Layout, Mode, text_of
from lorapipe_engine.changes.filebytes import write_all
from lorapipe_engine.changes.journal import Journal
from lorapipe_engine.changes.place import Identity, Place, is_link, open_place
from lorapipe_engine.errors import LoraError, OutputError
from lorapipe_engine.files.links import read_within

_TOO_LONG = frozenset({errno.ENAMETOOLONG})
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Built:
    """What building a tree left to say: ``notes`` on what stood in the folder before, lines on files that have
    ``stayed`` at their old place although they were to leave it, and how many have ``moved``."""

    notes: list[str]
    stayed: list[str]
    moved: int


def build_tree(
    output: Path, layout: Layout, mode: Mode, *, force: bool, tick: Callable[[], None] = lambda: None
) -> Built:
    """Make the tree; ``tick`` is called for each file.

    Raises OutputError where a file cannot be read, linked or written; the target is then as it was before.
    """
    whole = output.resolve() if ".." in output.parts else output.absolute()
    whole.parent.mkdir(parents=True, exist_ok=True)
    moved: list[tuple[Item, Identity]] = []
    with open_place(whole.parent) as parent, _staging(parent, output) as staging, _Shelf(staging) as shelf:
        for item in layout.items:
            identity = _put(item, shelf.folder(item.target.parent.name), mode)
            if identity is not None:
                moved.append((item, identity))
            tick()
        notes = _install(parent, staging, whole.name, layout, force=force)
    stayed = _take_away(moved)
    return Built(notes, stayed, len(moved) - len(stayed))


class _Shelf:
    """The folders in a place, one of which is held open at a time: files come folder by folder."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._name = ""
        self._folder: Place | None = None

    def folder(self, name: str) -> Place:
        """A folder, made where it is missing."""
        if self._folder is None or name != self._name:
            self.close()
            self._folder, self._name = self._place.folder(name, make=True), name
        return self._folder

    def close(self) -> None:
        """Let go of the folder."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def __enter__(self) -> _Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _staging(parent: Place, output: Path) -> Iterator[Place]:
    name = f".lorapipe-{secrets.token_hex(8)}.tmp"
    try:
        place = parent.folder(name, new=True)
    except OSError as error:
        raise OutputError(f"{output}: cannot write to its folder: {error.strerror}") from error
    try:
        with place:
            yield place
    finally:
        if parent.fd is None:
            shutil.rmtree(parent.at + name, ignore_errors=True)
        else:
            shutil.rmtree(name, ignore_errors=True, dir_fd=parent.fd)


# -------------------------------------------------------------------------------- one file


def _put(item: Item, place: Place, mode: Mode) -> Identity | None:
    """Make a file of the tree; which file is to leave its old place, if one is."""
    source, name = item.source, item.target.name
    try:
        facts = None if source is None or mode != "move" else os.lstat(source)
        if item.text is not None:
            _write(place, name, text_of(item.text))
        elif source is not None:
            _transfer(item, source, place, mode)
    except OSError as error:
        hint = "; --link symlink or a copy works across disks" if error.errno == errno.EXDEV else ""
        hint = "; its name is too long" if error.errno in _TOO_LONG else hint
        raise OutputError(f"{source or item.target}: {mode} failed: {error.strerror}{hint}") from error
    return None if facts is None else (facts.st_dev, facts.st_ino)


def _transfer(item: Item, source: Path, place: Place, mode: Mode) -> None:
    name = item.target.name
    if item.is_caption:
        # Its words, unless a link brings them from elsewhere; not the file, which is kept for an undo.
        _write(place, name, read_within(source, item.home), source.stat())
    elif mode == "symlink":
        os.symlink(source.resolve(), place.at + name, dir_fd=place.fd)
    elif mode == "hard":
        os.link(source.resolve(), place.at + name, dst_dir_fd=place.fd)
    elif mode == "move":
        # A second name for the same bytes; the first one goes when the tree is whole.
        try:
            os.link(source, place.at + name, dst_dir_fd=place.fd, follow_symlinks=not item.is_caption)
        except (OSError, NotImplementedError):
            _copy(source, place, name)
    else:
        _copy(source, place, name)


def _copy(source: Path, place: Place, name: str) -> None:
    with source.open("rb") as old, os.fdopen(place.create(name), "wb") as new:
        shutil.copyfileobj(old, new, _BLOCK)
        facts = os.fstat(old.fileno())
        new.flush()
        _set_facts(new.fileno(), facts)
    _set_times(place, name, facts)


def _write(place: Place, name: str, data: bytes, facts: os.stat_result | None = None) -> None:
    descriptor = place.create(name)
    try:
        write_all(descriptor, data)
        if facts is not None:
            _set_facts(descriptor, facts)
    finally:
        os.close(descriptor)
    if facts is not None:
        _set_times(place, name, facts)


def _set_facts(descriptor: int, facts: os.stat_result) -> None:
    if sys.platform != "win32":
        os.fchmod(descriptor, stat.S_IMODE(facts.st_mode))


def _set_times(place: Place, name: str, facts: os.stat_result) -> None:
    times = (facts.st_atime_ns, facts.st_mtime_ns)
    with suppress(OSError, NotImplementedError):
        os.utime(place.at + name, ns=times, dir_fd=place.fd, follow_symlinks=False)


def _take_away(moved: Sequence[tuple[Item, Identity]]) -> list[str]:
    """Take the files that have been moved from their old places, with a journal; a line on each that stays there."""
    journal = Journal(TOOL)
    by_folder: dict[Path, list[tuple[Item, Identity]]] = {}
    for item, identity in moved:
        if item.source is not None and os.path.lexists(item.source):
            by_folder.setdefault(item.source.parent, []).append((item, identity))
    stayed = []
    for folder, rows in by_folder.items():
        files = {item.source.name: identity for item, identity in rows if item.source is not None}
        try:
            with journal.folder(folder, rows[0][0].home) as desk:
                failures: dict[str, LoraError] = desk.remove_all(files)
        except LoraError as error:
            failures = dict.fromkeys(files, error)
        stayed += [f"{folder / name}: left where it is: {error}" for name, error in failures.items()]
    return stayed


# -------------------------------------------------------------------------------- the whole tree


def _install(parent: Place, staging: Place, name: str, layout: Layout, *, force: bool) -> list[str]:
    facts = parent.facts(name)
    if facts is not None and not is_link(facts):
        with suppress(OSError):  # of an empty folder the new tree takes the place
            parent.rmdir(name)
            facts = None
    if facts is None:
        parent.replace(os.path.basename(staging.path), parent, name)  # noqa: PTH119
        return []
    if not force:
        raise OutputError(
            f"{parent.show(name)}: something was written to it meanwhile; give --force to add to it"
        )
    with parent.folder(name) as output:
        return _merge(staging, output, layout)


def _merge(staging: Place, output: Place, layout: Layout) -> list[str]:
    """Put each new file into the tree that is there. A folder of the same concept gets the new number first."""
    for name in layout.folders:  # before anything is changed
        facts = output.facts(name)
        if facts is not None and stat.S_ISREG(facts.st_mode):
            raise OutputError(
                f"{output.show(name)}: is a file, and a folder is to have its name; move it away"
            )
        if facts is not None:
            output.folder(name).close()  # raises for a link
    there = [name for name in output.names() if _is_folder(output, name)]
    for old, new in folders_to_rename(layout.folders, there).items():
        output.replace(old, output, new)
    with _Shelf(staging) as here, _Shelf(output) as place:
        for item in layout.items:
            folder, name = item.target.parent.name, item.target.name
            try:
                here.folder(folder).move(name, place.folder(folder), name)
            except FileExistsError as error:
                raise OutputError(
                    f"{output.show(folder)}: {name} was written to it meanwhile; give the command again"
                ) from error
    return _left_over(output, layout)


def _is_folder(place: Place, name: str) -> bool:
    facts = place.facts(name)
    return facts is not None and stat.S_ISDIR(facts.st_mode) and not is_link(facts)


def _left_over(output: Place, layout: Layout) -> list[str]:
    """Notes on what else lies in the folders that were added to; other concepts' have nothing to do with it."""
    known: dict[str, set[str]] = {}
    for target in (*(item.target for item in layout.items), *layout.there):
        known.setdefault(target.parent.name, set()).add(target.name)
    notes = []
    for folder, own in known.items():
        with output.folder(folder) as place:
            count = sum(name not in own for name in place.names())
        if count:
            noun = "1 file from before is" if count == 1 else f"{count} files from before are"
            notes.append(f"{output.show(folder)}: {noun} still there")
    return notes
