"""Which files in a folder are the captions of its pictures, and which picture a metadata file means by a name. Every
tool asks here, so all find the same one.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.pictures.captions import caption_suffixes
from lorapipe_engine.pictures.layout import IMAGE_SUFFIXES, OTHER_PICTURES, is_folder, split_suffix

_NOT_CAPTIONS = frozenset({".npz", ".npy", ".safetensors", ".onnx", ".csv", ".toml", ".sqlite", ".py"})


def one_form(name: str) -> str:
    """A name with its accents put together (Unicode NFC): macOS and some archivers take them apart (NFD)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def caption_suffix(text: str, option: str) -> str:
    """The suffix of captions that ``option`` asks for, with its dot. Raises ConfigError for what no caption may have: a
    picture's, or that of a file which trainers keep beside pictures.
    """
    if not text.strip(". ") or any(sign in text for sign in "/\\\0\n"):
        raise ConfigError(f"{option} {text!r}: a suffix such as .txt or .caption is needed")
    suffix = text if text.startswith(".") else f".{text}"
    if suffix.lower() in IMAGE_SUFFIXES | OTHER_PICTURES | _NOT_CAPTIONS:
        raise ConfigError(f"{option} {suffix}: that is no suffix of captions; .txt and .caption are usual")
    return suffix


class CaptionNames:
    """Which of a folder's files are whose captions.

    A picture's caption is ``a.txt``: its stem with the wanted suffix, else ``.txt``, else ``.caption``, in any case of
    the suffix's letters. Where there is none it is ``a.png.txt``, which also counts first where several pictures share
    the stem. A stem whose accents are written in the other form counts where no picture has exactly that stem.
    """

    def __init__(self, names: Iterable[str], extension: str = ".txt") -> None:
        self._suffixes = caption_suffixes(extension)
        lowered = [(suffix, suffix.lower()) for suffix in self._suffixes]
        self._files: dict[tuple[str, str], list[str]] = {}
        self._accented: dict[tuple[str, str], list[str]] = {}
        self._stems: Counter[str] = Counter()
        self._pictures: set[str] = set()
        ends = tuple(lower for _, lower in lowered)
        for name in names:
            low = name.lower()
            for suffix, lower in lowered if low.endswith(ends) else ():
                if low.endswith(lower) and len(name) > len(suffix):
                    stem = name[: -len(suffix)]
                    self._files.setdefault((stem, suffix), []).append(name)
                    if not stem.isascii():
                        self._accented.setdefault((one_form(stem), suffix), []).append(stem)
            stem, end = split_suffix(name)
            # Small letters may be more than the capitals were, so a length of theirs is none of the name's.
            if (end := end.lower()) in IMAGE_SUFFIXES or end in OTHER_PICTURES:
                self._stems[stem] += 1
                self._pictures.add(name)

    @classmethod
    def in_folder(cls, folder: Path, extension: str = ".txt") -> CaptionNames:
        """Of the files that lie in a folder. Raises InputError if it cannot be read."""
        try:
            with os.scandir(folder) as entries:
                return cls([entry.name for entry in entries if not is_folder(entry)], extension)
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({error.strerror})") from error

    def of(self, picture: str) -> list[str]:
        """The files that are captions of a picture, by name; the first one is read."""
        stem, suffix = split_suffix(picture)
        shared, own = self._named(stem), self._named(picture) if suffix else []
        return [*own, *shared] if self.shares_stem(picture) else [*shared, *own]

    def read_for(self, picture: str) -> str | None:
        """The file that is read as a picture's caption, None where there is none."""
        if self.shares_stem(picture):
            named = self.of(picture)
        else:
            stem, suffix = split_suffix(picture)
            named = self._named(stem) or (self._named(picture) if suffix else [])
        return named[0] if named else None

    def shares_stem(self, picture: str) -> bool:
        """Whether another picture differs from this one in its suffix only."""
        return self._stems[split_suffix(picture)[0]] > 1

    def usual(self, picture: str) -> list[str]:
        """The names that a picture's caption may have, in the order in which they are tried."""
        stem, suffix = split_suffix(picture)
        shared = [stem + end for end in self._suffixes]
        own = [picture + end for end in self._suffixes] if suffix else []
        return [*own, *shared] if self.shares_stem(picture) else [*shared, *own]

    def _named(self, stem: str) -> list[str]:
        exact: list[str] = []
        for suffix in self._suffixes:
            exact += self._with(stem, suffix)
        if exact or stem.isascii():
            return exact
        form = one_form(stem)
        return [
            name
            for suffix in self._suffixes
            for other in dict.fromkeys(self._accented.get((form, suffix), ()))
            if other not in self._stems and other not in self._pictures
            for name in self._with(other, suffix)
        ]

    def _with(self, stem: str, suffix: str) -> list[str]:
        same = self._files.get((stem, suffix), [])
        return same if len(same) < 2 else sorted(same, key=lambda n: (not n.endswith(suffix), n))


class CaptionFinder:
    """The captions of pictures anywhere; each folder is listed once."""

    def __init__(self, extension: str = ".txt") -> None:
        self._extension = extension
        self._folders: dict[Path, CaptionNames] = {}

    def of(self, picture: Path) -> Path | None:
        """The caption file of a picture that is read; None where there is none, or its folder cannot be read.

        A file that came after its folder was listed is seen too: another tool may be writing captions meanwhile.
        """
        folder = picture.parent
        names = self._names(folder)
        if names is None:
            return None
        listed = next(iter(names.of(picture.name)), None)
        for name in names.usual(picture.name):
            if listed is not None and listed.lower() == name.lower():
                return folder / listed
            # A name that is too long for the system is no file, and no error.
            if os.path.isfile(folder / name):  # noqa: PTH113
                return folder / name
        return None if listed is None else folder / listed

    def all_of(self, picture: Path) -> list[Path]:
        """All caption files of a picture, of which the first is read."""
        names = self._names(picture.parent)
        return [] if names is None else [picture.parent / name for name in names.of(picture.name)]

    def _names(self, folder: Path) -> CaptionNames | None:
        if folder not in self._folders:
            try:
                self._folders[folder] = CaptionNames.in_folder(folder, self._extension)
            except InputError:
                return None
        return self._folders[folder]


class PictureNames:
    """Pictures by their names, which may be paths from a folder: with the suffix, else without it. A name whose accents
    are written in the other form counts where no picture has exactly that name.
    """

    def __init__(self, pictures: Mapping[str, Path]) -> None:
        self._by_name = dict(pictures)
        self._by_stem: dict[str, Path] = {}
        self._by_form: dict[str, Path] = {}
        for name, path in pictures.items():
            stem = name.removesuffix(path.suffix)
            self._by_stem[stem] = path
            for text in (name, stem):
                self._by_form.setdefault(one_form(text), path)

    def of(self, name: str) -> Path | None:
        """The picture of a name; None where there is none."""
        return self._by_name.get(name) or self._by_stem.get(name) or self._by_form.get(one_form(name))
