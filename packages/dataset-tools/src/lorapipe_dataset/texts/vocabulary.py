"""Tags as words: how they are compared, which are known, which are near a known one."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from lorapipe_engine.errors import InputError

_TWO_LETTERS = re.compile(r"[^\W\d_]{2}")
_WEIGHT = re.compile(r"\((.+):\s*[0-9.]+\)")
RATING_CATEGORY = "9"
MOST_DIGITS = 18  # of a count


@lru_cache(maxsize=1 << 16)  # each rule asks for the same tags
def canonical(tag: str) -> str:
    """A tag as it is compared: small letters, spaces for underscores, no escapes, no weight."""
    match = _WEIGHT.fullmatch(tag.strip())
    text = match[1] if match else tag
    return " ".join(text.replace("\\(", "(").replace("\\)", ")").replace("_", " ").casefold().split())


@lru_cache(maxsize=1 << 16)
def shown(tag: str) -> str:
    """A canonical tag as people read it: faces such as ``^_^`` have their underscores."""
    return tag if is_word(tag) else tag.replace(" ", "_")


def is_word(tag: str) -> bool:
    """Whether a tag is made of words; faces such as ``^_^``, ``o_o`` or ``(9)`` have no two letters side by side."""
    return _TWO_LETTERS.search(tag) is not None


@dataclass(frozen=True)
class Vocabulary:
    """Known tags in their canonical form, with how often they stand in the collection they come from."""

    counts: dict[str, int]

    @cached_property
    def _by_piece(self) -> dict[str, list[str]]:
        by_piece: dict[str, list[str]] = {}
        for tag in self.counts:
            for piece in _pieces(tag):
                by_piece.setdefault(piece, []).append(tag)
        return by_piece

    def nearest(self, tag: str) -> str | None:
        """The commonest known tag that is one slip away: a letter more, fewer, other or swapped, words swapped or
        joined, singular or plural. None for tags that are short or like nothing.
        """
        if len(tag) < 4:
            return None
        sharing = {known for piece in _pieces(tag) for known in self._by_piece.get(piece, ())}
        near = [known for known in sharing if len(known) >= 4 and _is_near(tag, known)]
        return max(near, key=lambda known: (self.counts[known], known), default=None)


def _pieces(tag: str) -> Iterator[str]:
    """Keys that tags one slip apart share: the tag, the tag without each of its letters, its words sorted."""
    yield tag
    yield " ".join(sorted(tag.split()))
    yield tag.replace(" ", "").replace("-", "")
    for index in range(len(tag)):
        yield tag[:index] + tag[index + 1 :]


def _is_near(one: str, other: str) -> bool:
    if sorted(one.split()) == sorted(other.split()) or one.replace(" ", "") == other.replace(" ", ""):
        return True
    if one[0] != other[0] and len(one) < 7:
        return False
    if sum(letter.isdigit() for letter in one + other) and _digits(one) != _digits(other):
        return False
    return _distance_is_one(one, other)


def _digits(text: str) -> str:
    return "".join(letter for letter in text if letter.isdigit())


def _distance_is_one(one: str, other: str) -> bool:
    """Whether one insertion, deletion, change or swap of neighbours turns one text into the other."""
    if len(one) > len(other):
        one, other = other, one
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    if len(one) < len(other):
        return len(other) - len(one) == 1 and one[start:] == other[start + 1 :]
    swapped = one[start + 1 : start + 2] + one[start : start + 1] + one[start + 2 :]
    return one[start + 1 :] == other[start + 1 :] or swapped == other[start:]


def read_vocabulary(path: Path) -> Vocabulary:
    """The tags of a tagger's ``selected_tags.csv`` (columns name, category, count; ratings are left out).

    Raises InputError for a file that is none.
    """
    rows = list(_rows(path))
    if not rows or "name" not in rows[0]:
        raise InputError(
            f"{path}: not a tag list: its first line has to name the columns tag_id,name,category,count"
        )
    counts: dict[str, int] = {}
    for row in rows:
        if row.get("category") == RATING_CATEGORY:
            continue
        count = row.get("count") or "0"
        if len(count) > MOST_DIGITS:
            raise InputError(f"{path}: a count of {len(count):,} digits; download the list again")
        counts[canonical(row["name"] or "")] = int(count) if count.isascii() and count.isdigit() else 0
    counts.pop("", None)
    if not counts:
        raise InputError(f"{path}: has no tags")
    return Vocabulary(counts)


def _rows(path: Path) -> Iterator[dict[str, str | None]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from error
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: cannot be read ({reason})") from error


def read_aliases(path: Path) -> dict[str, str]:
    """Canonical old name -> new name, from lines ``old,new``, ``old=new`` or ``old -> new``; # starts a remark.

    Raises InputError for a line that is none, or a file that cannot be read.
    """
    aliases: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = re.split(r"\s*(?:->|=|,|\t)\s*", line.strip(), maxsplit=1)
        if len(words) != 2 or not all(words):
            raise InputError(f"{path}, line {number}: not 'old,new' or 'old=new'")
        aliases[canonical(words[0])] = words[1]
    return aliases


# -------------------------------------------------------------------------------- tags that exclude each other

GIRLS = ("1girl", "2girls", "3girls", "4girls", "5girls", "6+girls")
BOYS = ("1boy", "2boys", "3boys", "4boys", "5boys", "6+boys")
SEVERAL = frozenset(
    {*GIRLS[1:], *BOYS[1:], "multiple girls", "multiple boys", "multiple others", "crowd", "everyone"}
)
# At most one of each line may stand in a caption.
ALWAYS_APART: tuple[tuple[str, ...], ...] = (
    GIRLS,
    BOYS,
    ("indoors", "outdoors"),
    ("day", "night"),
    ("from above", "from below"),
    ("portrait", "full body", "cowboy shot"),
    ("upper body", "lower body", "full body"),
)
# The first of each line excludes all others.
ALONE: tuple[tuple[str, frozenset[str]], ...] = (
    ("1girl", frozenset({"multiple girls"})),
    ("1boy", frozenset({"multiple boys"})),
    ("solo", SEVERAL),
    ("no humans", SEVERAL | {"1girl", "1boy", "solo"}),
)
# These too, where the caption speaks of one person.
APART_FOR_ONE: tuple[tuple[str, ...], ...] = (
    ("bald", "very short hair", "short hair", "medium hair", "long hair"),
    ("short hair", "very long hair", "absurdly long hair"),
    ("open mouth", "closed mouth"),
    ("closed eyes", "one eye closed", "wide-eyed"),
    ("flat chest", "small breasts", "medium breasts", "large breasts", "huge breasts"),
    ("sitting", "standing", "lying"),
    ("barefoot", "shoes", "boots"),
)


_CLASHING = SEVERAL.union(
    *ALWAYS_APART, *APART_FOR_ONE, *({one} | others for one, others in ALONE)
)  # what any of them speaks of


def contradictions(tags: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of the canonical ``tags`` that exclude each other."""
    here = _CLASHING.intersection(tags)
    if len(here) < 2:
        return []
    groups = ALWAYS_APART if here & SEVERAL else (*ALWAYS_APART, *APART_FOR_ONE)
    listed: list[tuple[str, ...]] = []
    clashes = [tuple(tag for tag in group if tag in here) for group in groups]
    clashes += [(one, *sorted(here & others)) for one, others in ALONE if one in here]
    for clash in clashes:
        if len(clash) > 1 and not any(set(clash) <= set(other) for other in listed):
            listed.append(clash)
    return listed


ARTEFACTS = frozenset(
    {
        "signature", "watermark", "sample watermark", "artist name", "artist logo", "web address", "logo", "text",
        "twitter username", "patreon username", "patreon logo", "pixiv username", "pixiv id", "instagram username",
        "copyright name", "copyright notice", "company name", "group name", "character name", "dated", "english text",
        "japanese text", "chinese text", "korean text", "translated", "speech bubble", "commentary", "subtitled",
        "fake screenshot", "watermark grid", "weibo username", "weibo watermark", "deviantart username",
        "tumblr username", "username", "cover", "content rating", "barcode", "heart censor", "mosaic censoring",
        "bar censor", "censored", "jpeg artifacts", "scan artifacts", "lowres", "extra fingers", "extra arms",
        "extra legs", "bad anatomy", "bad hands", "bad feet", "missing finger", "third-party watermark",
    }
)  # fmt: skip
PANELS = frozenset(
    {"multiple views", "comic", "4koma", "2koma", "3koma", "reference sheet", "character sheet", "variations"}
)
RATINGS = frozenset({"general", "sensitive", "questionable", "explicit", "safe"})


@lru_cache(maxsize=1 << 16)
def rating_of(tag: str) -> str | None:
    """The rating that a canonical tag names (``rating:safe``, ``explicit``), or None."""
    word = tag.removeprefix("rating:").strip()
    short = {"g": "general", "s": "sensitive", "q": "questionable", "e": "explicit"}
    if tag.startswith("rating:"):
        return short.get(word, word)
    return word if word in RATINGS else None
