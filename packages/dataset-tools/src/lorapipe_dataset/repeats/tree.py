"""Building the tree ``N_concept``: which file goes where, and putting them there so that nothing is ever lost.

A new tree is built in a hidden folder beside the target and renamed when it is whole. Files that are moved leave
their old place last of all.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorapipe_dataset.repeats.plan import Row
from lorapipe_dataset.repeats.sources import Source, caption_files, folder_name
from lorapipe_engine.errors import ConfigError, OutputError
from lorapipe_engine.pictures.images import as_repeat_folder

Mode = Literal["copy", "hard", "symlink", "move"]
_TOO_LONG = frozenset({errno.ENAMETOOLONG})


@dataclass(frozen=True)
class Item:
    """A file of the new tree: ``target`` is relative to it; ``source`` None is a caption that a record brought."""

    target: Path
    source: Path | None
    text: str | None = None
    is_caption: bool = False


@dataclass(frozen=True)
class Layout:
    """All files of a tree, how many pictures have no caption, and how many were renamed to keep captions apart."""

    items: tuple[Item, ...]
    bare: int
    renamed: int


def lay_out(rows: Iterable[Row], extension: str) -> Layout:
    """Choose a place for each picture and its caption.

    Pictures of one concept get different stems (in any case of the letters), because a caption belongs to a stem.
    """
    items: list[Item] = []
    bare = renamed = 0
    folders: dict[str, str] = {}
    for row in rows:
        folder = Path(folder_name(row.repeats, row.concept.name))
        other = folders.setdefault(folder.name.casefold(), row.concept.name)
        if other != row.concept.name:
            raise ConfigError(f"concepts '{other}' and '{row.concept.name}' would share the folder {folder}")
        taken: set[str] = set()
        for picture in row.concept.pictures:
            stem = _free_stem(picture.path.stem, taken)
            renamed += stem != picture.path.stem
            items.append(Item(folder / f"{stem}{picture.path.suffix}", picture.path))
            caption = _caption_item(picture, folder, stem, extension)
            bare += caption is None
            items += [caption] if caption else []
    return Layout(tuple(items), bare, renamed)


def _free_stem(stem: str, taken: set[str]) -> str:
    name, number = stem, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name.casefold())
    return name


def _caption_item(picture: Source, folder: Path, stem: str, extension: str) -> Item | None:
    beside = next(caption_files(picture.path, extension), None)
    if picture.caption is not None and picture.caption.strip():
        suffix = beside.suffix if beside else extension if extension.startswith(".") else f".{extension}"
        return Item(folder / f"{stem}{suffix}", beside, picture.caption, is_caption=True)
    if beside is not None:
        return Item(folder / f"{stem}{beside.suffix}", beside, is_caption=True)
    return None


# -------------------------------------------------------------------------------- checks before the work


def check_tree(output: Path, layout: Layout, mode: Mode, *, force: bool) -> None:
    """Raise one line for what would stop the work half way: a target in use, a source inside it, no room."""
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file, not a folder; give another -o")
    if output.is_dir() and not force and any(output.iterdir()):
        raise OutputError(f"{output}: is not empty; give --force to add to it, or another -o")
    own = output.resolve()
    for item in layout.items:
        if item.source and own in item.source.resolve().parents:
            raise ConfigError(
                f"{item.source}: lies inside the output {output}; give another -o, or --rename for its folders"
            )
    parent = _existing_parent(output)
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{output}: its folder {parent} may not be written to")
    _check_room(parent, layout, mode)


def _existing_parent(path: Path) -> Path:
    for parent in (path, *path.absolute().parents):
        if parent.is_dir():
            return parent
    return Path.cwd()


def _check_room(parent: Path, layout: Layout, mode: Mode) -> None:
    if mode in ("hard", "symlink"):
        return
    if mode == "move" and all(
        item.source is None or item.source.stat().st_dev == parent.stat().st_dev for item in layout.items
    ):
        return
    size = sum(item.source.stat().st_size for item in layout.items if item.source)
    free = shutil.disk_usage(parent).free
    if size > free:
        raise OutputError(f"{parent}: {size:,} bytes are needed, {free:,} are free; try --link hard")


# -------------------------------------------------------------------------------- the work


def build_tree(
    output: Path, layout: Layout, mode: Mode, *, force: bool, tick: Callable[[], None] = lambda: None
) -> list[str]:
    """Make the tree; ``tick`` is called for each file. Returns notes on what stood in the folder before.

    Raises OutputError where a file cannot be read, linked or written; the target is then as it was before.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with _staging(output) as staging:
        for item in layout.items:
            _place(item, staging / item.target, mode)
            tick()
        notes = _install(staging, output, layout, force)
    if mode == "move":
        for item in layout.items:
            if item.source:
                with suppress(FileNotFoundError):
                    item.source.unlink()
    return notes


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    folder = output.absolute().parent / f".lorapipe-{secrets.token_hex(8)}.tmp"
    try:
        folder.mkdir()
    except OSError as error:
        raise OutputError(f"{output}: cannot write to its folder: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(item: Item, target: Path, mode: Mode) -> None:
    target.parent.mkdir(exist_ok=True)
    try:
        if item.text is not None:
            with target.open("w", encoding="utf-8", newline="\n") as file:
                file.write(item.text.rstrip("\n") + "\n")
        elif item.source is not None:
            _transfer(item.source, target, "copy" if item.is_caption and mode != "move" else mode)
    except OSError as error:
        hint = "; --link symlink or a copy works across disks" if error.errno == errno.EXDEV else ""
        hint = "; its name is too long" if error.errno in _TOO_LONG else hint
        raise OutputError(f"{item.source or item.target}: {mode} failed: {error.strerror}{hint}") from error


def _transfer(source: Path, target: Path, mode: Mode) -> None:
    if mode == "symlink":
        target.symlink_to(source.resolve())
    elif mode == "hard":
        target.hardlink_to(source.resolve())
    elif mode == "move":
        # A second name for the same bytes; the first one goes when the tree is whole.
        try:
            target.hardlink_to(source)
        except OSError:
            shutil.copy2(source, target)
    else:
        shutil.copy2(source, target)


def _install(staging: Path, output: Path, layout: Layout, force: bool) -> list[str]:
    if output.is_symlink() or not output.exists() or not any(output.iterdir()):
        if output.is_dir() and not output.is_symlink():
            output.rmdir()
        if not output.is_symlink():
            staging.rename(output)
            return []
        output.mkdir(parents=True, exist_ok=True)
    elif not force:
        raise OutputError(f"{output}: something was written to it meanwhile; give --force to add to it")
    return _merge(staging, output, layout)


def _merge(staging: Path, output: Path, layout: Layout) -> list[str]:
    """Put each new file into the tree that is there. A folder of the same concept gets the new number first."""
    new = {folder.name: folder for folder in staging.iterdir()}
    for folder in sorted(output.iterdir()):
        old = as_repeat_folder(folder) if folder.is_dir() else None
        if old is None or folder.name in new:
            continue
        same = [name for name in new if name.partition("_")[2] == old.concept]
        if same and not (output / same[0]).exists():
            folder.rename(output / same[0])
    for item in layout.items:
        (output / item.target).parent.mkdir(exist_ok=True)
        (staging / item.target).replace(output / item.target)
    return _left_over(output, layout)


def _left_over(output: Path, layout: Layout) -> list[str]:
    known = {item.target for item in layout.items}
    notes = []
    for folder in sorted(path for path in output.iterdir() if path.is_dir() and as_repeat_folder(path)):
        names = [path for path in folder.iterdir() if path.relative_to(output) not in known]
        if names:
            notes.append(f"{folder}: {len(names)} files from before are still there")
    return notes


# -------------------------------------------------------------------------------- renaming in place


def renames(rows: Sequence[Row]) -> list[tuple[Path, Path]]:
    """Old and new path of each concept's folder that has another number now.

    Raises ConfigError where a concept is not one folder, or the new name is taken.
    """
    found: list[tuple[Path, Path]] = []
    for row in rows:
        if len(row.concept.folders) != 1:
            raise ConfigError(f"--rename: {row.concept.name} lies in several folders; build a tree with -o")
        old = row.concept.folders[0]
        new = old.resolve().parent / folder_name(row.repeats, row.concept.name)
        if new.name != (old.name or old.resolve().name):
            found.append((old, old.parent / new.name if old.name else new))
    leaving = {old.resolve() for old, _ in found}
    for _, new in found:
        if new.exists() and new.resolve() not in leaving:
            raise ConfigError(f"--rename: {new} exists already; put the two folders together first")
    return found


def rename_folders(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Rename all; by way of another name, since one's new name may be another's old one."""
    steps = [(old, old.with_name(f".lorapipe-{secrets.token_hex(8)}.tmp"), new) for old, new in pairs]
    done: list[tuple[Path, Path]] = []
    try:
        for old, between, _ in steps:
            old.rename(between)
            done.append((between, old))
        for old, between, new in steps:
            between.rename(new)
            done.append((new, old))
            done.remove((between, old))
    except OSError as error:
        for now, before in reversed(done):
            with suppress(OSError):
                now.rename(before)
        raise OutputError(f"{error.filename}: cannot be renamed: {error.strerror}") from error
