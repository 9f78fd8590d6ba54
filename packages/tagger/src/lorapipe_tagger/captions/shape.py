"""From the tags of a picture to its caption, in one fixed order of steps.

aliases, implications, expansion of characters, replacement, the most tags allowed, order, rating, first and last tags,
trigger and added tags, duplicates out, spaces and escapes. (Thresholds and exclusion come before, in
:mod:`lorapipe_tagger.scoring.select`.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lorapipe_tagger.models.labels import CATEGORIES, CHARACTER, GENERAL
from lorapipe_tagger.scoring.select import Selection, Tag, spelling
from lorapipe_tagger.settings import Characters, Order, Place

_PEOPLE = re.compile(r"(\d+\+?|multiple)_?(girl|boy|other)s?|solo|no_humans")
_TWO_LETTERS = re.compile(r"[^\W\d_]{2}")
# Words in front of a noun that say more of it: with "white_shirt" there, "shirt" adds nothing.
_QUALIFIERS = frozenset(
    """black white grey gray red blue green yellow orange pink purple brown blonde silver gold golden aqua beige
    light dark pale multicolored two-tone gradient striped plaid polka-dot checkered floral print frilled
    short long medium very absurdly big large small huge tiny mini thick thin high low wide narrow
    single double side twin low-tied high-tied open closed torn ripped wet see-through
    sleeveless strapless off-shoulder detached pleated lace sailor school collared hooded""".split()  # noqa: SIM905
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a caption looks like. Keys of the mappings are in :func:`~lorapipe_tagger.scoring.select.spelling`'s form.

    ``replacements`` and ``aliases``: tag -> tags in its place (none: dropped); ``implications``: tag -> tags that it
    makes superfluous; ``series``: what a character's name is expanded by where the model knows it.
    """

    trigger: str = ""
    add: Sequence[str] = ()
    first: Sequence[str] = ()
    last: Sequence[str] = ()
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    implications: Mapping[str, Sequence[str]] = field(default_factory=dict)
    replacements: Mapping[str, Sequence[str]] = field(default_factory=dict)
    series: Mapping[str, Sequence[str]] = field(default_factory=dict)
    drop_overlap: bool = False
    expand_character: bool = False
    max_tags: int | None = None
    order: Order = "score"
    characters: Characters = "last"
    rating: Place = "off"
    spaces: bool = True
    escape: bool = False
    separator: str = ", "

    def with_trigger(self, trigger: str) -> Shape:
        """The same with another trigger."""
        return replace(self, trigger=trigger)


def caption_tags(selection: Selection, shape: Shape) -> list[str]:
    """The tags of a caption, in order and as they are written."""
    tags = selection.tags
    for _, tags in tag_steps(selection.tags, shape):  # noqa: B007 - the last step's count
        pass
    names = [tag.name for tag in order_tags(tags, shape.order, shape.characters)]
    names = add_rating(names, selection.ratings, shape.rating)
    names = move(names, shape.first, shape.last)
    given = without_repeats(given_tags(shape))
    names = without_repeats([*given, *names])
    # What the user gave stands as it was given: a trigger must be the same in every caption and prompt.
    return [*given, *(write_tag(name, shape) for name in names[len(given) :])]


def tag_steps(tags: Sequence[Tag], shape: Shape) -> Iterator[tuple[str, list[Tag]]]:
    """The tags after each step that takes some out or renames them, with the name of the step's option."""
    tags = rename(tags, shape.aliases)
    yield "--aliases", tags
    tags = drop_implied(tags, shape.implications)
    yield "--implications", tags
    if shape.drop_overlap:
        tags = drop_overlapping(tags)
        yield "--drop-overlap", tags
    if shape.expand_character:
        tags = [part for tag in tags for part in expand_character(tag, shape.series)]
        yield "--expand-character", tags
    tags = rename(tags, shape.replacements)
    yield "--replace", tags
    if shape.max_tags is not None:
        tags = sorted(tags, key=lambda tag: -tag.score)[: shape.max_tags]
        yield "--max-tags", tags


def front_count(tags: Sequence[str], shape: Shape) -> int:
    """How many tags of a caption stand in front because the user said so: trigger, added and first ones."""
    front = {spelling(tag) for tag in (*given_tags(shape), *shape.first)}
    front |= {spelling(write_tag(tag, shape)) for tag in shape.first}
    return next((at for at, tag in enumerate(tags) if spelling(tag) not in front), len(tags))


def given_tags(shape: Shape) -> list[str]:
    """What every caption has in front because the user said so: the trigger and added tags."""
    return [tag for tag in (shape.trigger, *shape.add) if tag]


def rename(tags: Iterable[Tag], names: Mapping[str, Sequence[str]]) -> list[Tag]:
    """Put the tags that ``names`` has for a tag in its place; they have its category and score."""
    if not names:
        return list(tags)
    return [
        tag._replace(name=name)
        for tag in tags
        for name in (names.get(spelling(tag.name)) if spelling(tag.name) in names else (tag.name,)) or ()
    ]


def drop_implied(tags: Sequence[Tag], implications: Mapping[str, Sequence[str]]) -> list[Tag]:
    """Leave out tags that another one implies, also over several steps."""
    if not implications:
        return list(tags)
    implied: set[str] = set()
    for tag in tags:
        start = spelling(tag.name)
        ahead, seen = [start], {start}
        while ahead:
            for parent in implications.get(ahead.pop(), ()):
                if parent not in seen:
                    seen.add(parent)
                    ahead.append(parent)
        implied |= seen - {start}
    return [tag for tag in tags if spelling(tag.name) not in implied]


def drop_overlapping(tags: Sequence[Tag]) -> list[Tag]:
    """Leave out "shirt" where "white_shirt" is: whole words only, and only words of colour, length and the like."""
    covered: set[str] = set()
    for tag in tags:
        words = tag.name.split("_")
        for count in range(1, len(words)):
            if words[count - 1] not in _QUALIFIERS:
                break
            covered.add("_".join(words[count:]))
    return [tag for tag in tags if tag.name not in covered or tag.category != GENERAL]


def expand_character(tag: Tag, series: Mapping[str, Sequence[str]]) -> list[Tag]:
    """``name_(series)`` as the name and the series; of several brackets the last are the series."""
    if tag.category != CHARACTER:
        return [tag]
    known = series.get(tag.name)
    if not tag.name.endswith(")"):
        return [tag, *(tag._replace(name=name) for name in known or ())]
    start = _opening(tag.name)
    name, inside = tag.name[:start].rstrip("_ "), tag.name[start + 1 : -1]
    if not name or not inside:
        return [tag]
    if known and inside not in known:  # the brackets tell characters of one name apart
        return [tag, *(tag._replace(name=one) for one in known)]
    return [tag._replace(name=name), *(tag._replace(name=one) for one in known or (inside,))]


def _opening(name: str) -> int:
    """Where the bracket opens that the last sign closes; 0 if there is none."""
    depth = 0
    for at in range(len(name) - 1, -1, -1):
        depth += (name[at] == ")") - (name[at] == "(")
        if depth == 0:
            return at
    return 0


def order_tags(tags: Sequence[Tag], order: Order, characters: Characters) -> list[Tag]:
    """Sort tags, equal ones as they stand; and put characters (and what else is no general tag) where they belong."""
    key: Callable[[Tag], tuple[float, ...]]
    if order == "model":
        key = lambda tag: (tag.row,)  # noqa: E731
    elif order == "count":
        key = lambda tag: (not is_count(tag.name), -tag.score)  # noqa: E731
    else:
        key = lambda tag: (-tag.score,)  # noqa: E731
    ranked = sorted(tags, key=key)
    if characters == "mixed":
        return ranked
    front = (CHARACTER, "copyright", "artist") if characters == "first" else ()
    places = dict.fromkeys((*front, GENERAL, *CATEGORIES))
    place = {category: rank for rank, category in enumerate(places)}
    return sorted(ranked, key=lambda tag: place.get(tag.category, len(place)))


def is_count(name: str) -> bool:
    """Whether a tag says how many people there are: 1girl, 2boys, solo, no_humans."""
    return bool(_PEOPLE.fullmatch(spelling(name)))


def add_rating(names: list[str], ratings: Mapping[str, float], place: Place) -> list[str]:
    """Put the likeliest rating in front or at the end."""
    if place == "off" or not ratings:
        return names
    best = max(ratings, key=lambda name: ratings[name])
    return [best, *names] if place == "first" else [*names, best]


def move(names: Sequence[str], first: Sequence[str], last: Sequence[str]) -> list[str]:
    """Move those of the tags ``first`` that are there to the front, those of ``last`` to the end, in their order."""
    front = {spelling(name): rank for rank, name in enumerate(first)}
    back = {spelling(name): rank for rank, name in enumerate(last) if spelling(name) not in front}
    keys = [spelling(name) for name in names]
    ranks = [(0, front[k]) if k in front else (2, back[k]) if k in back else (1, 0) for k in keys]
    return [name for _, name in sorted(zip(ranks, names, strict=True), key=lambda pair: pair[0])]


def without_repeats(names: Iterable[str]) -> list[str]:
    """Each tag once, the first one stays; spellings and capitals make no difference."""
    by_spelling: dict[str, str] = {}
    for name in names:
        by_spelling.setdefault(spelling(name), name)
    return list(by_spelling.values())


def write_tag(name: str, shape: Shape) -> str:
    """A tag as it stands in the caption."""
    text = with_spaces(name) if shape.spaces else name
    return escaped(text) if shape.escape else text


def escaped(text: str) -> str:
    """A text with its brackets as prompts want them."""
    return re.sub(r"([\\()])", r"\\\1", text)


def with_spaces(name: str) -> str:
    """Spaces for underscores, except in faces such as ``^_^`` or ``o_o``: names without two letters side by side."""
    return name.replace("_", " ") if _TWO_LETTERS.search(name) else name
