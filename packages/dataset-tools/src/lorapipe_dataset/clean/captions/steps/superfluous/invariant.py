"""Tags that nearly every caption has, taken out, so that the trigger learns what they stand for."""

from __future__ import annotations

from lorapipe_dataset.clean.captions.rules import Facts
from lorapipe_dataset.clean.captions.steps.step import Bench, Step


def build(bench: Bench) -> Step | None:
    """The step, if it is asked for and the captions have been counted."""
    share = bench.rules.strip_invariant
    if share is None or not bench.captions:
        return None
    out = {key for key, count in bench.counts.items() if count >= share * bench.captions}

    def step(tags: list[str], _facts: Facts) -> list[str]:
        return bench.without(out, tags, bench.keys(tags))

    return step
