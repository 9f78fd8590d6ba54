"""So many tags or tokens and no more: whole tags go from the end, the trigger never.

Where not even one tag fits, as in a caption of one long sentence, that is cut between its words.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from lorapipe_dataset.clean.captions.rules import Facts
from lorapipe_dataset.clean.captions.steps.step import Bench, Step
from lorapipe_dataset.clean.captions.tags import MARK


def build(bench: Bench) -> Step | None:
    """The step, if there is a limit."""
    rules = bench.rules
    if rules.max_tags is None and rules.max_tokens is None:
        return None
    counter = rules.count_tokens or len
    count = lru_cache(maxsize=1 << 17)(lambda tag: 0 if tag == MARK else counter(tag))
    # Words never go on over a separator, so tags and separators can be counted apart.
    between = counter(rules.join)
    around = counter(rules.prefix) + counter(rules.suffix)

    def step(tags: list[str], _facts: Facts) -> list[str]:
        must = [bench.key(tag) in bench.own for tag in tags]
        places = [i for i, own in enumerate(must) if own] + [i for i, own in enumerate(must) if not own]
        left_tags = rules.max_tags if rules.max_tags is not None else len(tags)
        left_tokens = rules.max_tokens if rules.max_tokens is not None else 1 << 60
        left_tokens -= around - between  # one separator fewer than tags
        chosen: set[int] = set()
        for place in places:
            tag = tags[place]
            left_tokens -= count(tag) + between if rules.max_tokens is not None else 0
            left_tags -= tag != MARK
            if (left_tokens < 0 or left_tags < 0) and not must[place]:
                break
            chosen.add(place)
        if len(chosen) == len(tags):
            return tags
        free = [place for place in places if tags[place] != MARK and not must[place]]
        if free and free[0] not in chosen:
            # A caption of one long sentence is cut inside it: an empty one would say nothing.
            first = free[0]
            spent = sum(count(tags[place]) + between for place in chosen)
            shorter = _cut(tags[first], (rules.max_tokens or 0) - around - spent, counter)
            if shorter:
                bench.cut.update([bench.key(tags[first])])
                kept = {**{place: tags[place] for place in chosen}, first: shorter}
                return [kept[place] for place in sorted(kept)]
        bench.cut.update(bench.key(tag) for i, tag in enumerate(tags) if i not in chosen)
        return [tag for i, tag in enumerate(tags) if i in chosen]

    return step


def _cut(tag: str, most: int, count: Callable[[str], int]) -> str:
    """As many words of a tag as ``most`` tokens hold, or of its first word as many letters; "" where that is none."""
    words = tag.split()
    if words and count(words[0]) > most:
        return next(
            (words[0][:end] for end in range(len(words[0]), 0, -1) if count(words[0][:end]) <= most), ""
        )
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(" ".join(words[:middle])) <= most else (low, middle - 1)
    return " ".join(words[:low])
