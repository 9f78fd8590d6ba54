"""Tags that follow from others: taken out as superfluous, or added."""

from __future__ import annotations

from collections.abc import Sequence

from lorapipe_dataset.clean.captions.rules import Facts
from lorapipe_dataset.clean.captions.steps.step import Bench, Memo, Step


def build(bench: Bench) -> Step | None:
    """The step, if there are implications."""
    rules, key = bench.rules, bench.key
    if not rules.implications:
        return None
    starts = rules.implications.keys()

    def follow(start: str) -> Sequence[str]:
        """All that follows from a key, over several steps, the nearest first, without itself."""
        seen: dict[str, None] = {}
        ahead = [start]
        while ahead:
            for parent in rules.implications.get(ahead.pop(0), ()):
                if parent not in seen and parent != start:
                    seen[parent] = None
                    ahead.append(parent)
        return tuple(seen)

    parents: Memo[Sequence[str]] = Memo(follow)
    ends = {end for implied in rules.implications.values() for end in implied}

    def drop(tags: list[str], _facts: Facts) -> list[str]:
        keys = bench.keys(tags)
        if ends.isdisjoint(keys):
            return tags
        implying = starts & keys
        return (
            bench.without({one for key in implying for one in parents[key]}, tags, keys) if implying else tags
        )

    def add(tags: list[str], _facts: Facts) -> list[str]:
        here = set(map(key, tags))
        more = dict.fromkeys(one for tag in tags for one in parents[key(tag)] if one not in here)
        return [*tags, *more] if more else tags

    return add if rules.add_implied else drop
