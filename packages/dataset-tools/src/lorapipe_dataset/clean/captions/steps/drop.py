"""Tags taken out by name, pattern or category, or all others taken out."""

from __future__ import annotations

from lorapipe_dataset.clean.captions.rules import NO_FACTS, Facts
from lorapipe_dataset.clean.captions.steps.step import Bench, Each, Step
from lorapipe_dataset.clean.captions.tags import matcher


def build(bench: Bench) -> Step | None:
    """The step, if something is to be dropped. What ``--keep`` names stays."""
    rules, key, stays = bench.rules, bench.key, bench.stays
    if not (rules.drop or rules.only or rules.drop_categories or rules.only_categories):
        return None
    dropped, wanted = matcher(rules.drop), matcher(rules.only)
    out, only = frozenset(rules.drop_categories), frozenset(rules.only_categories)

    def goes(name: str, facts: Facts) -> bool:
        if dropped(name) or (rules.only and not wanted(name)):
            return True
        if not (out or only):
            return False
        category = bench.category(name, facts)
        # A tag of an unknown category is not what either option speaks of.
        return category in out or (bool(only) and category is not None and category not in only)

    if not (out or only):
        return Each(lambda tag: () if goes(key(tag), NO_FACTS) and not stays(key(tag)) else (tag,))

    def step(tags: list[str], facts: Facts) -> list[str]:
        return [tag for tag in tags if not goes(key(tag), facts) or stays(key(tag))]

    return step
