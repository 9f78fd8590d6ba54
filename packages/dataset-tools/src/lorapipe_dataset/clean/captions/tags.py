"""Tags as words: how they are compared, split off a caption, matched by patterns."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence

from lorapipe_dataset.texts.vocabulary import canonical, is_word
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.captions import KEEP_MARK
from lorapipe_engine.pictures.tag_lists import REGEX

MARK = KEEP_MARK
_MOST_KEYS = 1 << 18
_ESCAPED = re.compile(r"\\([\\()])")
_UNESCAPED = re.compile(r"(?<!\\)([()])")


class Keys(dict[str, str]):
    """Tags and what they are compared by, remembered: small letters, spaces for underscores, no escapes or weights."""

    def __missing__(self, tag: str) -> str:
        # A tag that is nothing but underscores is itself.
        key = canonical(tag) or tag
        if len(self) < _MOST_KEYS:
            self[tag] = key
        return key


def key_maker() -> Callable[[str], str]:
    """A function for what tags are compared by."""
    return Keys().__getitem__


def with_spaces(tag: str) -> str:
    """Spaces for underscores, but not in faces, nor between brackets' halves such as ``(o)_(o)``."""
    return tag.replace("_", " ") if "_" in tag and is_word(tag) else tag


def with_underscores(tag: str) -> str:
    """Underscores for spaces, but not in faces."""
    return tag.replace(" ", "_") if " " in tag and is_word(tag) else tag


def escape(tag: str) -> str:
    """``name \\(series\\)``, as the web UIs want brackets that are no weights; escaped ones stay."""
    return _UNESCAPED.sub(r"\\\1", tag) if "(" in tag or ")" in tag else tag


def unescape(tag: str) -> str:
    """``name (series)``."""
    return _ESCAPED.sub(r"\1", tag) if "\\" in tag else tag


# -------------------------------------------------------------------------------- captions


def split_caption(text: str, separators: Sequence[str]) -> list[str]:
    """The tags of a caption, trimmed, none empty; ``{a, b|c}`` stays together, :data:`MARK` is a tag of its own.

    ``separators``: what stands between tags; every one of them counts.
    """
    return [tag for tag in map(str.strip, split_raw(text, separators)) if tag]


def split_raw(text: str, separators: Sequence[str]) -> list[str]:
    """The same before trimming."""
    first = separators[0]
    for other in separators[1:]:
        text = text.replace(other, first)
    if MARK not in text:
        return _split_part(text, first)
    pieces: list[str] = []
    for part in text.split(MARK):
        pieces += (MARK, *_split_part(part, first))
    return pieces[1:]


def _split_part(text: str, separator: str) -> list[str]:
    if "{" in text:
        return _split_braces(text, separator)
    # Most captions have a space after each: tags without one are known from other captions' beginnings.
    spaced = f"{separator} "
    return text.split(spaced if text.count(spaced) == text.count(separator) else separator)


def _split_braces(text: str, separator: str) -> list[str]:
    """Split, but not in wildcards: braces that have their partner and a ``|`` between them."""
    opened: list[int] = []
    shut = bytearray(len(text))
    for at, letter in enumerate(text):
        if letter == "{":
            opened.append(at)
        elif letter == "}" and opened:
            start = opened.pop()
            if "|" in text[start:at]:
                shut[start:at] = b"\1" * (at - start)
    pieces = [""]
    for letter, inside in zip(text, shut, strict=True):
        if letter == separator and not inside:
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces


def join_caption(tags: Sequence[str], separator: str) -> str:
    """Tags as a caption. Around :data:`MARK` there are spaces only."""
    text = separator.join(tags)
    if MARK not in text:
        return text
    mark = re.escape(separator.strip() or separator)
    return re.sub(rf"(?:\s*{mark}\s*)?{re.escape(MARK)}(?:\s*{mark})?\s*", f" {MARK} ", text).strip()


# -------------------------------------------------------------------------------- patterns


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A test of tags' keys: names, patterns with ``*``, ``?`` and ``[...]``, or ``re:EXPRESSION`` for the whole tag.

    A face such as ``?`` or ``*_*`` is a name. Raises ConfigError for an expression that is none.
    """
    names = {canonical(pattern) or pattern for pattern in patterns if not pattern.startswith(REGEX)}
    tests: list[Callable[[str], object]] = []
    for pattern in patterns:
        if pattern.startswith(REGEX):
            tests.append(expression(pattern.removeprefix(REGEX)).fullmatch)
        elif any(letter in pattern for letter in "*?[") and (
            pattern == "*" or any(map(str.isalpha, pattern))
        ):
            tests.append(re.compile(fnmatch.translate(canonical(pattern))).match)
    if not tests:
        return names.__contains__
    known: dict[str, bool] = {}

    def test(key: str) -> bool:
        matches = known.get(key)
        if matches is None:
            matches = known[key] = key in names or any(
                one(key) or one(key.replace(" ", "_")) for one in tests
            )
        return matches

    return test


def expression(text: str) -> re.Pattern[str]:
    """A regular expression that takes capitals and small letters alike. Raises ConfigError."""
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise ConfigError(f"{text!r}: not a regular expression ({error})") from error
