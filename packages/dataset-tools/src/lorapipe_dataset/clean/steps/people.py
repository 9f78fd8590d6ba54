"""The rule for several people: features of which there are two kinds belong to different ones.

After sd-scripts: with girls or boys in a caption (more than one person), a class of tags that occurs twice, such as
two colours of hair, is taken out, because nothing says whose it is.
"""

from __future__ import annotations

import re

from lorapipe_dataset.check.vocabulary import SEVERAL
from lorapipe_dataset.clean.rules import Facts
from lorapipe_dataset.clean.steps.step import Bench, Step

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
    known: dict[str, int | None] = {}

    def class_of(key: str) -> int | None:
        if key not in known:
            known[key] = next((i for i, one in enumerate(_CLASSES) if one.fullmatch(key)), None)
        return known[key]

    def step(tags: list[str], _facts: Facts) -> list[str]:
        keys = [bench.key(tag) for tag in tags]
        if SEVERAL.isdisjoint(keys):
            return tags
        seen: dict[int, set[str]] = {}
        for key in keys:
            if (found := class_of(key)) is not None:
                seen.setdefault(found, set()).add(key)
        double = {found for found, members in seen.items() if len(members) > 1}
        return [
            tag
            for tag, key in zip(tags, keys, strict=True)
            if class_of(key) not in double or bench.stays(key)
        ]

    return step
