"""New names for old ones."""

from __future__ import annotations

from lorapipe_dataset.clean.captions.steps.replace import renaming
from lorapipe_dataset.clean.captions.steps.step import Bench, Step


def build(bench: Bench) -> Step | None:
    """The step, if there are aliases."""
    return renaming(bench, bench.rules.aliases) if bench.rules.aliases else None
