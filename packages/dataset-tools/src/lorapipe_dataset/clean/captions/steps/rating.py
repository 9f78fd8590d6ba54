"""Ratings (``rating:safe``, ``explicit``) taken out, or moved to one end."""

from __future__ import annotations

from lorapipe_dataset.clean.captions.steps.step import Bench, Each, Step
from lorapipe_dataset.texts.vocabulary import rating_of


def build(bench: Bench) -> Step | None:
    """The step that takes ratings out, if that is asked for; :mod:`.order` moves them."""
    if bench.rules.rating != "drop":
        return None

    def change(tag: str) -> tuple[str, ...]:
        key = bench.key(tag)
        return (tag,) if rating_of(key) is None or bench.stays(key) else ()

    return Each(change)
