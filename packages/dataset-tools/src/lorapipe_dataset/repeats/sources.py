"""Where the pictures come from: folders, folders of folders, or a list of records, gathered by concept."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorapipe_engine.command.records import Record
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.pictures.images import image_size
from lorapipe_engine.pictures.layout import IMAGE_SUFFIXES, concept_of, survey

_WEIGHTED = re.compile(r"\{(\d+(?:\.\d+)?)\}(.+)", re.DOTALL)
LONGEST_NAME = 200  # bytes of a concept in a folder's name; file systems take 255 for the whole
UNNAMED = "concept"  # stands for a concept without a name
# What a folder's name cannot have on one system or another.
_UNUSABLE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')


@dataclass(frozen=True)
class Source:
    """A picture, its caption where the record brought one (it overrides the file beside the picture), and the folder
    that the user named, which links must not leave (by default the picture's own).
    """

    path: Path
    caption: str | None = None
    root: Path | None = None

    @property
    def home(self) -> Path:
        """The folder that links must not leave."""
        return self.root if self.root is not None else self.path.parent


@dataclass
class Concept:
    """Pictures that share a name; ``weight`` is the number of a folder ``{1.5}name``."""

    name: str
    pictures: list[Source] = field(default_factory=list)
    weight: float | None = None

    @property
    def folders(self) -> list[Path]:
        """The folders its pictures lie in."""
        return list(dict.fromkeys(picture.path.parent for picture in self.pictures))


@dataclass
class Gathered:
    """All concepts by name, and what could not be taken, as ``path: reason``; ``notes`` say what was left out."""

    concepts: dict[str, Concept] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _seen: dict[str, tuple[str, Source]] = field(default_factory=dict)

    def add(self, name: str, source: Source, weight: float | None = None) -> None:
        """Put a picture into the concept ``name``. One that is there already is not taken twice, which is noted where
        it comes with other words; one that training would stop at is a failure.
        """
        place = os.path.abspath(source.path)  # noqa: PTH100 - links are not to be followed
        first_name, first = self._seen.setdefault(place, (name, source))
        if first is not source:
            if source.caption not in (None, first.caption):
                self.notes.append(f"{source.path}: named twice, and its first caption counts")
            elif name != first_name:
                self.notes.append(f"{source.path}: named twice, and belongs to '{first_name}' as at first")
            return
        try:
            image_size(source.path)
        except InputError as error:
            self.failures.append(str(error))
            return
        concept = self.concepts.setdefault(name, Concept(name))
        concept.pictures.append(source)
        concept.weight = concept.weight or weight


def gather(records: Iterable[Record], *, concept: str | None, recursive: bool) -> Gathered:
    """Sort what the records name into concepts: ``concept`` if given, else the record's own word, else its folder.

    Raises InputError where there is no picture at all, or a folder cannot be read.
    """
    gathered = Gathered()
    number = 0
    for number, record in enumerate(records, 1):  # noqa: B007 - how many there are
        if record.path.is_dir():
            _add_folder(gathered, record.path, concept, recursive)
        else:
            _add_record(gathered, record, concept)
    if not gathered.concepts:
        if not number:
            raise InputError("no pictures to count: the list on standard input is empty")
        raise InputError(_nothing([*gathered.failures, *gathered.notes]))
    return gathered


def _nothing(reasons: list[str]) -> str:
    formats = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
    return f"no pictures found ({formats})" + (f"; {reasons[0]}" if reasons else "")


def _add_folder(gathered: Gathered, folder: Path, concept: str | None, recursive: bool) -> None:
    """Each folder's pictures are a concept, as the trainer would have it; what is left out is noted."""
    laid = survey(folder)
    if laid.unread:
        raise InputError(laid.unread[0])
    for part in laid.parts:
        if part.reason is None or (recursive and part.is_inner):
            name, weight = read_name(part.top)
            for picture in part.pictures:
                gathered.add(concept or name, Source(part.path / picture, root=folder), weight)
    lines = laid.left_out(inner=not recursive, hint=" (--recursive takes them in)")
    gathered.notes += [f"{folder}: left out: {line}" for line in lines]


def _add_record(gathered: Gathered, record: Record, concept: str | None) -> None:
    path, data = record.path, record.data
    if "error" in data:
        gathered.failures.append(f"{path}: {data['error']}")
    elif not path.is_file():
        gathered.failures.append(f"{path}: no such file")
    elif path.suffix.lower() not in IMAGE_SUFFIXES:
        gathered.failures.append(f"{path}: not a picture that is trained ({path.suffix or 'no suffix'})")
    else:
        name, weight = read_name(path.absolute().parent)
        word = concept or _word(data, "concept") or _trigger(data)
        gathered.add(word or name, Source(path, _caption(data)), weight)


def _word(data: Mapping[str, Any], key: str) -> str | None:
    value = data.get(key)
    return value.strip() or None if isinstance(value, str) else None


def _trigger(data: Mapping[str, Any]) -> str | None:
    """The first tag of the trigger: ``mayu, school uniform`` trains ``mayu``."""
    word = _word(data, "trigger")
    return (word.partition(",")[0].strip() or None) if word else None


def _caption(data: Mapping[str, Any]) -> str | None:
    value = data.get("caption")
    return value if isinstance(value, str) else None


def read_name(folder: Path) -> tuple[str, float | None]:
    """What a folder's name says: the concept of ``6_maid``; concept and weight of ``{1.5}maid``.

    A name that says none, as ``6_``, stands for "concept".
    """
    name = folder.name or folder.resolve().name or UNNAMED
    concept = concept_of(name)
    if concept != name:
        return concept or UNNAMED, None
    if (match := _WEIGHTED.fullmatch(name)) and float(match[1]) > 0:
        return match[2], float(match[1])
    return name, None


def folder_name(repeats: int, concept: str) -> str:
    """``N_concept``, without letters that a file system may refuse."""
    clean = _UNUSABLE.sub("_", concept).strip()
    while len(os.fsencode(clean)) > LONGEST_NAME:
        clean = clean[:-1]
    return f"{repeats}_{clean.rstrip('. ') or UNNAMED}"


def named_numbers(words: Iterable[str], option: str, concepts: Iterable[str]) -> dict[str, float]:
    """The numbers of ``10`` (for all) or ``maid=6``. Raises ConfigError for a wrong number or an unknown concept."""
    known = list(concepts)
    numbers: dict[str, float] = {}
    for word in words:
        name, mark, text = word.rpartition("=")
        number = _number(text)
        if number is None:
            raise ConfigError(f"{option} {word}: not a number above 0, as 10 or maid=6")
        if mark and name not in known:
            raise ConfigError(f"{option} {word}: no concept '{name}'; there are {_listed(known)}")
        numbers |= {name: number} if mark else dict.fromkeys(known, number) | numbers
    return numbers


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} others" if len(names) > 8 else "")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < 1e6 else None
