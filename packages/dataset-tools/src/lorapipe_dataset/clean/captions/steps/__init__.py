"""The steps from a caption's tags to better ones, in the one order in which they are done.

Each module has ``build``, which makes its step of the rules, or None where they ask for nothing of it.
"""

from __future__ import annotations

from lorapipe_dataset.clean.captions.steps import (
    algebra,
    aliases,
    characters,
    drop,
    given,
    normalise,
    order,
    rating,
    replace,
    spelling,
    truncate,
)
from lorapipe_dataset.clean.captions.steps.step import Bench, Builder, Each, Step, fuse
from lorapipe_dataset.clean.captions.steps.superfluous import dedupe, implications, invariant, overlap, people

STEPS: dict[str, Builder] = {
    "normalise": normalise.build,
    "union, intersect, subtract": algebra.build,
    "aliases": aliases.build,
    "characters' series": characters.build,
    "replace": replace.build,
    "drop, keep, only": drop.build,
    "rating out": rating.build,
    "several people": people.build,
    "implications": implications.build,
    "overlap": overlap.build,
    "invariant tags": invariant.build,
    "trigger, added tags": given.build,
    "spelling": spelling.build,
    "dedupe": dedupe.build,
    "order": order.build,
    "limits": truncate.build,
}


def build_steps(bench: Bench) -> list[Step]:
    """The steps that the rules ask for, in order. Neighbours that look at single tags only are one step."""
    steps: list[Step] = []
    for build in STEPS.values():
        step = build(bench)
        if isinstance(step, Each) and steps and isinstance(steps[-1], Each):
            steps[-1] = fuse(steps[-1], step)
        elif step is not None:
            steps.append(step)
    return steps
