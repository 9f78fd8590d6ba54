"""Two captions of one picture: all tags of both, those in both, or those of the first only."""

from __future__ import annotations

from lorapipe_dataset.clean.captions.rules import Facts
from lorapipe_dataset.clean.captions.steps.step import Bench, Step


def build(bench: Bench) -> Step | None:
    """The step, if another folder was named. Without a counterpart a caption stays as it is."""
    rules, key = bench.rules, bench.key
    if rules.algebra is None:
        return None

    def union(tags: list[str], facts: Facts) -> list[str]:
        here = set(map(key, tags))
        return tags + [tag for tag in facts.other or () if key(tag) not in here]

    def intersect(tags: list[str], facts: Facts) -> list[str]:
        if facts.other is None:
            return tags
        there = set(map(key, facts.other))
        return [tag for tag in tags if key(tag) in there or bench.stays(key(tag))]

    def subtract(tags: list[str], facts: Facts) -> list[str]:
        there = set(map(key, facts.other or ()))
        return [tag for tag in tags if key(tag) not in there or bench.stays(key(tag))]

    return {"union": union, "intersect": intersect, "subtract": subtract}[rules.algebra]
