"""The pictures of a folder and their captions as they are on the disk, whoever changes them.

What is a picture, its caption and its concept is decided by the check's own scan. A picture keeps its number for as
long as the server runs, also when it is left out or goes away. Whatever changes gets the number of the revision in
which that was seen.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from lorapipe_dataset.check.pictures.dataset import Dataset, Picture, Place
from lorapipe_dataset.check.pictures.scan import WORKERS, read_header, read_words, scan
from lorapipe_engine.changes.filebytes import digest, read_stamped
from lorapipe_engine.changes.journal import HIDDEN
from lorapipe_engine.command.records import Record
from lorapipe_engine.errors import InputError, LoraError
from lorapipe_engine.pictures.caption_files import CaptionNames
from lorapipe_engine.pictures.captions import caption_lines, decode_caption
from lorapipe_engine.pictures.layout import IMAGE_SUFFIXES, is_mask, split_suffix

OUT = "."  # in front of a name: every tool here leaves such a picture out and says so
_FORK = "._"  # what macOS keeps of a file beside it
SELDOM = 5.0  # seconds between two looks at whether pictures' files are still the same
_YOUNG = 3_000_000_000  # ns; a file so young may be written again without its time telling


# What tells that a file is still the one that was read: its number, size, and times of writing and change.
Signature = tuple[int, int, int, int]


@dataclass
class Item:
    """A picture of the shelf. ``home``: where it lies when it is not left ``out``; ``gone``: it is in neither place.

    ``text`` is its whole caption, ``version`` a digest of its file's bytes, both None where there is no file.
    """

    id: int
    home: Path
    picture: Picture
    out: bool = False
    gone: bool = False
    text: str | None = None
    version: str | None = None
    revision: int = 0
    added: int = 0  # the revision in which it came
    image: str = ""  # changes with the picture's file
    _caption: Signature | None = None
    _sure: bool = False
    _has_words: bool = False
    _trouble: Exception | None = None

    @property
    def root(self) -> Path:
        """The folder that links must not leave."""
        return self.picture.place.root or self.picture.place.path

    def check(self) -> bool:
        """Read again what changed on the disk; whether anything did."""
        return bool(self.check_image() | self.check_caption())

    def check_image(self) -> bool:
        """The same of the picture's file alone."""
        seen = signature_of(self.picture.path)
        image = "" if seen is None else ".".join(f"{number:x}" for number in seen[:3])
        if image == self.image:
            return False
        self.image = image
        self.picture = replace(self.picture, size=None, problem=None if seen else "no plain file")
        if seen is not None:
            read_header(self.picture)
        return True

    def check_caption(self) -> bool:
        """The same of its caption."""
        path = self.picture.caption_path
        seen = None if path is None else signature_of(path)
        if seen == self._caption and (self._sure or seen is None) and self._has_words:
            return False
        known = self._has_words, self.version, str(self._trouble)
        self._has_words, self._caption = True, seen
        self._sure = seen is not None and time.time_ns() - max(seen[2:]) > _YOUNG
        held = self._bytes()
        if known == (True, self.version, str(self._trouble)):
            return False
        self._take_words(held)
        return True

    def _bytes(self) -> bytes | None:
        """What the caption file holds, None where that cannot be read; its version, or the reason, is noted."""
        path, held = self.picture.caption_path, None
        self.version, self._trouble = None, None
        try:
            held = None if path is None else read_stamped(path, self.root)[0]
            self.version = version_of(held)
        except (LoraError, OSError) as error:
            self._trouble = error
        return held

    def _take_words(self, held: bytes | None) -> None:
        def read(path: Path) -> bytes:
            if self._trouble is not None:
                raise self._trouble
            if held is None:
                raise FileNotFoundError(2, "No such file or directory", str(path))
            return held

        self.picture = replace(self.picture, caption=None, lines=0, trouble=None, outside=None)
        read_words(self.picture, read)
        self.text = None
        if held is not None and self.picture.caption is not None:
            self.text = "\n".join(caption_lines(decode_caption(held, self.picture.path)))

    def take(self, picture: Picture, *, out: bool) -> bool:
        """What a scan found in its place; whether that is new."""
        old = self.picture
        same = (old.path, old.captions, old.place) == (picture.path, picture.captions, picture.place)
        if same and self.out == out and not self.gone:
            return False
        if old.path == picture.path or self.out != out:
            picture = replace(picture, look=old.look)
        self.picture = replace(picture, size=old.size, problem=old.problem)
        self.out, self.gone, self._has_words = out, False, False
        return True


def version_of(data: bytes | None) -> str | None:
    """A short digest of a caption file's bytes; None where there is no file."""
    return None if data is None else digest(data)[:16]


def signature_of(path: Path | str) -> Signature | None:
    """A plain file's signature, links followed; None where there is none: a pipe would be waited for."""
    try:
        facts = os.stat(path)  # noqa: PTH116 - thousands of files a second
    except OSError:
        return None
    if not stat.S_ISREG(facts.st_mode):
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


class Shelf:
    """All pictures of the folder ``root``, and what changed since which revision."""

    def __init__(self, root: Path, extension: str, *, recursive: bool) -> None:
        self.root = root
        self.items: list[Item] = []
        self.revision = 0
        self.structure = 0  # grows with each scan
        self._looked = time.monotonic()
        self.scanned = Dataset()
        self.title = root.resolve().name
        # With what is behind it: a file in it, or the end of its name.
        names = "|".join(re.escape(name) for name in {str(root), str(root.resolve())} - {"."})
        self._own_path = re.compile(rf"(?<![^\s'\"(])({names or '(?!)'})(?:({re.escape(os.sep)})|(?![\w.-]))")
        self._extension = extension
        self._recursive = recursive
        self._by_home: dict[Path, Item] = {}
        self._places: dict[Path, Place] = {}
        self._names: dict[Path, frozenset[str]] = {}
        self._beside: dict[Path, CaptionNames] = {}  # of the last scan
        self._scan(scan([Record(root)], extension, recursive=recursive))
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(Item.check, self.items))

    def refresh(self) -> None:
        """Look at the disk again; what changed is of the next revision."""
        now = self.revision + 1
        changed = self._scan_again() if self._listed() != self._names else []
        present = [item for item in self.items if not item.gone]
        # Half of the work, for what seldom happens.
        if changed or time.monotonic() - self._looked > SELDOM:
            self._looked = time.monotonic()
            changed += [item for item in present if item.check_image()]
        changed += [item for item in present if item.check_caption()]
        for item in changed:
            item.revision = now
        if changed:
            self.revision = now

    def present(self) -> Iterator[Item]:
        """The pictures that are there and not left out."""
        return (item for item in self.items if not (item.gone or item.out))

    def since(self, revision: int) -> list[Item]:
        """The pictures that changed after a revision."""
        return [item for item in self.items if item.revision > revision]

    def caption_of(self, item: Item) -> Path:
        """The caption file of a picture; where there is none, the one that it would have."""
        path = item.picture.caption_path
        if path is not None:
            return path
        folder, name = item.picture.path.parent, item.picture.path.name
        if folder not in self._beside:
            self._beside[folder] = CaptionNames.in_folder(folder, self._extension)
        return folder / self._beside[folder].usual(name)[0]

    def relative(self, path: Path | str) -> str:
        """A path from the folder on: nothing else of the machine is shown."""
        return os.path.relpath(path, self.root)

    def plain(self, text: str) -> str:
        """A message with paths from the folder on."""
        return self._own_path.sub(lambda match: "" if match[2] else self.title, text)

    # ------------------------------------------------------------------------ the folders

    def _listed(self) -> dict[Path, frozenset[str]]:
        return {folder: _names_in(folder) for folder in dict.fromkeys((self.root, *self._places))}

    def _scan_again(self) -> list[Item]:
        # Listed before it is scanned: what comes meanwhile is a difference the next time.
        self._names = self._listed()
        try:
            scanned = scan([Record(self.root)], self._extension, recursive=self._recursive)
        except InputError:
            # All pictures are left out or gone, or a folder came that nobody can train.
            there = [one for one in self.scanned.pictures if one.path.exists()]
            scanned = replace(self.scanned, pictures=there)
        return self._scan(scanned)

    def _scan(self, scanned: Dataset) -> list[Item]:
        self.scanned = scanned
        self.structure += 1
        self._beside.clear()
        self._places |= {picture.place.path: picture.place for picture in scanned.pictures}
        seen = {picture.path: (picture, False) for picture in scanned.pictures}
        for home, picture in self._hidden():
            seen.setdefault(home, (picture, True))
        changed = [item for item in map(self._placed, seen.items()) if item is not None]
        for item in self.items:
            if item.home not in seen and not item.gone:
                item.gone = True
                changed.append(item)
        return changed

    def _placed(self, row: tuple[Path, tuple[Picture, bool]]) -> Item | None:
        """The item of a picture that was found, if it is new or lies elsewhere than before."""
        home, (picture, out) = row
        item = self._by_home.get(home)
        if item is not None:
            return item if item.take(picture, out=out) else None
        item = Item(len(self.items), home, picture, out, added=self.revision + 1 if self.structure > 1 else 0)
        self._by_home[home] = item
        self.items.append(item)
        return item

    def _hidden(self) -> Iterable[tuple[Path, Picture]]:
        """Pictures that are left out, by the paths that they had."""
        for folder, place in self._places.items():
            names = _names_in(folder)
            captions = CaptionNames(names, self._extension)
            for name in sorted(names):
                path = folder / name
                if not _is_out(name) or is_mask(path):
                    continue
                named = [folder / caption for caption in captions.of(name)]
                picture = Picture(path, place, named[0] if named else None, tuple(named[1:]))
                yield folder / name[len(OUT) :], picture


def _is_out(name: str) -> bool:
    return (
        name.startswith(OUT)
        and not name.startswith(_FORK)
        and split_suffix(name)[1].lower() in IMAGE_SUFFIXES
        and len(split_suffix(name)[0]) > len(OUT)
    )


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder)) - {HIDDEN}  # noqa: PTH208 - path objects take longer
    except OSError:
        return frozenset()
