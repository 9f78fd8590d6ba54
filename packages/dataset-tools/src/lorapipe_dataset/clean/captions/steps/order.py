"""The order of tags: sorted, some of them in front or at the end, the trigger before all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from lorapipe_dataset.clean.captions.rules import Facts
from lorapipe_dataset.clean.captions.steps.step import Bench, Memo, Step
from lorapipe_dataset.clean.captions.tags import MARK
from lorapipe_dataset.texts.vocabulary import rating_of

_PEOPLE = re.compile(r"(?:\d+\+?|multiple) ?(?:girl|boy|other)s?|solo|no humans")
Sorter = Callable[[list[str], Facts], Callable[[str], Any]]


def build(bench: Bench) -> Step | None:
    """The step, if anything is to move."""
    rules = bench.rules
    sort = _sorting(bench) if rules.order != "keep" else None
    ends = _ends(bench) if rules.first or rules.last or rules.rating in ("first", "last") else None
    if not sort and not ends:
        return None
    # It is spelt as it was given by now.
    own = frozenset(bench.trigger) if rules.trigger_place != "keep" else frozenset()
    many = len(bench.trigger)

    def step(tags: list[str], facts: Facts) -> list[str]:
        if own and tags[:many] == bench.trigger and own.isdisjoint(tags[many:]):
            middle, trigger = tags[many:], bench.trigger
        elif own and not own.isdisjoint(tags):
            middle = [tag for tag in tags if tag not in own]
            trigger = [tag for tag in tags if tag in own]
        else:
            middle, trigger = tags, []
        if sort:
            middle = sort(middle, facts)
        if ends:
            middle = ends(middle, facts)
        return [*middle, *trigger] if rules.trigger_place == "last" else [*trigger, *middle]

    return step


def _sorting(bench: Bench) -> Step:
    rules, make = bench.rules, _SORTERS[bench.rules.order](bench)

    def step(tags: list[str], facts: Facts) -> list[str]:
        # What stands before the mark stays there; the first tags that training keeps in place stay too.
        start = len(tags) - tags[::-1].index(MARK) if MARK in tags else 0
        start = max(start, rules.keep_first - len(bench.trigger) * (rules.trigger_place == "first"))
        rest = tags[start:]
        key = make(rest, facts)
        return [*tags[:start], *sorted(rest, key=key, reverse=rules.descending)]

    return step


def _ends(bench: Bench) -> Step:
    rules, key = bench.rules, bench.key
    front = {key(tag): rank for rank, tag in enumerate(rules.first, 1)}
    back = {key(tag): rank for rank, tag in enumerate(rules.last) if key(tag) not in front}

    def rank(tag: str) -> tuple[int, int]:
        name = key(tag)
        if rules.rating in ("first", "last") and rating_of(name) is not None:
            return (-1, 0) if rules.rating == "first" else (3, 0)
        return (0, front[name]) if name in front else (2, back[name]) if name in back else (1, 0)

    ranks = Memo(rank)
    return lambda tags, _facts: sorted(tags, key=ranks.__getitem__)


# -------------------------------------------------------------------------------- sorters


def _alphabet(bench: Bench) -> Sorter:
    return lambda _tags, _facts: bench.key


def _length(bench: Bench) -> Sorter:
    return lambda _tags, _facts: lambda tag: len(bench.key(tag))


def _tokens(bench: Bench) -> Sorter:
    count = bench.rules.count_tokens or len
    return lambda _tags, _facts: lambda tag: count(bench.key(tag))


def _frequency(bench: Bench) -> Sorter:
    """The commonest first."""
    return lambda _tags, _facts: lambda tag: -bench.counts.get(bench.key(tag), 0)


def _confidence(bench: Bench) -> Sorter:
    """The likeliest first; tags without a probability before them: somebody gave them."""
    return lambda _tags, facts: lambda tag: -facts.scores.get(bench.key(tag), 2.0)


def _category(bench: Bench) -> Sorter:
    ranks = {name: rank for rank, name in enumerate(bench.rules.category_order)}
    # Tags of no known category are general ones, those of one that is not named come last.
    default = ranks.get("general", len(ranks))

    def make(_tags: list[str], facts: Facts) -> Callable[[str], int]:
        def rank(tag: str) -> int:
            category = bench.category(bench.key(tag), facts)
            return default if category is None else ranks.get(category, len(ranks))

        return rank

    return make


def _people(bench: Bench) -> Sorter:
    """``1girl``, ``2boys``, ``solo`` first."""
    ranks = Memo(lambda tag: _PEOPLE.fullmatch(bench.key(tag)) is None)
    return lambda _tags, _facts: ranks.__getitem__


def _shuffle(bench: Bench) -> Sorter:
    """By chance, but the same set of tags with the same seed always falls alike."""

    def make(tags: list[str], _facts: Facts) -> Callable[[str], bytes]:
        whole = ",".join(sorted(map(bench.key, tags)))
        start = hashlib.blake2b(f"{bench.rules.seed}:{whole}".encode("utf-8", "surrogatepass"))

        def rank(tag: str) -> bytes:
            lot = start.copy()
            lot.update(bench.key(tag).encode("utf-8", "surrogatepass"))
            return lot.digest()

        return rank

    return make


_SORTERS: dict[str, Callable[[Bench], Sorter]] = {
    "alphabet": _alphabet,
    "length": _length,
    "tokens": _tokens,
    "frequency": _frequency,
    "confidence": _confidence,
    "category": _category,
    "people": _people,
    "shuffle": _shuffle,
}
