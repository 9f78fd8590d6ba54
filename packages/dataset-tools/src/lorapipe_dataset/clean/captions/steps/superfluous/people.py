"""The rule for several people: features of which there are two kinds belong to different ones.

After sd-scripts: with girls or boys in a caption (more than one person), a class of tags that occurs twice, such as
two colours of hair, is taken out, because nothing says whose it is.
"""

from __future__ import annotations

import re

from lorapipe_dataset.clean.captions.rules import Facts
from lorapipe_dataset.clean.captions.steps.step import Bench, Memo, Step
from lorapipe_dataset.texts.vocabulary import SEVERAL

_CLASSES = tuple(
    re.compile(text)
    for text in (
        r"(?:very |absurdly )?(?:short|medium|long) hair",
        r"(?:bob|hime|pixie|bowl) cut",
        r"(?!(?:very |absurdly )?(?:short|medium|long) )[\w-]+ hair",
        r"[\w-]+ eyes",
        r"[\w-]+ sleeves|sleeveless",
        r"(?:[\w-]+ )?(?:ponytail|twintails|braids?|ahoge|hair bun|double bun|drill hair|side up)",
    )
)


def build(bench: Bench) -> Step | None:
    """The step, if it is asked for."""
    if not bench.rules.several_people:
        return None
    classes: Memo[int | None] = Memo(
        lambda key: next((i for i, one in enumerate(_CLASSES) if one.fullmatch(key)), None)
    )

    def step(tags: list[str], _facts: Facts) -> list[str]:
        keys = bench.keys(tags)
        if SEVERAL.isdisjoint(keys):
            return tags
        seen: dict[int, set[str]] = {}
        for key in keys:
            if (kind := classes[key]) is not None:
                seen.setdefault(kind, set()).add(key)
        out = {key for members in seen.values() if len(members) > 1 for key in members}
        return bench.without(out, tags, keys)

    return step
