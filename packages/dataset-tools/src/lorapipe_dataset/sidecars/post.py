"""A post: what a sidecar says of a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CATEGORIES = ("character", "copyright", "artist", "species", "general", "meta", "lore")
_RATINGS = {"g": "general", "q": "questionable", "e": "explicit"}
# What the sites call a category.
_NAMES = {
    "character": "character",
    "characters": "character",
    "copyright": "copyright",
    "series": "copyright",
    "parody": "copyright",
    "artist": "artist",
    "artists": "artist",
    "creator": "artist",
    "general": "general",
    "tag": "general",
    "meta": "meta",
    "metadata": "meta",
    "medium": "meta",
    "species": "species",
    "lore": "lore",
    "invalid": "meta",
    "contributor": "meta",
    "model": "meta",
    "circle": "artist",
    "faults": "meta",
    "style": "meta",
}


@dataclass(frozen=True)
class Post:
    """Tags by category (:data:`CATEGORIES`), as they are spelt there. ``names``: what the picture's file may be called,
    whole names and stems, the surest first.
    """

    tags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rating: str | None = None
    names: Sequence[str] = ()

    def listed(self, categories: Sequence[str]) -> list[str]:
        """The tags of some categories, in their order, each once."""
        return list(dict.fromkeys(tag for name in categories for tag in self.tags.get(name, ())))


def category_of(word: str) -> str | None:
    """Our name of a site's category or namespace; None for one that is none."""
    return _NAMES.get(word.strip().lower())


def rating_word(text: object, *, safe: str = "safe") -> str | None:
    """A rating as a word. ``s`` is ``safe``, but on Danbooru ``sensitive``."""
    if not isinstance(text, str) or not text.strip():
        return None
    word = text.strip().lower()
    return _RATINGS.get(word, safe if word == "s" else word)


def split_words(text: str) -> list[str]:
    """Tags between spaces, as boorus have them; between commas where there are any."""
    pieces = re.split(r"\s*,\s*|\n", text) if "," in text else text.split()
    return [piece for piece in (one.strip() for one in pieces) if piece]
