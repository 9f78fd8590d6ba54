"""The tail-word rule: ``shirt`` says nothing where ``white shirt`` stands. Whole words only."""

from __future__ import annotations

from collections.abc import Sequence

from lorapipe_dataset.clean.rules import Facts
from lorapipe_dataset.clean.steps.step import Bench, Step


def build(bench: Bench) -> Step | None:
    """The step, if it is asked for."""
    if not bench.rules.overlap:
        return None
    known: dict[str, Sequence[str]] = {}

    def tails(key: str) -> Sequence[str]:
        found = known.get(key)
        if found is None:
            words = key.split(" ")
            found = known[key] = tuple(" ".join(words[start:]) for start in range(1, len(words)))
        return found

    def step(tags: list[str], _facts: Facts) -> list[str]:
        keys = [bench.key(tag) for tag in tags]
        covered = {tail for key in keys for tail in tails(key)}
        if covered.isdisjoint(keys):
            return tags
        return [tag for tag, key in zip(tags, keys, strict=True) if key not in covered or bench.stays(key)]

    return step
