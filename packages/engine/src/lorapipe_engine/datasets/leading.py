"""The tag that begins all captions: most often the trigger, which a shuffle should leave in its place."""

from __future__ import annotations

from collections.abc import Iterable

from lorapipe_engine.pictures.captions import split_tags

FEWEST = 5  # captions; of fewer any tag may come first by chance
_COMMON = ("solo", "no humans")


def leading_tag(captions: Iterable[str], separator: str = ",") -> str | None:
    """The first tag of all captions that have text; None where they differ, are few, or it is nobody's name."""
    firsts = [tags[0] for text in captions if (tags := split_tags(text, separator))]
    if len(firsts) < FEWEST or len({_plain(tag) for tag in firsts}) > 1 or is_common(firsts[0]):
        return None
    return firsts[0]


def is_common(tag: str) -> bool:
    """Whether a tag comes first in captions by habit, as "1girl" does."""
    word = _plain(tag)
    return word[:1].isdigit() or word in _COMMON


def _plain(tag: str) -> str:
    return tag.strip().lower().replace("_", " ")
