"""Lists of tags, as options and files have them."""

from __future__ import annotations

import re
from collections.abc import Iterable

COMMA = re.compile(r"(?<!\\),")  # between tags; one behind a backslash is part of a tag
REGEX = "re:"


def split_list(texts: Iterable[str]) -> list[str]:
    """Tags in lists with commas; ``\\,`` is a comma in a tag, and a regular expression (``re:``) is taken whole."""
    tags: list[str] = []
    for text in texts:
        pieces = [text] if text.startswith(REGEX) else COMMA.split(text)
        tags += [piece.replace("\\,", ",").strip() for piece in pieces]
    return [tag for tag in tags if tag]
