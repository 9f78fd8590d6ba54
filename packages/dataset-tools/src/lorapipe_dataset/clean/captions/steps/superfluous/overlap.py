"""The tail-word rule: ``shirt`` says nothing where ``white shirt`` stands. Whole words only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from lorapipe_dataset.clean.captions.rules import Facts
from lorapipe_dataset.clean.captions.steps.step import MOST, Bench, Step


def build(bench: Bench) -> Step | None:
    """The step, if it is asked for."""
    if not bench.rules.overlap:
        return None
    seen: set[str] = set()
    every: set[str] = set()  # the tails of all that were seen

    def step(tags: list[str], _facts: Facts) -> list[str]:
        keys = bench.keys(tags)
        if not seen.issuperset(keys):
            if len(seen) > MOST:
                seen.clear()
                every.clear()
            seen.update(keys)
            every.update(chain.from_iterable(map(_tails, keys)))
        present = every.intersection(keys)
        if not present:
            return tags
        ends = "\n".join(keys) + "\n"
        return bench.without({key for key in present if f" {key}\n" in ends}, tags, keys)

    return step


def _tails(key: str) -> Sequence[str]:
    words = key.split(" ")
    return tuple(" ".join(words[start:]) for start in range(1, len(words)))
