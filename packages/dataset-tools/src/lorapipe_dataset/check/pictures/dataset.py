"""A dataset as it lies on the disk: folders, pictures with their captions, and what their pixels tell."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lorapipe_dataset.check.pictures.hashing import Hashes, Small
from lorapipe_dataset.check.pictures.measures import Measures
from lorapipe_dataset.clean.captions.tags import MARK, split_caption
from lorapipe_dataset.texts.vocabulary import canonical
from lorapipe_engine.pictures.buckets import Size
from lorapipe_engine.pictures.captions import split_tags


@dataclass(frozen=True)
class Look:
    """A picture's file and pixels. ``quality`` is a JPEG's (1 to 100), ``turned`` the EXIF orientation (1 upright).
    ``frames`` is None for several that are not counted.

    ``problem`` is set, and ``hashes``, ``small`` and ``measures`` are not, where the pixels cannot be read.
    """

    format: str = ""
    mode: str = ""
    frames: int | None = 1
    turned: int = 1
    transparent: bool = False
    quality: int | None = None
    problem: str | None = None
    too_large: bool = False
    hashes: Hashes | None = None
    measures: Measures | None = None
    thumbnail: bytes | None = None
    small: Small | None = None


@dataclass(frozen=True)
class Place:
    """A folder with pictures. ``repeats`` is None where its name has no number; ``trained`` tells whether lora-train
    takes its pictures, or with --recursive lora-repeats would. ``root`` is the folder that the user named, ``linked``
    where a link leads that lies between, ``inner`` whether it lies inside a concept's folder.
    """

    path: Path
    concept: str
    repeats: int | None
    trained: bool
    root: Path | None = None
    linked: Path | None = None
    inner: bool = False


@dataclass
class Picture:
    """A picture and its caption. ``size`` is None for a file whose header cannot be read, ``problem`` says why;
    ``trouble`` says why the caption cannot be read. ``outside`` is where a caption leads that is a link out of the
    dataset: its words are not kept. ``more_captions`` are files of its name that are not read. ``look`` is filled when
    the pixels are read.
    """

    path: Path
    place: Place
    caption_path: Path | None = None
    more_captions: tuple[Path, ...] = ()
    caption: str | None = None
    lines: int = 0
    trouble: str | None = None
    outside: Path | None = None
    size: Size | None = None
    problem: str | None = None
    look: Look | None = None

    @cached_property
    def tags(self) -> list[str]:
        return [tag for tag in self.pieces if tag != MARK]

    @cached_property
    def keys(self) -> list[str]:
        """What its tags are compared by, in their order."""
        return [canonical(tag) for tag in self.tags]

    @cached_property
    def is_text(self) -> bool:
        """Whether its caption is a sentence."""
        return is_text(self.caption or "")

    @property
    def captions(self) -> tuple[Path, ...]:
        """All of its caption files, the one that is read first."""
        return () if self.caption_path is None else (self.caption_path, *self.more_captions)

    @property
    def is_readable(self) -> bool:
        """Whether it can be trained, as far as it was looked at."""
        return self.problem is None and (self.look is None or self.look.problem is None)

    @cached_property
    def pieces(self) -> list[str]:
        """The tags, and the marks that keep some of them in front."""
        return split_caption(self.caption or "", (",",))


@dataclass
class Dataset:
    """All that was found. ``others`` are files that belong to no picture, and pictures in other formats. ``left_out``
    says what is not trained and why, ``untrained`` has the reason for each such folder. ``seen`` are
    all files' whole paths.
    """

    places: list[Place] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    untrained: dict[Path, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    @cached_property
    def trained(self) -> list[Picture]:
        """The pictures that lora-train takes."""
        return [picture for picture in self.pictures if picture.place.trained]

    @property
    def numbered(self) -> bool:
        """Whether any folder says how often its pictures come; without, the pictures are to become a dataset."""
        return any(picture.place.repeats is not None for picture in self.trained)

    @cached_property
    def captioned(self) -> list[Picture]:
        """The trained pictures with a caption of at least a letter."""
        return [picture for picture in self.trained if picture.caption]

    @cached_property
    def concepts(self) -> dict[str, list[Picture]]:
        """The trained pictures by concept."""
        by_concept: dict[str, list[Picture]] = {}
        for picture in self.trained:
            by_concept.setdefault(picture.place.concept, []).append(picture)
        return by_concept

    @cached_property
    def style(self) -> str:
        """``text`` if most captions are sentences, else ``tags``."""
        return "text" if 2 * sum(one.is_text for one in self.captioned) > len(self.captioned) else "tags"


def is_text(caption: str) -> bool:
    """Whether a caption is a sentence rather than tags: a long piece between commas, a full stop at the end, or a piece
    that says it as people do, "photo of Ann" or "pencil art of a man fishing"."""
    pieces = split_tags(caption)
    words = [len(piece.split()) for piece in pieces]
    if not pieces:
        return False
    spoken = any(
        _MEDIUM.match(piece) or (_ARTICLE.search(piece) and len(piece.split()) >= 5) for piece in pieces
    )
    return spoken or max(words) >= 8 or (caption.rstrip().endswith(".") and max(words) >= 4)


# Tags name a medium alone, and have an article in short ones only, as "looking to the side".
_ARTICLE = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)
_MEDIUM = re.compile(
    r"(\S+ ){0,2}(photo|photograph|picture|image|drawing|painting|art|artwork|sketch|illustration|portrait|render) of ",
    re.IGNORECASE,
)
