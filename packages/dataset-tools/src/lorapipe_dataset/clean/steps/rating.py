"""Ratings (``rating:safe``, ``explicit``) taken out, or moved to one end."""

from __future__ import annotations

from lorapipe_dataset.check.vocabulary import rating_of
from lorapipe_dataset.clean.rules import Facts
from lorapipe_dataset.clean.steps.step import Bench, Step


def build(bench: Bench) -> Step | None:
    """The step that takes ratings out, if that is asked for; :mod:`.order` moves them."""
    if bench.rules.rating != "drop":
        return None

    def step(tags: list[str], _facts: Facts) -> list[str]:
        keys = map(bench.key, tags)
        return [
            tag for tag, key in zip(tags, keys, strict=True) if rating_of(key) is None or bench.stays(key)
        ]

    return step
