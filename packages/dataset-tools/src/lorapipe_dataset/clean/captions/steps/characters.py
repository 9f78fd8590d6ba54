"""``name (series)`` of a character as two tags."""

from __future__ import annotations

from lorapipe_dataset.clean.captions.rules import Facts
from lorapipe_dataset.clean.captions.steps.step import Bench, Step
from lorapipe_dataset.clean.captions.tags import unescape


def build(bench: Bench) -> Step | None:
    """The step, if it is asked for; tags that are not known to be characters stay."""
    if not bench.rules.split_characters:
        return None

    def step(tags: list[str], facts: Facts) -> list[str]:
        split: list[str] = []
        for tag in tags:
            key = bench.key(tag)
            is_name = key.endswith(")") and key not in bench.own and bench.category(key, facts) == "character"
            split += split_name(tag) if is_name else (tag,)
        return split

    return step


def split_name(tag: str) -> list[str]:
    """Name and series; of several brackets the last are the series."""
    text = unescape(tag)
    depth = 0
    for at in range(len(text) - 1, -1, -1):
        depth += (text[at] == ")") - (text[at] == "(")
        if depth == 0:
            name, series = text[:at].strip("_ "), text[at + 1 : -1].strip("_ ")
            return [name, series] if name and series else [tag]
    return [tag]
