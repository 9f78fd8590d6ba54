"""Each tag once: the first stays; capitals, underscores, escapes and weights make no difference."""

from __future__ import annotations

from lorapipe_dataset.clean.captions.rules import Facts
from lorapipe_dataset.clean.captions.steps.step import Bench, Step
from lorapipe_dataset.clean.captions.tags import MARK


def build(bench: Bench) -> Step | None:
    """The step, unless it was switched off."""
    if not bench.rules.dedupe:
        return None

    def step(tags: list[str], _facts: Facts) -> list[str]:
        keys = bench.keys(tags)
        if len(set(keys)) == len(keys):
            return tags
        seen: set[str] = set()
        add = seen.add
        pairs = zip(tags, keys, strict=True)
        return [tag for tag, key in pairs if (key not in seen and not add(key)) or tag == MARK]

    return step
