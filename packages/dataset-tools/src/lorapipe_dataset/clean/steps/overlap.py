"""The tail-word rule: ``shirt`` says nothing where ``white shirt`` stands. Whole words only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from lorapipe_dataset.clean.rules import Facts
from lorapipe_dataset.clean.steps.step import Bench, Memo, Step


def build(bench: Bench) -> Step | None:
    """The step, if it is asked for."""
    if not bench.rules.overlap:
        return None
    tails: Memo[Sequence[str]] = Memo(_tails)

    def step(tags: list[str], _facts: Facts) -> list[str]:
        keys = bench.keys(tags)
        return bench.without(set(chain.from_iterable(map(tails.__getitem__, keys))), tags, keys)

    return step


def _tails(key: str) -> Sequence[str]:
    words = key.split(" ")
    return tuple(" ".join(words[start:]) for start in range(1, len(words)))
