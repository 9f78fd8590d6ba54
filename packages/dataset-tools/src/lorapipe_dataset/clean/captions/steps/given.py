"""The trigger, and tags that every caption is to have."""

from __future__ import annotations

from lorapipe_dataset.clean.captions.rules import Facts
from lorapipe_dataset.clean.captions.steps.step import Bench, Step


def build(bench: Bench) -> Step | None:
    """The step, if there is something to add. The user's spelling goes before the caption's."""
    rules, key, trigger = bench.rules, bench.key, bench.trigger
    if not trigger and not bench.add:
        return None
    spelt = {key(tag): tag for tag in (*bench.add, *trigger)}
    keys = set(map(key, trigger))
    many = len(trigger)
    others = spelt.keys() if rules.trigger_place == "keep" else spelt.keys() - keys

    def is_done(tags: list[str], names: list[str]) -> bool:
        """Whether the trigger is in front as it is wanted, and nothing is to be added: so in a second round."""
        return (
            rules.trigger_place == "first"
            and tags[:many] == trigger
            and not bench.add
            and keys.isdisjoint(names[many:])
        )

    def step(tags: list[str], _facts: Facts) -> list[str]:
        names = bench.keys(tags)
        if is_done(tags, names):
            return tags
        if rules.trigger_place == "first" and not bench.add and keys.isdisjoint(names):
            return [*trigger, *tags]
        here = set(names)
        if rules.trigger_place != "keep" and not keys.isdisjoint(here):
            tags = [tag for tag, name in zip(tags, names, strict=True) if name not in keys]
            names = bench.keys(tags)
        if not others.isdisjoint(here):
            tags = [spelt.get(name, tag) for tag, name in zip(tags, names, strict=True)]
        if bench.add:
            tags = [*tags, *(tag for tag in bench.add if key(tag) not in here)]
        if rules.trigger_place == "keep":
            return [*(tag for tag in trigger if key(tag) not in here), *tags]
        return [*trigger, *tags] if rules.trigger_place == "first" else [*tags, *trigger]

    return step
