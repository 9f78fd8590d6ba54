"""Why a picture has the tags that it has: each score with what became of the tag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lorapipe_tagger.captions.shape import Shape, tag_steps
from lorapipe_tagger.models.labels import RATING
from lorapipe_tagger.scoring.combine import Consensus
from lorapipe_tagger.scoring.select import FLOOR, Tag, spelling
from lorapipe_tagger.scoring.session import Scores


class Reason(NamedTuple):
    """A tag of the model's list, its score, and what became of it: "kept", or the option that took it out."""

    tag: str
    category: str
    score: float
    outcome: str


def explain(
    scores: Sequence[Scores], consensus: Consensus, shape: Shape, tags: Sequence[str]
) -> list[Reason]:
    """What became of each tag above the floor, the surest first. ``tags`` are those of the caption."""
    together, passed = consensus.judge(scores)
    limits, excluded = consensus.limits(scores), consensus.excluded
    fates = _fates(consensus.select(scores).tags, shape)
    written = {spelling(tag.replace("\\", "")) for tag in tags}
    reasons = []
    for row in sorted(np.flatnonzero(together >= FLOOR).tolist(), key=lambda row: -together[row]):
        name, category, score = (
            consensus.labels.names[row],
            consensus.labels.categories[row],
            float(together[row]),
        )
        if category == RATING:
            outcome = "kept" if spelling(name) in written else "a rating (--rating)"
        elif passed[row]:
            outcome = fates.get(row, "kept")
        elif excluded[row]:
            outcome = "--exclude"
        elif score >= limits[row]:
            outcome = "too few models (--combine)"
        else:
            off = not limits[row] <= 1
            outcome = f"{category} tags are off" if off else f"below {limits[row]:.3g}"
        reasons.append(Reason(name, category, score, outcome))
    return reasons


def _fates(tags: Sequence[Tag], shape: Shape) -> dict[int, str]:
    """By row of the model's list: the step that took a tag out, or what it is called since."""
    fates: dict[int, str] = {}
    before = {tag.row: [tag.name] for tag in tags}
    for step, left in tag_steps(tags, shape):
        after: dict[int, list[str]] = {}
        for tag in left:
            after.setdefault(tag.row, []).append(tag.name)
        for row, names in before.items():
            if row not in after:
                fates[row] = step
            elif after[row] != names:
                fates[row] = f"kept as {', '.join(after[row])} ({step})"
        before = after
    return fates


def table(reasons: Sequence[Reason]) -> str:
    """The reasons as lines for people."""
    width = max((len(reason.tag) for reason in reasons), default=0)
    return "\n".join(f"  {r.score:.3f}  {r.category:<9}  {r.tag:<{width}}  {r.outcome}" for r in reasons)
