"""A folder's texts and pictures, paired as the trainer pairs them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorapipe_engine.pictures.caption_files import CaptionNames, one_form
from lorapipe_engine.pictures.layout import IMAGE_SUFFIXES, OTHER_PICTURES, is_mask

PICTURES = IMAGE_SUFFIXES | OTHER_PICTURES


@dataclass(slots=True)
class Text:
    """A text file and the picture whose caption it is (None: it has none). ``stem`` is its name without the suffix.

    ``second``: the picture has another caption that is read before this one. ``others``: pictures that differ from it
    in their suffix only and read this caption too.
    """

    path: str
    stem: str
    owner: str | None = None
    second: bool = False
    others: tuple[str, ...] = ()


@dataclass
class Pairing:
    """The texts of one folder with their pictures. ``alone``: how many texts have none, where there are pictures;
    ``bare``: pictures without a text, each with its path without the suffix; masks want none.
    """

    texts: list[Text] = field(default_factory=list)
    alone: int = 0
    bare: list[tuple[str, str]] = field(default_factory=list)

    @property
    def seconds(self) -> list[str]:
        """The names of the texts that are not read, sorted."""
        return sorted(os.path.basename(text.path) for text in self.texts if text.second)  # noqa: PTH119


def split_suffix(path: str) -> tuple[str, str]:
    """A path without its suffix, and the suffix, "" for none: as path objects have it."""
    start = len(path) - len(os.path.basename(path))  # noqa: PTH119
    dot = path.rfind(".", start)
    return (path[:dot], path[dot:]) if start < dot < len(path) - 1 else (path, "")


def picture_stem(path: str) -> str:
    """A picture's path without its suffix; where it has none, a dot in its name begins no suffix (``Dr. Who``)."""
    stem, suffix = split_suffix(path)
    return stem if suffix.lower() in PICTURES else path


def pair(paths: Sequence[str], extensions: Sequence[str]) -> Pairing:
    """Pair the files of one folder; ``extensions`` are the suffixes of texts, the one that is tried first in front.

    Where the folder has no picture, all its texts are captions.
    """
    start = len(os.path.join(os.path.dirname(paths[0]), ""))  # noqa: PTH118, PTH120
    split = [(path, *split_suffix(path)) for path in paths]
    texts = [(path, stem[start:]) for path, stem, suffix in split if suffix.lower() in extensions]
    pictures = [(path, stem) for path, stem, suffix in split if suffix.lower() in PICTURES]
    if not pictures:
        return Pairing([Text(path, stem) for path, stem in texts])
    owners = _owners(pictures, start)
    pairing = Pairing()
    held: dict[str, list[Text]] = {}
    for path, stem in texts:
        owner = owners.get(stem) or (None if stem.isascii() else owners.get(one_form(stem)))
        if owner is None:
            pairing.alone += 1
            continue
        text = Text(path, stem, owner)
        pairing.texts.append(text)
        held.setdefault(owner, []).append(text)
    stems = Counter(stem for _, stem in pictures)
    if len(stems) == len(pictures) and all(len(rows) == 1 for rows in held.values()):
        pairing.bare = [row for row in pictures if row[0] not in held and not is_mask(Path(row[0]))]
        return pairing
    names = CaptionNames([path[start:] for path, _ in (*texts, *pictures)], extensions[0])
    _tell_apart(pairing, pictures, names, start)
    return pairing


def _owners(pictures: Sequence[tuple[str, str]], start: int) -> dict[str, str]:
    """The pictures by the stems that their captions may have; names begin at ``start``."""
    owners: dict[str, str] = {}
    for picture, stem in pictures:
        owners.setdefault(stem[start:], picture)
        owners[picture[start:]] = picture  # a.png.txt is a caption too
    for picture, stem in pictures:
        if not stem.isascii():
            owners.setdefault(one_form(stem[start:]), picture)
    return owners


def _tell_apart(
    pairing: Pairing, pictures: Sequence[tuple[str, str]], names: CaptionNames, start: int
) -> None:
    """Give each picture the one text that is read of those it might have."""
    by_name = {text.path[start:]: text for text in pairing.texts}
    readers: dict[str, list[str]] = {}
    for picture, stem in pictures:
        first = next((name for name in names.of(picture[start:]) if name in by_name), None)
        if first is None and not is_mask(Path(picture)):
            pairing.bare.append((picture, stem))
        if first is not None:
            readers.setdefault(first, []).append(picture)
    for name, text in by_name.items():
        text.second = name not in readers
        if not text.second:
            text.owner, *others = readers[name]
            text.others = tuple(others)
