"""Tags put in the place of others, by name or by regular expression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorapipe_dataset.clean.rules import Facts
from lorapipe_dataset.clean.steps.step import Bench, Step
from lorapipe_dataset.clean.tags import MARK, expression


def build(bench: Bench) -> Step | None:
    """The step, if tags are to be replaced."""
    rules = bench.rules
    by_name = renaming(bench, rules.replace) if rules.replace else None
    by_regex = _by_regex(rules.regexes) if rules.regexes else None
    if by_name and by_regex:
        return lambda tags, facts: by_regex(by_name(tags, facts), facts)
    return by_name or by_regex


def renaming(bench: Bench, names: Mapping[str, Sequence[str]]) -> Step:
    """A step that puts the tags that ``names`` has for a tag's key in its place; a tag with one of them stays."""
    key = bench.key
    # A tag that is replaced by itself in another spelling is a matter of spelling, not of a cycle.
    final = {old: list(new) for old, new in names.items()}

    def rename(tags: list[str], _facts: Facts) -> list[str]:
        if not any(key(tag) in final for tag in tags):
            return tags
        found: list[str] = []
        for tag in tags:
            found += final.get(key(tag), (tag,)) if key(tag) not in bench.own else (tag,)
        return found

    return rename


def _by_regex(pairs: Sequence[tuple[str, str]]) -> Step:
    known: dict[str, list[str]] = {MARK: [MARK]}
    compiled = [(expression(pattern), new) for pattern, new in pairs]

    def change(tag: str) -> list[str]:
        for pattern, new in compiled:
            tag = pattern.sub(new, tag)
        return [piece for piece in map(str.strip, tag.split(",")) if piece]

    def step(tags: list[str], _facts: Facts) -> list[str]:
        found: list[str] = []
        for tag in tags:
            new = known.get(tag)
            if new is None:
                new = known[tag] = change(tag)
            found += new
        return found

    return step
