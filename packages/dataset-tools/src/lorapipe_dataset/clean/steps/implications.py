"""Tags that follow from others: taken out as superfluous, or added."""

from __future__ import annotations

from collections.abc import Sequence

from lorapipe_dataset.clean.rules import Facts
from lorapipe_dataset.clean.steps.step import Bench, Step


def build(bench: Bench) -> Step | None:
    """The step, if there are implications."""
    rules, key = bench.rules, bench.key
    if not rules.implications:
        return None
    known: dict[str, Sequence[str]] = {}

    def parents(start: str) -> Sequence[str]:
        """All that follows from a key, over several steps, the nearest first, without itself."""
        found = known.get(start)
        if found is None:
            seen: dict[str, None] = {}
            ahead = [start]
            while ahead:
                for parent in rules.implications.get(ahead.pop(0), ()):
                    if parent not in seen and parent != start:
                        seen[parent] = None
                        ahead.append(parent)
            found = known[start] = tuple(seen)
        return found

    def drop(tags: list[str], _facts: Facts) -> list[str]:
        implied = {parent for tag in tags for parent in parents(key(tag))}
        return [tag for tag in tags if key(tag) not in implied or bench.stays(key(tag))] if implied else tags

    def add(tags: list[str], _facts: Facts) -> list[str]:
        here = set(map(key, tags))
        more = dict.fromkeys(parent for tag in tags for parent in parents(key(tag)) if parent not in here)
        return [*tags, *more] if more else tags

    return add if rules.add_implied else drop
