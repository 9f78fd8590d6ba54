"""Which pictures are to be tagged, and which file each one's caption goes to."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from lorapipe_engine.changes.place import open_place
from lorapipe_engine.command.records import STREAM, Record, check_folder, find_files, read_records
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import ConfigError, InputError, OutputError
from lorapipe_engine.pictures.caption_files import CaptionFinder
from lorapipe_engine.pictures.captions import CAPTION_SUFFIXES
from lorapipe_engine.pictures.layout import (
    IMAGE_SUFFIXES,
    NOT_OPENED,
    OTHER_PICTURES,
    has_signature,
    is_mask,
    notes_of,
)
from lorapipe_tagger.settings import Collision

# Files are known by content; these are the names worth looking at. Those without a suffix are looked into.
SUFFIXES = IMAGE_SUFFIXES | OTHER_PICTURES - NOT_OPENED
_NO_SUFFIX = "(no suffix)"
_ODD = OTHER_PICTURES | {_NO_SUFFIX}


@dataclass(frozen=True)
class Task:
    """A picture, what is known of it already, and its caption's file (None: none is written), for which no link below
    ``root`` is followed."""

    path: Path
    data: Mapping[str, Any]
    caption: Path | None
    root: Path | None = None


def find_tasks(
    words: Sequence[str],
    stdin: BinaryIO | None,
    *,
    recursive: bool,
    extension: str,
    output_dir: Path | None,
    write: bool,
    collision: Collision,
) -> list[Task]:
    """All pictures of the command line, in order, each once. Raises InputError where there are none or a word names
    nothing, ConfigError where two pictures would share a caption.
    """
    pictures: dict[str, tuple[Record, Path]] = {}
    folders: list[Path] = []
    named = {Path(word) for word in words}
    for record in read_records(words, stdin):
        if record.path.is_dir():
            folders.append(record.path)
            for path in list_folder(record.path, recursive=recursive):
                pictures.setdefault(_identity(path), (Record(path, record.data), record.path))
            continue
        if record.path in named and not record.path.exists():
            raise InputError(f"{record.path}: no such file or folder")
        pictures.setdefault(_identity(record.path), (record, record.path.parent))
    if not pictures:
        raise InputError(_nothing(words, folders, recursive))
    records = list(pictures.values())
    warn_of_left_out(folders, recursive=recursive)
    if not write:
        return [Task(record.path, record.data, None) for record, _ in records]
    finder = CaptionFinder(extension)
    targets = [_target(record.path, root, extension, output_dir, finder) for record, root in records]
    roots = [output_dir or root for _, root in records]
    tasks = [
        replace(task, root=root)
        for task, root in zip(_resolve(records, targets, collision, extension), roots, strict=True)
    ]
    _spare_pictures(tasks)
    held = {task.caption for task in tasks} | {path for task in tasks for path in finder.all_of(task.path)}
    warn_of_orphans(folders, extension, held, recursive=recursive)
    return tasks


def list_folder(folder: Path, *, recursive: bool) -> list[Path]:
    """The pictures of a folder, sorted; hidden files and masks are left out, links to folders not followed.

    Raises InputError if it cannot be read.
    """
    check_folder(folder)
    paths = find_files(folder, {*SUFFIXES, ""}, recursive=recursive)
    return [path for path in paths if not is_mask(path) and (path.suffix or has_signature(path))]


def _identity(path: Path) -> str:
    return os.path.normcase(path.absolute())


def _nothing(words: Sequence[str], folders: Sequence[Path], recursive: bool) -> str:
    if not folders:
        return (
            "no pictures to tag: the list is empty" if not words or STREAM in words else "no pictures to tag"
        )
    if not recursive and any(list_folder(folder, recursive=True) for folder in folders):
        return f"{folders[0]}: no pictures in it, but there are some in its folders: give --recursive"
    return f"{folders[0]}: no pictures in it (png, jpg, webp, bmp, gif, avif, tiff ...)"


# -------------------------------------------------------------------------------- captions' files


def _target(path: Path, root: Path, extension: str, output_dir: Path | None, finder: CaptionFinder) -> Path:
    """The caption that a picture has, whatever its suffix; else ``a.b.png`` gets ``a.b.txt``, beside it or at its place
    in the tree below ``output_dir``.
    """
    name = path.stem + extension
    if output_dir is None:
        standing = finder.of(path)
        # Who asks for a suffix that no trainer reads of itself wants another file than the caption.
        own = extension.lower() not in CAPTION_SUFFIXES
        if standing is None or (own and not standing.name.lower().endswith(extension.lower())):
            return path.with_name(name)
        return standing
    try:
        inside = path.absolute().relative_to(root.absolute()).parent
    except ValueError:
        inside = Path()
    return output_dir / inside / name


def _resolve(
    records: Sequence[tuple[Record, Path]], targets: Sequence[Path], collision: Collision, extension: str
) -> Iterator[Task]:
    owners: dict[str, Path] = {}
    for (record, _), target in zip(records, targets, strict=True):
        owner = owners.setdefault(_identity(target), record.path)
        if owner == record.path:
            yield Task(record.path, record.data, target)
        elif collision == "first":
            yield Task(record.path, record.data, None)
        elif collision == "suffix":
            yield Task(record.path, record.data, target.with_name(record.path.name + extension))
        else:
            raise ConfigError(
                f"{owner} and {record.path} would share {target.name}; rename one, or give --collision first "
                f"(only the first is captioned) or suffix ({record.path.name}{extension} for the other)"
            )


def _spare_pictures(tasks: Sequence[Task]) -> None:
    """Raise ConfigError for captions that would stand in the place of pictures."""
    pictures = {_identity(task.path) for task in tasks}
    for task in tasks:
        if task.caption == task.path and not has_signature(task.path):
            raise ConfigError(f"{task.path}: a caption's file, not a picture; name the picture")
        if task.caption and _identity(task.caption) in pictures:
            raise ConfigError(
                f"{task.caption}: a picture, which {task.path}'s caption would replace; see --ext"
            )


def check_folders(tasks: Iterable[Task], output_dir: Path | None) -> None:
    """Make the folders of ``output_dir`` and see that captions can be written, before any work.

    Raises OutputError naming the folder, for one that is a link in ``output_dir`` too.
    """
    for folder in dict.fromkeys(task.caption.parent for task in tasks if task.caption):
        if output_dir is not None:
            try:
                open_place(folder, output_dir, make=True).close()
            except OSError as error:
                raise OutputError(f"{folder}: cannot be made ({error.strerror})") from error
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise OutputError(
                f"{folder}: may not be written to; give --output-dir FOLDER, or --no-txt for records only"
            )


def warn_of_orphans(
    folders: Sequence[Path], extension: str, captions: set[Path | None], *, recursive: bool
) -> None:
    """Tell of captions without a picture, in one line."""
    orphans = [
        path
        for folder in folders
        for path in find_files(folder, {extension}, recursive=recursive)
        if path not in captions
    ]
    if orphans:
        more = f" and {len(orphans) - 1} more" if len(orphans) > 1 else ""
        say(f"lora-tag: note: captions without a picture: {orphans[0]}{more}")


def warn_of_left_out(folders: Sequence[Path], *, recursive: bool) -> None:
    """Tell what of the folders is tagged and not trained, and what is not tagged at all."""
    for folder in folders:
        for line in notes_of(folder, recursive=recursive, alone="not tagged"):
            say(f"lora-tag: note: {folder}: {line}")


def warn_of_formats(tasks: Sequence[Task]) -> None:
    """Tell of pictures that trainers pass by, in one line."""
    odd = Counter(task.path.suffix.lower() or _NO_SUFFIX for task in tasks)
    odd = Counter({suffix: count for suffix, count in odd.items() if suffix in _ODD})
    if odd:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in odd.most_common())
        say(f"lora-tag: note: trainers pass by pictures of these kinds: {counts}; convert them to png")
