"""How tags are written: spaces or underscores, brackets escaped. What the user gave stands as it was given."""

from __future__ import annotations

from collections.abc import Callable

from lorapipe_dataset.clean.captions.steps.step import Bench, Each, Step
from lorapipe_dataset.clean.captions.tags import escape, with_spaces, with_underscores


def build(bench: Bench) -> Step | None:
    """The step, if spelling is to change."""
    rules = bench.rules
    change = spelling(bench)
    return Each(lambda tag: (change(tag),)) if rules.spelling != "keep" or rules.escape else None


def spelling(bench: Bench) -> Callable[[str], str]:
    """A function from tags to tags as they are written."""
    rules = bench.rules

    def change(tag: str) -> str:
        if tag in bench.own_tags:
            return tag
        if rules.spelling == "spaces":
            tag = with_spaces(tag)
        elif rules.spelling == "underscores":
            tag = with_underscores(tag)
        return escape(tag) if rules.escape else tag

    return change
