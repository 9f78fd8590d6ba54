"""Tags put in the place of others, by name or by regular expression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorapipe_dataset.clean.captions.steps.step import Bench, Each, Step, fuse
from lorapipe_dataset.clean.captions.tags import expression


def build(bench: Bench) -> Step | None:
    """The step, if tags are to be replaced."""
    rules = bench.rules
    by_name = renaming(bench, rules.replace) if rules.replace else None
    by_regex = _by_regex(rules.regexes) if rules.regexes else None
    return fuse(by_name, by_regex) if by_name and by_regex else by_name or by_regex


def renaming(bench: Bench, names: Mapping[str, Sequence[str]]) -> Each:
    """A step that puts the tags that ``names`` has for a tag's key in its place. The user's own tags stay."""

    def rename(tag: str) -> Sequence[str]:
        key = bench.key(tag)
        return names.get(key, (tag,)) if key not in bench.own else (tag,)

    return Each(rename)


def _by_regex(pairs: Sequence[tuple[str, str]]) -> Each:
    compiled = [(expression(pattern), new) for pattern, new in pairs]

    def change(tag: str) -> list[str]:
        for pattern, new in compiled:
            tag = pattern.sub(new, tag)
        return [piece for piece in map(str.strip, tag.split(",")) if piece]

    return Each(change)
