"""The tree ``N_concept``: which file goes where, what stands in the way, and folders that are renamed in place."""

from __future__ import annotations

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lorapipe_dataset.repeats.plan import Row
from lorapipe_dataset.repeats.sources import Source, folder_name
from lorapipe_engine.changes.journal import Folder, Journal
from lorapipe_engine.errors import ConfigError, InputError, LoraError, OutputError
from lorapipe_engine.files.links import LeadsOut, check_inside, leads_out, read_within
from lorapipe_engine.pictures.caption_files import CaptionFinder
from lorapipe_engine.pictures.captions import decode_caption

TOOL = "lora-repeats"
Mode = Literal["copy", "hard", "symlink", "move"]


@dataclass(frozen=True)
class Item:
    """A file of the new tree: ``target`` is relative to it; ``source`` None is a caption that a record brought.

    ``root``: the folder that the user named for ``source``.
    """

    target: Path
    source: Path | None
    text: str | None = None
    is_caption: bool = False
    root: Path | None = None

    @property
    def home(self) -> Path | None:
        """The folder that links at ``source`` must not leave."""
        return self.root if self.root is not None or self.source is None else self.source.parent


@dataclass(frozen=True)
class Layout:
    """All files of a tree, how many pictures have no caption, how many were renamed to keep captions apart, and the
    captions that are left out, because they are links out of the dataset. ``links``: pictures that are links;
    ``suffixes``: how many captions have each suffix; ``seconds``: captions that are not taken, because another of their
    picture is read. Where the tree is there already: ``there`` are targets that are not made, because a file is there;
    ``kept`` those of them that are captions with other words; ``old_names`` of the folders that get a new number.
    """

    items: tuple[Item, ...]
    bare: int
    renamed: int
    left_out: tuple[LeadsOut, ...] = ()
    links: tuple[Path, ...] = ()
    suffixes: Mapping[str, int] = field(default_factory=dict)
    seconds: tuple[Path, ...] = ()
    there: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()
    old_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def folders(self) -> list[str]:
        """The names of the folders that the tree has of it, sorted."""
        return sorted({target.parent.name for target in (*(item.target for item in self.items), *self.there)})


def text_of(caption: str) -> bytes:
    """The bytes of a caption that a record brought."""
    return f"{caption.rstrip(chr(10))}\n".encode()


def lay_out(rows: Iterable[Row], extension: str) -> Layout:
    """Choose a place for each picture and its caption.

    Pictures of one concept get different stems (in any case of the letters), because a caption belongs to a stem.
    """
    items: list[Item] = []
    left_out: list[LeadsOut] = []
    bare = renamed = 0
    folders: dict[str, str] = {}
    others: dict[Path, None] = {}
    finder = CaptionFinder(extension)
    for row in rows:
        folder = Path(folder_name(row.repeats, row.concept.name))
        other = folders.setdefault(folder.name.casefold(), row.concept.name)
        if other != row.concept.name:
            raise ConfigError(f"concepts '{other}' and '{row.concept.name}' would share the folder {folder}")
        taken: set[str] = set()
        for picture in row.concept.pictures:
            stem = free_stem(picture.path.stem, taken)
            renamed += stem != picture.path.stem
            items.append(Item(folder / f"{stem}{picture.path.suffix}", picture.path, root=picture.root))
            try:
                caption = _caption_item(picture, finder.of(picture.path), folder / stem, extension)
            except LeadsOut as reason:
                caption = None
                left_out.append(reason)
            bare += caption is None
            others |= dict.fromkeys(finder.all_of(picture.path)[1:])
            items += [caption] if caption else []
    links = tuple(
        item.source for item in items if item.source and not item.is_caption and item.source.is_symlink()
    )
    suffixes = Counter(item.target.suffix for item in items if item.is_caption)
    sources = {item.source for item in items}
    seconds = tuple(path for path in others if path not in sources)
    return Layout(tuple(items), bare, renamed, tuple(left_out), links, suffixes, seconds)


def free_stem(stem: str, taken: set[str]) -> str:
    """The stem, with a number where it is ``taken`` in any case of its letters; it is taken then."""
    name, number = stem, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name.casefold())
    return name


def _caption_item(picture: Source, beside: Path | None, place: Path, extension: str) -> Item | None:
    """The caption of a picture, beside its ``place`` in the tree. Suffixes are in small letters there: some programs
    read no others. Raises LeadsOut, and InputError for a text that cannot be read.
    """
    if picture.caption is not None and picture.caption.strip():
        suffix = (
            beside.suffix.lower() if beside else extension if extension.startswith(".") else f".{extension}"
        )
        return Item(
            place.with_name(place.name + suffix), beside, picture.caption, is_caption=True, root=picture.root
        )
    if beside is not None:
        if beside.is_symlink() or beside.parent != picture.home:
            check_inside(beside, picture.home)
        check_text(beside, picture.home)
        return Item(
            place.with_name(place.name + beside.suffix.lower()), beside, is_caption=True, root=picture.root
        )
    return None


def check_text(caption: Path, home: Path) -> None:
    """Raise InputError for a caption that training would stop at, LeadsOut for one that leads out of ``home``."""
    try:
        decode_caption(read_within(caption, home), caption)
    except OSError as error:
        raise InputError(f"{caption}: cannot be read ({error.strerror})") from error


# -------------------------------------------------------------------------------- checks before the work


def check_tree(output: Path, layout: Layout, mode: Mode, *, force: bool) -> None:
    """Raise one line for what would stop the work half way: a target in use, a source inside it, no room, a link in the
    way.
    """
    if output.is_symlink():
        raise OutputError(f"{output}: a link, to {os.path.realpath(output)}; give -o the folder itself")
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
    if mode == "move":
        _check_moved(layout)
    parent = _existing_parent(output)
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{output}: its folder {parent} may not be written to")
    _check_room(parent, layout, mode)


def _check_moved(layout: Layout) -> None:
    """Raise ConfigError for files that a linked folder brings from elsewhere: they are not the dataset's to move."""
    roots = {item.source.parent: item.root for item in layout.items if item.source and item.root}
    for folder, root in roots.items():
        if (target := leads_out(folder, root)) is not None:
            raise ConfigError(
                f"{folder}: a link out of {root}, to {target}; its files are not moved: copy, or name {target}"
            )


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


# -------------------------------------------------------------------------------- renaming in place


def renames(rows: Sequence[Row]) -> list[tuple[Path, Path]]:
    """Old and new path of each concept's folder that has another number now.

    Raises ConfigError where a concept is not one folder, OutputError where the new name is taken.
    """
    pairs: list[tuple[Path, Path]] = []
    for row in rows:
        if len(row.concept.folders) != 1:
            raise ConfigError(f"--rename: {row.concept.name} lies in several folders; build a tree with -o")
        old = row.concept.folders[0]
        new = old.resolve().parent / folder_name(row.repeats, row.concept.name)
        if new.name != (old.name or old.resolve().name):
            pairs.append((old, old.parent / new.name if old.name else new))
    leaving = {old.resolve() for old, _ in pairs}
    for _, new in pairs:
        if os.path.lexists(new) and new.resolve() not in leaving:
            raise OutputError(f"--rename: {new} exists already; put the two folders together first")
    return pairs


def rename_folders(pairs: Sequence[tuple[Path, Path]]) -> list[Path]:
    """Rename all, with a journal; the folders that have it. It goes by way of another name, since one's new name may be
    another's old one. Raises OutputError; the folders then have their old names.
    """
    journal = Journal(TOOL)
    by_parent: dict[Path, list[tuple[str, str, str]]] = {}
    for old, new in pairs:
        place = old if old.name else old.resolve()
        between = f".{secrets.token_hex(8)}.tmp"
        by_parent.setdefault(place.parent, []).append((place.name, between, new.name))
    for parent, names in by_parent.items():
        with journal.folder(parent) as desk:
            steps = [(old, between) for old, between, _ in names] + [
                (between, new) for _, between, new in names
            ]
            _rename_all(desk, steps)
    return list(by_parent)


def _rename_all(desk: Folder, steps: Sequence[tuple[str, str]]) -> None:
    done: list[tuple[str, str]] = []
    try:
        for before, after in steps:
            desk.rename(before, after)
            done.append((before, after))
    except LoraError:
        for before, after in reversed(done):
            with suppress(LoraError):
                desk.rename(after, before)
        raise
