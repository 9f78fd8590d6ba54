"""Tags and a sentence in a caption."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lorapipe_tagger.settings import CaptionStyle


def caption_parts(
    tags: Sequence[str], given: Sequence[str], sentence: str, style: CaptionStyle
) -> list[list[str]]:
    """The parts of each line of a caption. ``given``: trigger and added tags, which ``tags`` begin with.

    They stand in front of a sentence that has a line of its own, but for those that it has as words itself.
    """
    if style == "both":
        return [[*tags, sentence]]
    alone = [*(word for word in given if not _has(sentence, word)), sentence]
    return [alone] if style == "sentence" else [list(tags), alone]


def _has(sentence: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", sentence) is not None
