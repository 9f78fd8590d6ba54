"""Triggers in captions: the words that call what a network has learned, found and taken out.

A word is one where no letter, digit or underscore stands right before or behind it. Text encoders read small letters
alone, so case does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.captions import KEEP_MARK, split_tags

_EMPTY = re.compile(r"[\W_]*(:\s*[\d.]+)?[\W_]*")  # what is left of a weighted tag that was the word alone


def check_no_mark(texts: Iterable[str], option: str, *marks: str) -> None:
    """Raise ConfigError for words of an option with ``|||`` or another of ``marks`` in them: training takes a mark for
    the end of what stays in front, never for a part of a tag.
    """
    for text in texts:
        for mark in (KEEP_MARK, *marks):
            if mark in text:
                raise ConfigError(
                    f"{option} {text!r}: {mark} is training's mark (keep_tokens_separator), no part of a tag; give the "
                    "words alone: lora-train --keep_tokens 1 keeps the first tag of each caption in front"
                )


def has_word(text: str, word: str) -> bool:
    """Whether a word (or several with blanks between) stands in a text."""
    return _pattern(word).search(text) is not None


def without_words(text: str, swaps: Iterable[tuple[str, str]], separator: str = ",") -> str:
    """A caption with another text in each word's place. A tag that is the word alone becomes the text's tags, but for
    those that the caption has already; a tag of which nothing is left goes, with its separator."""
    for word, instead in swaps:
        if has_word(text, word):
            text = _without(text, word, instead, separator)
    return text


def _without(text: str, word: str, instead: str, separator: str) -> str:
    mark = separator.strip()
    tags = split_tags(text, separator) if mark else [text.strip()]
    others = {tag for tag in tags if tag.casefold() != word.casefold()}
    kept: list[str] = []
    for tag in tags:
        if tag.casefold() == word.casefold():
            kept += [new for new in split_tags(instead, separator or ",") if new not in {*others, *kept}]
        else:
            less = " ".join(_pattern(word).sub(lambda _: instead, tag).split())
            kept += [less] if less == tag or not _EMPTY.fullmatch(less) else []
    return (f"{mark} " if mark else separator).join(tag for tag in kept if tag)


@cache
def _pattern(word: str) -> re.Pattern[str]:
    blanks = r"\s+".join(re.escape(piece) for piece in word.split())
    return re.compile(rf"(?<!\w){blanks}(?!\w)", re.IGNORECASE)
