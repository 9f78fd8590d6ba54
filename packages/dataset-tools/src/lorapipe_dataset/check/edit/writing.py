"""Edits on their way to the disk: captions through the journal, each only if it is the one that the page had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorapipe_dataset.check.edit.shelf import OUT, Item, Shelf, version_of
from lorapipe_dataset.check.repairs.fix import TOOL
from lorapipe_dataset.clean.files.textfile import encode, says_the_same
from lorapipe_engine.changes.filebytes import read_stamped
from lorapipe_engine.changes.journal import Change, ChangedMeanwhile, Folder, Journal
from lorapipe_engine.errors import LoraError
from lorapipe_engine.pictures.captions import decode_caption

# What a caption file is to hold by what it holds (None: there is none): None where it stays as it is.
Write = Callable[[Path, bytes | None], bytes | None]


@dataclass
class Written:
    """What came of an edit. ``captions``: the files that changed, with their new versions; ``pictures``: those that
    were left out or taken in; ``conflicts``: those whose captions somebody else had changed; ``errors``: why others
    were left alone.
    """

    run: str | None = None
    captions: dict[Path, str | None] = field(default_factory=dict)
    pictures: list[int] = field(default_factory=list)
    conflicts: list[int] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class _File:
    """A caption file that is to change: its pictures, and the version that it must have."""

    path: Path
    items: list[Item]
    seen: str | None

    @property
    def ids(self) -> list[int]:
        return [item.id for item in self.items]


def by_text(rewrite: Callable[[str], str]) -> Write:
    """Writes of a change to captions' texts, in the form that lora-clean gives files."""

    def write(path: Path, held: bytes | None) -> bytes | None:
        text = "" if held is None else decode_caption(held, path)
        new = rewrite(text)
        if says_the_same(text, new):
            return None
        return encode(new, held, path)

    return write


def write_captions(shelf: Shelf, versions: Mapping[int, str | None], write: Write) -> Written:
    """Change the captions of the pictures in ``versions``, each if it is that version. What fails is in the result."""
    done, journal = Written(), Journal(TOOL)
    for folder, files in _by_folder(shelf, versions, done).items():
        root = files[0].items[0].root
        try:
            with journal.folder(folder, root) as desk:
                _write_folder(desk, root, files, write, done)
        except LoraError as error:
            told = {*done.conflicts, *(number for number, _ in done.errors)}
            done.errors += [
                (number, str(error))
                for file in files
                for number in file.ids
                if number not in told and file.path not in done.captions
            ]
    done.run = journal.run if journal.changed else None
    return done


def _by_folder(shelf: Shelf, versions: Mapping[int, str | None], done: Written) -> dict[Path, list[_File]]:
    """The caption files by folder, each once: pictures may share one."""
    files: dict[Path, _File] = {}
    for number, version in versions.items():
        item = shelf.items[number]
        if item.gone:
            done.errors.append((number, "the picture is gone"))
            continue
        try:
            path = shelf.caption_of(item)
        except LoraError as error:
            done.errors.append((number, str(error)))
            continue
        if path in files and files[path].seen != version:
            done.conflicts.append(number)
            continue
        files.setdefault(path, _File(path, [], version)).items.append(item)
    folders: dict[Path, list[_File]] = {}
    for path, file in files.items():
        folders.setdefault(path.parent, []).append(file)
    return folders


def _write_folder(desk: Folder, root: Path, files: Iterable[_File], write: Write, done: Written) -> None:
    planned = dict(_plan(files, root, write, done))
    failures = desk.write([change for _, change in planned.values()])
    for name, (file, change) in planned.items():
        error = failures.get(name)
        if isinstance(error, ChangedMeanwhile):
            done.conflicts += file.ids
        elif error is not None:
            done.errors += [(number, str(error)) for number in file.ids]
        else:
            done.captions[file.path] = version_of(change.after)


def _plan(
    files: Iterable[_File], root: Path, write: Write, done: Written
) -> Iterator[tuple[str, tuple[_File, Change]]]:
    for file in files:
        try:
            data, stamp = read_stamped(file.path, root)
            if version_of(data) != file.seen:
                done.conflicts += file.ids
                continue
            after = write(file.path, data)
        except LoraError as error:
            done.errors += [(number, str(error)) for number in file.ids]
        except OSError as error:
            done.errors += [(number, f"its caption cannot be read ({error.strerror})") for number in file.ids]
        else:
            if after is not None and after != data:
                yield file.path.name, (file, Change(file.path.name, data, after, stamp))


# -------------------------------------------------------------------------------- left out


def move_out(shelf: Shelf, ids: Iterable[int], *, out: bool) -> Written:
    """Leave pictures out with their captions, by a dot in front of their names, or take them in again."""
    done, journal = Written(), Journal(TOOL)
    items = [shelf.items[number] for number in ids]
    done.errors += [(item.id, "the picture is gone") for item in items if item.gone]
    going = [item for item in items if not item.gone and item.out != out]
    stays = _captions_of_others(shelf, going)
    for item in going:
        # A caption that a picture shares with one that stays is left to that one.
        names = [item.picture.path.name, *(path.name for path in item.picture.captions if path not in stays)]
        stays.update(item.picture.captions)
        try:
            with journal.folder(item.picture.path.parent, item.root) as desk:
                for name in names:
                    desk.rename(name, f"{OUT}{name}" if out else name.removeprefix(OUT))
        except LoraError as error:
            done.errors.append((item.id, str(error)))
        else:
            done.pictures.append(item.id)
    done.run = journal.run if journal.changed else None
    return done


def _captions_of_others(shelf: Shelf, going: Iterable[Item]) -> set[Path]:
    """The caption files of all pictures but those that go."""
    numbers = {item.id for item in going}
    return {
        path
        for other in shelf.items
        if other.id not in numbers and not other.gone
        for path in other.picture.captions
    }
